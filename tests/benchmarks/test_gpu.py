"""Every stage of the benchmark for GPUs on a CPU, with tiny networks and a few images."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import airbench
import gpu
import numpy as np
import pytest
from PIL import Image

from diracnets.artifacts.load import load
from diracnets.training.folder import RunFolder
from diracnets.training.recipe import Recipe, recipe_names

SCRIPT = Path(gpu.__file__)


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "draw", lambda *_: None)  # pictures and logs take longer than the training
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    def made(*words):
        folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
        return gpu.arguments(["--toy", "--seeds", "1", *folders, *words])

    return made


def run(stage, options):
    status = gpu.run(stage, options)
    found = json.loads((options.out / "gpu.json").read_text())
    assert found == gpu.results(options)
    return status, found[gpu.key_of(stage, options)]


@pytest.mark.slow
def test_step_times(options):
    status, found = run("1", options())
    assert status == 0
    assert found["finished"]
    assert found["circumstances"]["versions"]["torch"]
    loaders, steps = found["rows"][:2], found["rows"][2:]
    assert [row["loader"] for row in loaders] == ["cifar", "photographs"]
    assert all(row["images_per_second"] > 0 for row in loaders)
    assert [(row["network"], row["batch"], row["compiled"]) for row in steps] == [
        ("10-0.25", 2, False),
        ("10-0.25", 4, False),
        ("10-0.25", 4, True),
    ]
    for row in steps:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_what_cannot_be_compiled_is_recorded_and_the_rest_is_measured(options, monkeypatch):
    monkeypatch.setattr(gpu.torch, "compile", lambda *_, **__: 1 / 0)
    status, found = run("1", options())
    assert status == 0
    assert "ZeroDivisionError" in found["rows"][-1]["failed"]
    assert "ratio" in found["rows"][-2]


@pytest.mark.slow
def test_training_in_time_and_the_network_to_compare_with(options):
    words = ("--stage", "3", "3b", "--set", "label_smoothing=0.2", "select_on=20", "num_train=70")
    status, first = run("3", options(*words))
    assert status == 0
    row = first["rows"][0]
    assert row["epochs"] == len(row["history"]) == 2
    assert row["recipe"]["optimization"]["label_smoothing"] == 0.2
    assert row["error"] == pytest.approx(100 * (1 - row["history"][-1]["val_accuracy"]), abs=0.01)
    assert row["train_images"] == 70
    assert row["error_of"] == "images held out of the training set"
    assert row["error_views"] in [round(100 * (1 - right / 20), 2) for right in range(21)]  # of these images too
    net = load(options().out / row["weights"])
    assert net.card.classes == tuple(map(str, range(100)))
    assert {parameter.element_size() for parameter in net.parameters()} == {2}
    status, second = run("3b", options(*words))
    assert status == 0
    assert second["rows"][0]["network"].startswith("wrn")
    assert second["rows"][0]["epochs"] == 2
    assert second["rows"][0]["weights"] is None


@pytest.mark.slow
def test_a_stage_that_was_cut_off_goes_on_from_its_checkpoint(options, monkeypatch, capsys):
    chosen = options("--stage", "2", "--set", "epochs=3", "eval_every=1")

    def cut_off(row):
        if row.get("epoch") == 1:
            raise KeyboardInterrupt  # as if it had been killed
        if row.get("epoch") == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "show", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run("2", chosen)
        status, found = run("2", chosen)
        assert status == gpu.STOPPED
        assert "stopped after 2 of 3 epochs" in found["stopped"]
        assert "finished" not in found
    status, found = run("2", chosen)
    assert status == 0
    assert capsys.readouterr().out.count("resuming 3 epochs") == 2
    assert "stopped" not in found
    assert [row["epoch"] for row in found["rows"][0]["history"]] == [1, 2, 3]
    assert found["rows"][0]["error_of"] == "test images"


@pytest.mark.slow
def test_chains_and_their_residual_twin_have_one_teacher(options, monkeypatch):
    taught = {}

    def train(recipe, *, run, teacher=None, **rest):
        taught[run.name] = (recipe.model.name, recipe.runtime.seed, teacher)
        return gpu_train(recipe, run=run, teacher=teacher, **rest)

    gpu_train = gpu.train
    monkeypatch.setattr(gpu, "train", train)
    monkeypatch.setattr(gpu, "TWIN_SEEDS", 1)
    status, found = run("6", options())
    assert status == 0
    names = [row["run"] for row in found["rows"]]
    students = ["diracnet-10-0.25-seed-0", "wrn-10-0.25-seed-0", "diracnet-10-0.25-carriers-seed-0"]
    assert names == ["teacher", *(f"{name}{taught}" for name in students for taught in ("", "-taught"))]
    teacher = options().work / "runs" / "6_teacher"
    assert [place for _, _, place in taught.values()] == [None, *[None, teacher] * 3]
    assert {seed for _, seed, _ in taught.values()} == {0}
    recipes = [row["recipe"]["optimization"] for row in found["rows"]]
    assert all(recipe == recipes[0] for recipe in recipes)
    inits = [row["recipe"]["model"]["init"] for row in found["rows"]]
    assert inits == [{"scheme": "deep", "bias": 0.5}] * 5 + [{"scheme": "carriers"}] * 2


@pytest.mark.slow
def test_time_to_an_accuracy(options, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(AIRBENCH)
    status, found = run("4", options("--airbench", str(program)))
    assert status == 0
    theirs = [row for row in found["rows"] if row["network"] == "program.py"]
    facts = {"epochs": 2, "seconds": 5.0, "accuracy": 0.9, "accuracy_views": 0.95}  # of the first run that counts
    assert theirs == [{"network": "program.py", "seed": 0, **facts}]
    assert sorted((line["network"], line["epochs"], line["runs"]) for line in found["summary"]) == [
        ("diracnet-sprint-0.125", 1, 1),
        ("diracnet-sprint-0.125", 2, 1),
        ("program.py", 2, 1),
    ]
    assert load(tmp_path / "out" / found["weights"]).card.classes == tuple(map(str, range(10)))
    assert run("4", options("--airbench", str(program)))[1]["rows"] == found["rows"]


def test_a_program_that_is_missing_or_fails_is_said(options, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no GPU')")
    stage = gpu.Stage("4", options("--airbench", str(broken)))
    images = gpu.images_of(stage, "cifar10")
    assert not gpu.others(stage, images)
    assert stage.facts["output of broken.py"] == "no GPU\n"
    stage.options.airbench = []
    assert gpu.others(stage, images)
    assert "not given" in stage.facts["airbench"]


def test_a_program_that_does_not_end_is_stopped(options, tmp_path):
    endless = tmp_path / "endless.py"
    endless.write_text("import time\nprint('compiling')\ntime.sleep(60)")
    images = gpu.images_of(gpu.Stage("4", options()), "cifar10")
    assert airbench.unchanged(endless, images, runs=1, seconds=1.0) == ([], "compiling\n")


@pytest.mark.slow
def test_photographs(options, tmp_path):
    folder = tmp_path / "data" / "imagenette"
    for part, count in (("train", 6), ("val", 3)):
        for label in ("dog", "cat"):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number).integers(0, 255, (48, 44, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / part / label / f"{number}.png")
    chosen = options("--data-dir", str(tmp_path / "data"))
    status, found = run("5", chosen)
    assert status == 0
    assert [(row["run"], row["train_images"]) for row in found["rows"]] == [("fast-imagenet", 12), ("muon", 12)]


@pytest.mark.slow
def test_the_command_runs_without_what_a_gpu_machine_lacks_and_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    absent = ("tyro", "docstring_parser", "tomli_w", "sklearn", "matplotlib", "tensorboard")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, str(SCRIPT), "--toy", "--work", str(tmp_path / "work"), "--stage", "2"]
    environment = {**os.environ, "PYTHONPATH": paths, "OUT": str(tmp_path / "out")}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "run diracnet-cifar10" in first.stdout
    (tmp_path / "out" / "gpu.json").unlink()  # as where the folder is emptied before each call
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", command[1:])
    gpu.main()
    assert capsys.readouterr().out == "stage 2 was finished before\n"
    assert json.loads((tmp_path / "out" / "gpu.json").read_text())["2"]["finished"]


def test_a_stage_that_does_not_end_in_time_is_stopped(monkeypatch, options, capsys):
    monkeypatch.setattr(gpu, "__file__", "-c")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "import time; time.sleep(60)"])
    monkeypatch.setattr(gpu, "SPARE", 59.5)
    began = time.time()
    assert not gpu.run_apart("2", options("--minutes", "1"))
    assert "asked to stop" in capsys.readouterr().out
    assert time.time() - began < 30


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_written_without_the_library_for_it(name):
    recipe = Recipe.load(name)
    assert Recipe.from_table(tomllib.loads(gpu.toml_text(recipe.table()))) == recipe


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0.5"], "too short"),
        (["--set", "lr"], "lr is no NAME=VALUE"),
        (["--set", "lr=1", "--stage", "1", "2"], "stage 1 has none"),
        (["--data-dir", "nowhere"], "there is no nowhere"),
        (["--stage", "7"], "invalid choice"),
    ],
)
def test_wrong_use(words, said, capsys):
    with pytest.raises(SystemExit):
        gpu.arguments(words)
    assert said in capsys.readouterr().err


AIRBENCH = """
import torch
import torchvision.transforms as T

images = torch.load("cifar10/train.pt")
assert images["images"].dtype == torch.uint8 and images["images"].shape[1:] == (32, 32, 3)
assert T.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(torch.ones(1, 3, 4, 4)).mean() == 2

def line(*cells):
    print("".join(f"|  {cell:>8}  " for cell in cells) + "|")

line("run   ", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")
for number, run in enumerate(["warmup", *range(200)]):
    line(run, 0, 0.5, 0.8, "", 1.0 + number)
    line("", 1, 0.6, 0.9, "", 4.0 + number)
    line("", "eval", 0.6, 0.9, 0.94 + number / 100, 9.0 + number)
"""
