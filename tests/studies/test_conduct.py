import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets import create_model
from diracnets.cli import main
from diracnets.errors import DiracNetsError, FileError, UsageError
from diracnets.studies.conduct import Trainings, conduct
from diracnets.studies.study import Budget

DIRAC, WRN = "diracnet-10-0.25", "wrn-16-0.25"
GOOD = {(DIRAC, 0): 0.8, (DIRAC, 1): 0.9, (WRN, 0): 0.5, (WRN, 1): 0.6}
TWO = Budget(epochs=2, seeds=2)


@pytest.fixture
def said():
    return []


def test_a_study_is_trained_and_written(small_study, options, fake_runs, said, tmp_path):
    runs = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO), said.append, runs)
    trained = [words for words in runs.steps if words[0] == "train"]
    assert len(trained) == 4
    assert len(runs.steps) == 6  # and the chains of the two that have one
    written = json.loads((tmp_path / "results/small.json").read_text())
    assert [(record["row"], record["seed"], record["accuracy"]) for record in written["records"]] == [
        (f"digits-{model}", seed, accuracy) for (model, seed), accuracy in GOOD.items()
    ]
    assert [record["chain_accuracy"] for record in written["records"]] == [0.8, 0.9, None, None]
    assert str(tmp_path) not in (tmp_path / "results/small.json").read_text()
    page = (tmp_path / "results/small.md").read_text()
    assert "85.00 ± 7.07" in page
    assert "2 of 8 epochs, 2 of 3 seeds" in page
    assert (tmp_path / "results/small.png").read_bytes()[1:4] == b"PNG"
    assert said[-1].startswith("wrote ")


def test_parameters_are_written_where_a_study_tells_them(small_study, options, fake_runs, said, tmp_path, monkeypatch):
    monkeypatch.setattr("diracnets.data.load.load_data", lambda data, data_dir: None)  # CIFAR may not be there
    rows = [replace(row, recipe=replace(row.recipe, data="cifar10")) for row in small_study.rows]
    conduct(replace(small_study, rows=rows, sizes=True), options(budget=TWO), said.append, fake_runs(GOOD))
    written = json.loads((tmp_path / "results/small.json").read_text())
    assert [row["parameters"] for row in written["rows"]] == [
        sum(parameter.numel() for parameter in create_model(model).parameters()) for model in (DIRAC, WRN)
    ]
    assert "| parameters |" in (tmp_path / "results/small.md").read_text()


def test_first_seeds_of_all_rows_come_first(small_study, options, fake_runs, said):
    conduct(small_study, options(budget=TWO), said.append, fake_runs(GOOD))
    begun = [line.split(":")[0] for line in said if "begun" in line]
    assert begun == [f"digits-{model}, seed {seed}" for seed in (0, 1) for model in (DIRAC, WRN)]


def test_what_is_trained_is_not_trained_again(small_study, options, fake_runs, said):
    conduct(small_study, options(budget=Budget(epochs=2, seeds=1), rows=("*wrn*",)), said.append, fake_runs(GOOD))
    again = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO), said.append, again)
    assert sum(words[0] == "train" for words in again.steps) == 3
    assert [line.split("(")[1] for line in said if "% (" in line] == ["1 of 1)", "2 of 4)", "3 of 4)", "4 of 4)"]
    none = fake_runs({})
    conduct(small_study, options(budget=TWO), said.append, none)
    assert none.steps == []
    other = fake_runs(GOOD)
    conduct(small_study, options(budget=Budget(epochs=3, seeds=1)), said.append, other)
    assert sum(words[0] == "train" for words in other.steps) == 2


def test_rows_stand_in_the_studys_order_however_they_were_asked_for(small_study, options, fake_runs, said, tmp_path):
    conduct(small_study, options(budget=Budget(epochs=2, seeds=1), rows=("*wrn*",)), said.append, fake_runs(GOOD))
    conduct(small_study, options(budget=Budget(epochs=2, seeds=1)), said.append, fake_runs(GOOD))
    written = json.loads((tmp_path / "results/small.json").read_text())
    assert [row["row"] for row in written["rows"]] == [row.name for row in small_study.rows]


def test_an_interrupted_study_goes_on(small_study, options, fake_runs, said, tmp_path):
    runs = fake_runs({**GOOD, (WRN, 0): "endless"})

    def launch(step, log, environment):
        if len(runs.steps) == 4:  # one row's first seed is done, its second is at work, and so is the other row
            raise KeyboardInterrupt
        return runs(step, log, environment)

    with pytest.raises(KeyboardInterrupt, match="stopped after 1 of 4 trainings"):
        conduct(small_study, options(budget=TWO, jobs=2), said.append, launch)
    assert sum(len(process.signals) for process in runs.processes) >= 1
    assert "**Partial: " in (tmp_path / "results/small.md").read_text()
    assert (tmp_path / "results/small.png").exists()
    after = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO, jobs=2), said.append, after)
    how = [words[1] for words in after.steps if words[0] == "train"]
    assert how == ["--resume", "--recipe", "--recipe"]
    assert "**Partial" not in (tmp_path / "results/small.md").read_text()


def test_a_terminated_study_says_how_to_go_on(small_study, options, said, capsys):
    def launch(step, log, environment):
        raise SystemExit(143)  # what SIGTERM becomes

    with pytest.raises(SystemExit, match="143"):
        conduct(small_study, options(budget=TWO), said.append, launch)
    told = "stopped after 0 of 4 trainings, and the rest is saved; the same command goes on"
    assert f"diracnets: {told}\n" in capsys.readouterr().err


def test_data_that_is_wrong_is_told_once_and_before_any_training(small_study, options, fake_runs, said, tmp_path):
    rows = [replace(row, recipe=replace(row.recipe, data="cifar100")) for row in small_study.rows]
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half an archive")
    runs = fake_runs(GOOD)
    with pytest.raises(FileError, match=r"cifar-100-python\.tar\.gz"):
        conduct(replace(small_study, rows=rows), options(budget=TWO, data_dir=tmp_path), said.append, runs)
    assert runs.steps == []
    assert not (tmp_path / "results").exists()


def test_a_training_that_diverges_is_a_result(small_study, options, fake_runs, said, tmp_path):
    conduct(small_study, options(budget=TWO), said.append, fake_runs({**GOOD, (DIRAC, 0): "diverged"}))
    record = json.loads((tmp_path / "results/small.json").read_text())["records"][0]
    assert (record["outcome"], record["accuracy"], record["epochs"]) == ("diverged", None, 1)
    assert record["message"] == "the loss became NaN in epoch 2"
    page = (tmp_path / "results/small.md").read_text()
    assert "| 90.00 |" in page
    assert "| 1 of 2 |" in page
    assert "**Partial" not in page


def test_a_training_that_fails_is_told_and_the_others_go_on(small_study, options, fake_runs, said, tmp_path):
    with pytest.raises(DiracNetsError, match=r"1 of 4 trainings failed, .*digits-wrn.*no such thing.*log.txt"):
        conduct(small_study, options(budget=TWO), said.append, fake_runs({**GOOD, (WRN, 0): "failed"}))
    assert len(json.loads((tmp_path / "results/small.json").read_text())["records"]) == 3


def test_records_of_another_machine_are_taken_over(small_study, options, fake_runs, said, tmp_path):
    conduct(small_study, options(budget=TWO, rows=("*wrn*",)), said.append, fake_runs(GOOD))
    shutil.move(tmp_path / "results/small.json", tmp_path / "theirs.json")

    def adding(file):
        return Trainings(add=(file,), out=tmp_path / "results")

    def written():
        return json.loads((tmp_path / "results/small.json").read_text())

    theirs = json.loads((tmp_path / "theirs.json").read_text())
    conduct(small_study, adding(tmp_path / "theirs.json"), said.append, fake_runs({}))
    assert written() == theirs
    (tmp_path / "results/small.json").unlink()
    conduct(small_study, options(budget=TWO, rows=("*diracnet*",)), said.append, fake_runs(GOOD))
    ours = written()
    conduct(small_study, adding(tmp_path / "theirs.json"), said.append, fake_runs({}))
    assert written()["records"] == [*ours["records"], *theirs["records"]]
    assert written()["circumstances"] == ours["circumstances"]  # of the last call that trained
    with pytest.raises(UsageError, match="there is no file"):
        conduct(small_study, adding(tmp_path / "none.json"), said.append, fake_runs({}))


def test_the_plan_writes_nothing(small_study, options, said, tmp_path):
    conduct(small_study, options(plan=True, budget=TWO), said.append, None)
    assert said == [f"digits-{model}: 0 of 2 trained, 2 epochs each" for model in (DIRAC, WRN)]
    assert list(tmp_path.iterdir()) == []


def test_another_call_beside_this_one_loses_nothing(small_study, options, fake_runs, said, tmp_path):
    runs = fake_runs(GOOD)

    def launch(step, log, environment):
        if len(runs.steps) == 1:  # what another call would do, which knows no row of this one
            (tmp_path / "results/small.json").unlink()
        return runs(step, log, environment)

    conduct(small_study, options(budget=TWO), said.append, launch)
    assert len(json.loads((tmp_path / "results/small.json").read_text())["rows"]) == 2


WRONG = [
    ("nonsense", "nonsense"),
    ("cifar --rows vgg99*", "no row matches 'vgg99*'"),
    ("cifar --recipe nope", "no recipe 'nope'"),
    ("depth --depths 17", "17"),
    ("depth --budget.epochs 0", "budget.epochs is 0"),
    ("init --jobs 0", "jobs is 0"),
    ("cifar --add none.json", "there is no file none.json"),
    ("cifar --add none.json --rows * --jobs 2", "trains nothing, for which --jobs would mean nothing"),
    ("cifar --add none.json --plan", "for which --plan would mean nothing"),
    ("cifar --add none.json --recipe fast-cifar --budget.epochs 3", "for which --budget.epochs, --recipe would"),
    ("depth --add none.json --depths 28 --data-dir .", "for which --data-dir, --depths would mean nothing"),
    ("init --add none.json --width 1 --device cpu --out there", "for which --device, --width would mean nothing"),
    ("cifar --device gpu", "gpu"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_use_is_told_and_writes_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_jobs_share_the_threads(small_study, options, fake_runs, said, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    runs = fake_runs(GOOD)
    conduct(small_study, options(budget=TWO, jobs=2), said.append, runs)
    assert {environment["OMP_NUM_THREADS"] for environment in runs.environments} == {"2"}


def test_the_recipes_take_precision_and_compile(small_study, options, fake_runs, said, tmp_path):
    conduct(small_study, options(budget=TWO, precision="bfloat16", compile=True), said.append, fake_runs(GOOD))
    recipes = [row["recipe"] for row in json.loads((tmp_path / "results/small.json").read_text())["rows"]]
    assert [(recipe["precision"], recipe["compile"]) for recipe in recipes] == [("bfloat16", True)] * 2


@pytest.mark.parametrize("text", ["[1]", "{", '{"study": "small"}', '{"rows": [{}], "records": [], "picture": null}'])
def test_a_damaged_file_is_told(small_study, options, said, tmp_path, text):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/small.json").write_text(text)
    with pytest.raises(FileError, match=r"small\.json"):
        conduct(small_study, options(), said.append, None)


def test_no_jobs_is_refused(options):
    with pytest.raises(UsageError, match="jobs is 0"):
        options(jobs=0)


def test_a_study_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["study", "depth", "--data", "digits", "--depths", "10", "--width", "0.25", "--rows", "*diracnet*-deep"]
    budget = ["--budget.epochs", "1", "--budget.seeds", "1", "--precision", "float32", "--device", "cpu"]
    assert main([*words, *budget]) == 0
    printed = capsys.readouterr().out
    assert "digits-diracnet-10-0.25-deep, seed 0: begun" in printed
    record = json.loads(Path("results/depth.json").read_text())["records"][0]
    assert record["accuracy"] == record["chain_accuracy"] > 0.05
    assert record["machine"]["threads"] == 1
    assert main([*words, *budget]) == 0
    assert "begun" not in capsys.readouterr().out
