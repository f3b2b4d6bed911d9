"""The results of a study: a file of JSON lines, one for each finished training run, to which runs are appended."""

from __future__ import annotations

import dataclasses
import json
import statistics
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diracnets.errors import FileError
from diracnets.files import append_json, writing
from diracnets.studies.grid import Row
from diracnets.training.recipe import Recipe

_ENVIRONMENT = ("device", "processor", "instructions", "threads", "precision", "versions", "commit", "started")


@dataclass(frozen=True)
class Record:
    """One finished training run: a line of the file."""

    row: str
    """The name of the study's row."""
    axes: dict[str, str | float]
    """Those of the row."""
    recipe: dict[str, Any]
    """As a table, with the random seed."""
    full_epochs: int
    """Epochs of the row's recipe before a budget scaled it down."""
    result: dict[str, Any]
    """accuracy on the test images (0 to 1), loss, epochs, seconds of training, images_per_second in the median epoch;
    accuracy is None for a run that diverged. Runs with `select_on` also have selection_accuracy, on the training images
    that were held out."""
    environment: dict[str, Any]
    """Device, threads, runs at the same time (jobs), arithmetic, versions, commit."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the recipe by today's names."""
        return Recipe.from_table(self.recipe, f"recipe of {self.row}", warn=False).settings()

    @property
    def key(self) -> tuple[str, str]:
        """What makes a run the same run: its row, and all settings, the random seed among them."""
        return self.row, repr(sorted(self.settings.items()))


def key_of(row: Row) -> tuple[str, str]:
    """The key that the record of this row's run will have."""
    return row.name, repr(sorted(row.recipe.settings().items()))


def read_records(path: Path) -> list[Record]:
    """What a file holds, each run once, a repeated one as it was last; nothing if there is no such file.

    Reads files of JSON lines, and the single JSON objects that versions before 0.2 wrote.

    Raises:
        FileError: it cannot be read, or does not hold the results of training runs.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            records = _from_earlier(json.loads(text))
        else:
            records = [Record(**json.loads(line)) for line in text.splitlines() if line.strip()]
        if any(isinstance(record.recipe.get("model"), str) for record in records):
            warnings.warn(
                f"{path} has recipes of an earlier version, which are read by today's names",
                FutureWarning,
                stacklevel=2,
            )
        return list({record.key: record for record in records}.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} does not hold the results of a study's training runs: {error}") from error


def add_record(path: Path, record: Record) -> None:
    """Append one run.

    Raises:
        FileError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    append_json(path, dataclasses.asdict(record))


def record_of(row: Row, full_epochs: int, folder: Path, jobs: int, *, diverged: bool) -> Record:
    """The record of a run that has ended, from what its folder holds.

    Args:
        row: with the recipe and random seed of the run.
        full_epochs: of the row's recipe before it was scaled down.
        folder: the run folder.
        jobs: how many runs there were at the same time.
        diverged: whether the loss became infinite or NaN.

    Raises:
        FileError: the run folder lacks a file, or holds a damaged one.
    """
    try:
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))[-1]
        rates = [epoch["images_per_second"] for epoch in history]
        images = "val" if row.recipe.settings()["select_on"] is None else "test"
        result: dict[str, Any] = {
            "accuracy": None if diverged else history[-1][f"{images}_accuracy"],
            "loss": None if diverged else history[-1][f"{images}_loss"],
            "epochs": len(history),
            "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
            "images_per_second": round(statistics.median(rates), 1) if rates else None,
        }
        if images == "test" and not diverged:
            chosen = history[-1].get("test_epoch", history[-1]["epoch"])  # what was tested
            result["selection_accuracy"] = next(row["val_accuracy"] for row in history if row["epoch"] == chosen)
        machine = {**{name: environment[name] for name in _ENVIRONMENT}, "jobs": jobs}
    except (OSError, ValueError, KeyError, IndexError, TypeError, StopIteration, RecursionError) as error:
        raise FileError(f"the run in {folder} is damaged ({error}): delete it, and it is trained again") from error
    return Record(row.name, dict(row.axes), row.recipe.table(), full_epochs, result, machine)


def _from_earlier(content: dict[str, Any]) -> list[Record]:
    """The records of a file of before 0.2, which kept rows, with their recipes, apart from records."""
    rows = {(row["row"], row["key"]): row for row in content["rows"]}
    records = []
    for old in content["records"]:
        row = rows[old["row"], old["key"]]
        names = ("accuracy", "chain_accuracy", "loss", "epochs", "seconds", "images_per_second")
        result = {name: old[name] for name in names if name != "chain_accuracy" or old[name] is not None}
        recipe = {**row["recipe"], "seed": old["seed"]}
        records.append(Record(row["row"], row["place"], recipe, row["full_epochs"], result, old["machine"]))
    return records
