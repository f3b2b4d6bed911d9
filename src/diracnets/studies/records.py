"""The records of a study: one for each finished training, kept in one JSON file that grows with every call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diracnets.errors import FileError
from diracnets.studies.report import read_json, write_json
from diracnets.studies.study import Budget, Lines, Published, Row, Study, recipe_key


@dataclass(frozen=True)
class Record:
    """What one training gave. Accuracies are parts of the held-out images, 0 to 1."""

    row: str
    key: str
    """That of the recipe, see `recipe_key`."""
    seed: int
    outcome: Literal["trained", "diverged"]
    accuracy: float | None
    """After the last epoch; None for a training that diverged."""
    chain_accuracy: float | None
    """Of the folded chain; None where there is none, or it was not asked for."""
    loss: float | None
    epochs: int
    """Those that were trained."""
    seconds: float
    """Of training, the batch norms' fresh statistics included, without evaluation and start."""
    images_per_second: float | None
    """In the median epoch."""
    machine: dict[str, Any]
    """Device, threads, jobs beside it, arithmetic, versions, commit."""
    message: str = ""
    """Why it diverged."""


@dataclass(frozen=True)
class Asked:
    """A row at a budget: what was asked for, whether or not it has been trained yet."""

    row: str
    key: str
    place: dict[str, str | float]
    recipe: dict[str, Any]
    """As `Recipe.table` gives it, of the first seed."""
    seeds: int
    full_epochs: int
    full_seeds: int
    published: Published | None = None
    parameters: int | None = None
    """Of the network; None where the study does not tell them, or they are not counted yet."""
    rate: float | None = None
    """That of the recipe, where the row was asked for with several, the best of which is told."""

    @classmethod
    def of(cls, row: Row, study: Study, budget: Budget) -> Asked:
        """What a row is at a budget."""
        recipe = budget.scaled(row.recipe)
        seeds = study.seeds if budget.seeds is None else budget.seeds
        key, place = recipe_key(recipe), dict(row.place)
        return cls(
            row.name, key, place, recipe.table(), seeds, row.recipe.epochs, study.seeds, row.published, rate=row.rate
        )


@dataclass
class Results:
    """All that is known of a study's answer; `write` makes it a JSON file, `read` takes it from there."""

    study: str
    title: str
    question: str
    measure: Literal["error", "accuracy"]
    picture: Lines | None
    circumstances: dict[str, Any] | None
    """Of the last call; None where there was none."""
    rows: list[Asked] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, study: Study, circumstances: dict[str, Any] | None) -> Results:
        """Of a study of which nothing is known yet."""
        return cls(study.name, study.title, study.question, study.measure, study.picture, circumstances)

    @classmethod
    def read(cls, path: Path) -> Results | None:
        """What a file holds; None where there is no such file.

        Raises:
            FileError: it cannot be read, or does not hold the records of trainings.
        """
        content = read_json(path)
        if content is None:
            return None
        try:
            picture = content.pop("picture")
            rows = [
                Asked(**{**row, "published": row["published"] and Published(**row["published"])})
                for row in content.pop("rows")
            ]
            records = [Record(**record) for record in content.pop("records")]
            lines = picture and Lines(**{**picture, "panels": tuple(picture["panels"])})
            return cls(**content, picture=lines, rows=rows, records=records)
        except (KeyError, TypeError) as error:
            raise FileError(f"{path} does not hold the records of a study's trainings: {error}") from error

    def write(self, path: Path) -> None:
        """Write everything to a file.

        Raises:
            FileError: it cannot be written.
        """
        write_json(path, dataclasses.asdict(self))

    def ask(self, rows: Iterable[Asked]) -> None:
        """Note what is asked for.

        A row asked for again keeps its place, no fewer seeds than were trained, and that it is one of several rates.
        """
        for new in rows:
            at = [(row.row, row.key) for row in self.rows]
            if (new.row, new.key) not in at:
                self.rows.append(new)
                continue
            index = at.index((new.row, new.key))
            rate = self.rows[index].rate if new.rate is None else new.rate
            self.rows[index] = dataclasses.replace(new, seeds=max(new.seeds, len(self.of_row(new))), rate=rate)

    def forget_untrained(self) -> None:
        """Leave out rows that were asked for once and of which nothing has been trained."""
        self.rows = [row for row in self.rows if self.of_row(row)]

    def count_parameters(self) -> None:
        """Count the parameters of the rows' networks, where that is not done yet."""
        from diracnets.studies.size import parameter_count

        for index, row in enumerate(self.rows):
            if row.parameters is None:
                count = parameter_count(row.recipe["model"], row.recipe["width"], row.recipe["data"])
                self.rows[index] = dataclasses.replace(row, parameters=count)

    def add(self, records: Iterable[Record]) -> None:
        """Note what was trained; a training that is known already is replaced."""
        known = {(record.row, record.key, record.seed): record for record in (*self.records, *records)}
        self.records = sorted(known.values(), key=lambda record: (record.row, record.key, record.seed))

    def of_row(self, row: Asked) -> list[Record]:
        """The records of a row, by seed."""
        return [record for record in self.records if (record.row, record.key) == (row.row, row.key)]
