"""Studies whose runs only pretend: what a training run would leave in its folder is written at once."""

import json
from pathlib import Path

import pytest

from diracnets.studies.grid import Lines, Row, Study
from diracnets.studies.options import Options
from diracnets.studies.records import Record
from diracnets.training.recipe import Recipe

ENVIRONMENT = {
    "device": "Abacus",
    "processor": "Abacus",
    "instructions": [],
    "threads": 2,
    "precision": "float32",
    "versions": {"torch": "2.0", "python": "3.11"},
    "commit": None,
    "started": "2020-01-01T00:00:00+00:00",
}


class FakeProcess:
    """A process that has ended, or that goes on until it is asked to stop."""

    def __init__(self, code):
        self.code, self.signals = code, []

    def poll(self):
        return self.code

    def send_signal(self, sig):
        self.signals.append(sig)
        self.code = 143

    def kill(self):
        self.code = -9

    def wait(self):
        return self.code


class FakeRuns:
    """A launcher; `outcome` gives an accuracy, "diverged", "failed" or "endless" for a recipe's settings."""

    def __init__(self, outcome):
        self.outcome, self.words, self.processes, self.environments, self.settings = outcome, [], [], [], []

    def __call__(self, words, log, environment):
        self.words.append(list(words))
        self.environments.append(environment)
        self.processes.append(FakeProcess(self.train(Path(words[words.index("--run-dir") + 1]))))
        return self.processes[-1]

    def train(self, folder):
        settings = Recipe.load(folder / "recipe.toml").settings()
        self.settings.append(settings)
        outcome = self.outcome(settings)
        (folder / "environment.json").write_text(json.dumps([ENVIRONMENT]))
        epoch = {"seconds": 30.0, "images_per_second": 100.0}
        if outcome == "failed":
            return 1
        if outcome == "endless":
            (folder / "last.pt").touch()
            return None
        if outcome == "diverged":
            (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, **epoch}) + "\n")
            return 3
        rows = [{"epoch": number, **epoch, "val_accuracy": outcome, "val_loss": 1.0} for number in (1, 2)]
        if settings["select_on"]:
            rows[-1] |= {"test_accuracy": 1 - outcome, "test_loss": 2.0}  # the other way round than on held-out images
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 0


@pytest.fixture
def fake_runs():
    """A launcher of runs with these accuracies by network and seed."""

    def make(accuracies):
        return FakeRuns(accuracies if callable(accuracies) else lambda s: accuracies[s["model"], s["seed"]])

    return make


@pytest.fixture
def small_study():
    """Two networks on the digits."""
    base = Recipe().replaced(data="digits", epochs=8)
    rows = [
        Row(f"digits-{model}", {"network": model, "depth": depth}, base.replaced(model=model))
        for model, depth in (("diracnet-10-0.25", 10), ("wrn-16-0.25", 16))
    ]
    return Study("small", "A small study", "Which is better?", rows, seeds=3, figure=Lines("depth", "network"))


@pytest.fixture
def options(tmp_path):
    """Options that write below the test's folder."""

    def make(**values):
        return Options(**{"device": "cpu", "out": tmp_path / "results", "work": tmp_path / "runs", **values})

    return make


@pytest.fixture
def record(small_study):
    """One run of a row of the small study, by its index."""

    def make(index, accuracy, seed=0, jobs=1, *, environment=None, selection=None, **settings):
        row = small_study.rows[index]
        recipe = row.recipe.replaced(seed=seed, **settings).table()
        result = {"accuracy": accuracy, "loss": 1.0, "epochs": 2, "seconds": 90.0, "images_per_second": 100.0}
        if selection is not None:
            result["selection_accuracy"] = selection
        return Record(row.name, dict(row.axes), recipe, 8, result, {**ENVIRONMENT, "jobs": jobs, **(environment or {})})

    return make


@pytest.fixture
def cells():
    """The cells of one line of a table, by column."""

    def find(page, network, table=0):
        tables = [block for block in page.split("\n\n") if block.startswith("|")]
        header, _, *lines = [text[2:-2].split(" | ") for text in tables[table].splitlines()]
        (found,) = [line for line in lines if line[0] == network]
        return dict(zip(header, found, strict=True))

    return find
