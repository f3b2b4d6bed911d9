"""Studies whose trainings only pretend: what a training would leave in its folder is written at once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets.studies.conduct import Trainings
from diracnets.studies.study import Lines, Published, Row, Study
from diracnets.training.recipe import Recipe

ENVIRONMENT = {
    "device": "Abacus",
    "processor": "Abacus",
    "instructions": [],
    "threads": 1,
    "precision": "float32",
    "versions": {"torch": "2.0", "python": "3.11"},
    "commit": None,
    "started": "2020-01-01T00:00:00+00:00",
}
CIRCUMSTANCES = {**ENVIRONMENT, "command": ["diracnets", "study", "small"]}


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
    """A launcher; `outcomes` gives an accuracy, "diverged", "failed" or "endless" for a row's name and seed."""

    def __init__(self, outcomes):
        self.outcomes, self.steps, self.processes, self.environments = outcomes, [], [], []

    def __call__(self, step, log, environment):
        self.steps.append(list(step.words))
        self.environments.append(environment)
        code = 0
        if step.words[0] == "eval":
            model = Path(step.words[1])
            step.output.write_text(json.dumps({"top1": float(model.read_text())}))
        else:
            folder = Path(step.words[step.words.index("--run") + 1])
            code = self.train(folder, log)
        self.processes.append(FakeProcess(code))
        return self.processes[-1]

    def train(self, folder, log):
        recipe = Recipe.load(folder / "recipe.toml")
        outcome = self.outcomes[recipe.model, recipe.seed]
        (folder / "environment.json").write_text(json.dumps([ENVIRONMENT]))
        row = {"seconds": 30.0, "images_per_second": 100.0}
        if outcome == "failed":
            log.write_text("diracnets: no such thing\n")
            return 1
        if outcome == "endless":
            (folder / "last.pt").touch()
            return None
        if outcome == "diverged":
            (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, **row}) + "\n")
            log.write_text(f"diracnets: the loss became NaN in epoch 2: try less; saved in {folder}\n")
            return 3
        rows = [{"epoch": epoch, **row, "val_accuracy": outcome, "val_loss": 1.0} for epoch in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if recipe.model.startswith("diracnet"):
            (folder / "model.safetensors").write_text(str(outcome))
        return 0


@pytest.fixture
def fake_runs():
    return FakeRuns


@pytest.fixture
def small_study():
    """Two networks on the digits, of which one has a published number."""
    base = Recipe(data="digits", epochs=8)
    rows = [
        Row(
            f"digits-{model}",
            {"network": model, "depth": depth},
            replace(base, model=model),
            Published(10.0, 0.5, "a book") if depth == 10 else None,
        )
        for model, depth in (("diracnet-10-0.25", 10), ("wrn-16-0.25", 16))
    ]
    return Study("small", "A small study", "Which is better?", rows, seeds=3, picture=Lines("depth", "network"))


@pytest.fixture
def options(tmp_path):
    """Options that write below the test's folder."""

    def make(**values):
        return Trainings(device="cpu", out=tmp_path / "results", work=tmp_path / "runs", **values)

    return make


@pytest.fixture
def circumstances():
    return CIRCUMSTANCES
