import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets.cli import main
from diracnets.errors import DiracNetsError, FileError, UsageError
from diracnets.studies.conduct import conduct
from diracnets.studies.grid import Budget, Row
from diracnets.studies.options import Options
from diracnets.studies.records import read_records

DIRAC, WRN = "diracnet-10-0.25", "wrn-16-0.25"
GOOD = {(DIRAC, 0): 0.8, (DIRAC, 1): 0.9, (WRN, 0): 0.5, (WRN, 1): 0.6}
TWO = Budget(epochs=2, seeds=2)


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Figures take longer than all else here; the first test asks for one."""
    if request.function is not test_a_study_is_trained_and_written:
        monkeypatch.setattr("diracnets.studies.conduct.draw", lambda *_: False)


@pytest.fixture
def said():
    return []


@pytest.fixture
def found(tmp_path):
    """What the results file holds, as (row, seed, accuracy)."""

    def read():
        records = read_records(tmp_path / "results/small.jsonl")
        return [(record.row, record.settings["seed"], record.result["accuracy"]) for record in records]

    return read


def test_a_study_is_trained_and_written(small_study, options, fake_runs, said, found, cells, tmp_path):
    runs = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO), said.append, runs)
    assert [words[0] for words in runs.words] == ["train"] * 4
    assert found() == [  # first seeds of all rows come first
        *(
            (f"digits-{DIRAC}", 0, 0.8),
            (f"digits-{WRN}", 0, 0.5),
            (f"digits-{DIRAC}", 1, 0.9),
            (f"digits-{WRN}", 1, 0.6),
        )
    ]
    record = read_records(tmp_path / "results/small.jsonl")[0]
    assert record.result == {
        "accuracy": 0.8, "loss": 1.0, "epochs": 2, "seconds": 60.0, "images_per_second": 100.0
    }  # fmt: skip
    assert (record.full_epochs, record.environment["jobs"], record.axes) == (8, 1, {"network": DIRAC, "depth": 10})
    assert str(tmp_path) not in (tmp_path / "results/small.jsonl").read_text()
    page = (tmp_path / "results/small.md").read_text()
    assert cells(page, DIRAC)["accuracy, %"] == "85.00 ± 7.07"
    assert "epochs 2 of 8" in page
    assert (tmp_path / "results/small.png").read_bytes()[1:4] == b"PNG"
    assert said[-1].startswith("wrote ")


def test_what_is_trained_is_not_trained_again(small_study, options, fake_runs, said):
    conduct(small_study, options(budget=Budget(epochs=2, seeds=1), rows=("*wrn*",)), said.append, fake_runs(GOOD))
    again = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO), said.append, again)
    assert len(again.words) == 3
    assert [line.split("(")[1] for line in said if "% (" in line] == ["1 of 1)", "2 of 4)", "3 of 4)", "4 of 4)"]
    none = fake_runs({})
    conduct(small_study, options(budget=TWO), said.append, none)
    assert none.words == []
    other = fake_runs(GOOD)
    conduct(small_study, options(budget=Budget(epochs=3, seeds=1)), said.append, other)
    assert len(other.words) == 2


def test_a_learning_rate_is_an_axis_like_any_other(small_study, options, fake_runs, said, cells, tmp_path):
    runs = fake_runs(lambda settings: settings["lr"])
    for rates in ((0.1, 0.2), (0.2, 0.05)):
        conduct(small_study, options(budget=TWO, rates=rates, select_on=0), said.append, runs)
    assert sorted(settings["lr"] for settings in runs.settings) == [0.05] * 4 + [0.1] * 4 + [0.2] * 4
    page = (tmp_path / "results/small.md").read_text()
    assert "learning rate 0.2" in page
    assert "rates tried 0.05, 0.1, 0.2" in page
    assert cells(page, WRN, table=1)["0.05"] == "5.00 ± 0.00"
    plan = []
    asked = options(budget=TWO, rates=(0.1, 0.8), rows=("*wrn*",), select_on=0, plan=True)
    conduct(small_study, asked, plan.append, runs)
    assert plan == [
        f"digits-{WRN} at lr 0.1: 2 of 2 trained, 2 epochs each",
        f"digits-{WRN} at lr 0.8: 0 of 2 trained, 2 epochs each",
    ]


@pytest.mark.parametrize(
    ("given", "rates", "held_out"),
    [
        (None, (), None),
        (None, (0.1,), None),
        (None, (0.1, 0.2), 300),
        (50, (0.1, 0.2), 50),
        (50, (), 50),
        (0, (), None),
    ],
)
def test_several_rates_are_chosen_on_images_held_out(given, rates, held_out, small_study, options, fake_runs, said):
    runs = fake_runs(lambda settings: settings["lr"])
    conduct(small_study, options(budget=TWO, rates=rates, select_on=given), said.append, runs)
    assert {settings["select_on"] for settings in runs.settings} == {held_out}


def test_the_test_images_have_no_part_in_the_choice(small_study, options, fake_runs, said, cells, tmp_path):
    runs = fake_runs(lambda settings: settings["lr"])  # on held-out images; on test images the lower rate is better
    conduct(small_study, options(budget=TWO, rates=(0.1, 0.2)), said.append, runs)
    record = read_records(tmp_path / "results/small.jsonl")[0]
    assert (record.result["selection_accuracy"], record.result["accuracy"], record.result["loss"]) == (0.1, 0.9, 2.0)
    page = (tmp_path / "results/small.md").read_text()
    assert "learning rate 0.2; rates tried 0.1, 0.2; chosen on held-out images" in page
    assert "chosen on the test images" not in page
    assert cells(page, DIRAC)["accuracy, %"] == "80.00 ± 0.00"


def test_a_run_that_lacks_its_test_accuracy_is_no_result(small_study, options, fake_runs, said, found):
    class Untested(type(fake_runs({}))):
        def train(self, folder):
            code = super().train(folder)
            (folder / "metrics.jsonl").write_text('{"val_accuracy": 0.5, "images_per_second": 1, "seconds": 1}\n')
            return code

    runs = Untested(lambda settings: 0.5)
    with pytest.raises(FileError, match="test_accuracy"):
        conduct(small_study, options(budget=TWO, select_on=100), said.append, runs)
    assert found() == []


def test_rows_stand_in_the_studys_order_however_they_were_asked_for(small_study, options, fake_runs, said, tmp_path):
    for rows in (("*wrn*",), ("*",)):
        conduct(small_study, options(budget=Budget(epochs=2, seeds=1), rows=rows), said.append, fake_runs(GOOD))
    lines = (tmp_path / "results/small.md").read_text().splitlines()
    assert [line.split(" | ")[0][2:] for line in lines if line.startswith(("| dirac", "| wrn"))] == [DIRAC, WRN]


def test_an_interrupted_study_goes_on(small_study, options, fake_runs, said, tmp_path):
    runs = fake_runs({**GOOD, (WRN, 0): "endless"})

    def launch(words, log, environment):
        if len(runs.words) == 3:  # one row's first seed is done, its second is at work, and so is the other row
            raise KeyboardInterrupt
        return runs(words, log, environment)

    with pytest.raises(KeyboardInterrupt, match="stopped after 2 of 4 training runs"):
        conduct(small_study, options(budget=TWO, jobs=2), said.append, launch)
    assert [process.signals for process in runs.processes] == [[], [signal.SIGTERM], []]
    assert (tmp_path / "results/small.md").exists()
    after = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO, jobs=2), said.append, after)
    assert [words[1] for words in after.words] == ["--resume", "--recipe"]


def test_a_terminated_study_says_how_to_go_on(small_study, options, said, capsys):
    def launch(words, log, environment):
        raise SystemExit(143)  # what SIGTERM becomes

    with pytest.raises(SystemExit, match="143"):
        conduct(small_study, options(budget=TWO), said.append, launch)
    words = "stopped after 0 of 4 training runs; the rest is saved, and the same command goes on"
    assert f"diracnets: {words}\n" in capsys.readouterr().err


def test_data_that_is_wrong_is_said_once_and_before_any_run(small_study, options, fake_runs, said, tmp_path):
    rows = [Row(row.name, row.axes, row.recipe.replaced(data="cifar100")) for row in small_study.rows]
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half an archive")
    runs = fake_runs(GOOD)
    with pytest.raises(FileError, match=r"cifar-100-python\.tar\.gz"):
        conduct(replace(small_study, rows=rows), options(budget=TWO, data_dir=tmp_path), said.append, runs)
    assert runs.words == []
    assert not (tmp_path / "results").exists()


def test_a_run_that_diverges_is_a_result(small_study, options, fake_runs, said, found, cells, tmp_path):
    conduct(small_study, options(budget=TWO), said.append, fake_runs({**GOOD, (DIRAC, 0): "diverged"}))
    assert found()[0] == (f"digits-{DIRAC}", 0, None)
    row = cells((tmp_path / "results/small.md").read_text(), DIRAC)
    assert (row["accuracy, %"], row["diverged"]) == ("90.00", "1 of 2")
    assert any("diverged: see" in line for line in said)


def test_a_run_that_fails_is_named_and_the_others_go_on(small_study, options, fake_runs, said, found):
    with pytest.raises(DiracNetsError, match=r"1 of 4 training runs failed: see .*digits-wrn.*log.txt"):
        conduct(small_study, options(budget=TWO), said.append, fake_runs({**GOOD, (WRN, 0): "failed"}))
    assert len(found()) == 3


def test_results_of_another_machine_are_added(small_study, options, fake_runs, said, found, tmp_path):
    path, theirs = tmp_path / "results/small.jsonl", tmp_path / "theirs.jsonl"
    conduct(small_study, options(budget=TWO, rows=("*wrn*",)), said.append, fake_runs(GOOD))
    path.rename(theirs)
    conduct(small_study, options(budget=TWO, rows=("*diracnet*",)), said.append, fake_runs(GOOD))
    ours = path.read_text()
    for _ in range(2):
        conduct(small_study, Options(add=(theirs,), out=tmp_path / "results"), said.append, fake_runs({}))
        assert path.read_text() == ours + theirs.read_text()
    assert len(found()) == 4
    with pytest.raises(UsageError, match="there is no file"):
        conduct(small_study, Options(add=(tmp_path / "none.jsonl",), out=tmp_path), said.append, fake_runs({}))


def test_the_plan_writes_nothing(small_study, options, said, tmp_path):
    conduct(small_study, options(plan=True, budget=TWO), said.append, None)
    assert said == [f"digits-{model} at lr 0.1: 0 of 2 trained, 2 epochs each" for model in (DIRAC, WRN)]
    assert list(tmp_path.iterdir()) == []


def test_another_call_at_the_same_time_loses_nothing(small_study, options, fake_runs, said, found):
    runs, other = fake_runs(GOOD), fake_runs(GOOD)

    def launch(words, log, environment):
        if len(runs.words) == 1:
            conduct(small_study, options(budget=replace(TWO, epochs=3, seeds=1)), said.append, other)
        return runs(words, log, environment)

    conduct(small_study, options(budget=TWO), said.append, launch)
    assert len(found()) == 6


WRONG = [
    ("nonsense", "nonsense"),
    ("cifar --rows vgg99*", "no row matches 'vgg99*'"),
    ("cifar --recipe nope", "no recipe 'nope'"),
    ("depth --depths 17", "17"),
    ("depth --budget.epochs 0", "budget.epochs is 0"),
    ("init --jobs 0", "jobs is 0"),
    ("init --select-on -1", "select_on is -1"),
    ("init --rates 0.1 0.1", "give each of them once"),
    ("cifar --add none.jsonl", "there is no file none.jsonl"),
    ("cifar --add none.jsonl --rows x --jobs 2", "give no other options with it but --out"),
    ("cifar --add none.jsonl --plan", "give no other options with it but --out"),
    ("depth --add none.jsonl --depths 28", "give no other options with it but --out"),
    ("cifar --device gpu", "gpu"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_use_is_refused_and_writes_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_runs_share_the_threads(small_study, options, fake_runs, said, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    runs = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO, jobs=2), said.append, runs)
    assert {environment["OMP_NUM_THREADS"] for environment in runs.environments} == {"2"}


def test_the_recipes_take_precision_and_compile(small_study, options, fake_runs, said):
    runs = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO, precision="bfloat16", compile=True), said.append, runs)
    assert {(settings["precision"], settings["compile"]) for settings in runs.settings} == {("bfloat16", True)}


def test_a_damaged_file_is_named_and_left_alone(small_study, options, said, tmp_path):
    path = tmp_path / "results/small.jsonl"
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(FileError, match=r"small\.jsonl"):
        conduct(small_study, options(), said.append, None)
    assert path.read_text() == "{"


STUDY = [*("study", "depth", "--data", "digits", "--depths", "10", "--width", "0.25", "--rows", "*diracnet*-deep")]
HOW = ["--precision", "float32", "--device", "cpu"]


@pytest.mark.slow
def test_a_study_from_the_command_line_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [*STUDY, *HOW, "--budget.epochs", "4", "--budget.seeds", "1"]
    assert main(words) == 0
    assert "digits-diracnet-10-0.25-deep at lr" in capsys.readouterr().out
    (record,) = read_records(Path("results/depth.jsonl"))
    assert record.result["accuracy"] > 0.7  # chance is 0.1
    assert record.environment["threads"] == 1
    assert main(words) == 0
    assert "started" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_signal_to_the_process_group_saves_what_runs(tmp_path):
    words = [sys.executable, "-m", "diracnets", *STUDY, *HOW, "--budget.epochs", "2000", "--budget.seeds", "1"]
    study = subprocess.Popen(
        words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/**/metrics.jsonl")) or not _epochs(tmp_path):
        assert study.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(study.pid, signal.SIGTERM)
    _, errors = study.communicate(timeout=60)
    assert study.returncode == 143
    assert b"stopped after 0 of 1 training runs" in errors
    (checkpoint,) = tmp_path.glob("runs/**/last.pt")
    assert b"saved" in (checkpoint.parent / "log.txt").read_bytes()


def _epochs(folder):
    (metrics,) = folder.glob("runs/**/metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text().splitlines()]
