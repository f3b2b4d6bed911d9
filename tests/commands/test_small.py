"""What a user tries on a second walk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import diracnets
from diracnets.artifacts.pretrained import FOLDER
from diracnets.cli import main, parse
from diracnets.errors import FileError, UsageError
from diracnets.training.finish import Trained


def test_a_bare_word_lists_all_networks_that_have_it_in_their_name(capsys):
    assert main(["models", "resnet"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names
    assert all("resnet" in name for name in names)
    assert main(["models", "--trained", "Digits"]) == 0
    assert "diracnet-28-0.5-digits" in capsys.readouterr().out


def test_lists_and_help_need_no_torch():
    code = """
import sys
from diracnets.cli import main
for line in ("models", "models --trained", "models resnet", "help predict", "train --help", "help"):
    assert main(line.split()) == 0, line
    assert "torch" not in sys.modules, line
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("predict runs two.png", "runs is a folder of runs: choose one of runs/a"),
        ("predict two.png model.safetensors", "two.png is an image: the model file comes first"),
        ("info diracnet-28-1-cifar", "did you mean diracnet-28-1-cifar10?"),
        ("eval nothere", "no file nothere, and no trained network of that name; `diracnets models --trained`"),
    ],
)
def test_what_is_no_model_file_is_said(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/best.pt").touch()
    assert main(words.split()) in (1, 2)
    assert said in capsys.readouterr().err.replace(os.sep, "/")


def test_a_network_that_is_not_listed_can_be_built_all_the_same(capsys):
    assert main(["models", "diracnet-40-1"]) == 2
    assert "can be built: `diracnets info diracnet-40-1`" in capsys.readouterr().err


def test_verify_takes_the_name_of_a_trained_network(capsys, tmp_path, monkeypatch):
    assert main(["verify", "diracnet-28-0.5-digits"]) == 0
    assert "diracnet-28-0.5-digits is valid" in capsys.readouterr().out
    monkeypatch.setattr("diracnets.artifacts.pretrained.Weights.file", lambda self: 1 / 0)  # it is looked at
    assert main(["verify", "diracnet-28-0.5-digits"]) == 1


@pytest.mark.parametrize("out", ["x.pt", "x"])
def test_fold_writes_a_model_file_under_no_other_suffix(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fold", "diracnet-28-0.5-digits", "--out", out]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train --learning-rate 0.1", "--lr"),
        ("train --learning_rate=0.1", "--lr"),
        ("train --bs 64", "--batch-size"),
        ("train --wd 0", "--weight-decay"),
        ("train --num-workers 2", "--workers"),
        ("train -j 2", "--workers"),
        ("train --gpus 2", "--devices"),
        ("eval run --gpus 2", "--device"),
        ("distill --gpus 2", "--device"),  # it has no --devices
        ("train --output-dir x", "--run-dir"),
        ("fold run --output-dir x", "--out"),
        ("predict run a.png -k 3", "--top"),
        ("predict run a.png --conf-thres 0.5", "--threshold"),
        ("train --config x.toml", "--recipe"),
        ("models --pretrained", "--trained"),
        ("bench x --batch-size 4", "--batches"),
    ],
)
def test_flags_of_other_programs_are_understood(words, meant, capsys):
    assert main(words.split()) == 2
    flag = next(word for word in words.split() if word.startswith("-")).partition("=")[0]
    assert capsys.readouterr().err == f"diracnets: {words.split()[0]} has no {flag}: did you mean {meant}?\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --num-classes 4", "has no --num-classes: the classes are those of the images"),
        ("train --val-split=0.2", "has no --val-split: --data-dir may hold folders train and val, else a fifth"),
        ("train photos", "write --data folder --data-dir photos"),
        ("distill --cpu", "write --device cpu"),
        ("predict --model x a.png", "has no --model: write `diracnets predict FILE IMAGES`, without a flag"),
        ("verify --file x", "write `diracnets verify FILE`, without a flag"),
        ("predict x a.png --out y.csv", "add --csv or --json, and > FILE"),
    ],
)
def test_what_has_no_flag_here_is_said(words, said, capsys):
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_no_flag_of_ours_is_taken_for_one_of_another_program():
    assert parse(["study", "signal", "--out", "x"]).study.out == Path("x")
    assert parse(["train", "--batch_size", "7", "--devices", "2"]).settings.optimization.batch_size == 7
    with pytest.raises(SystemExit):  # the parser's own words on what nobody calls so
        parse(["train", "--sesame"])


def test_a_network_without_weights_is_told_from_a_missing_file(capsys):
    assert main(["predict", "diracnet-28-1", "a.png"]) == 1
    said = capsys.readouterr().err
    assert "the network of that name is not trained: take diracnet-28-1-cifar10 or diracnet-28-1-cifar10-int8" in said
    with pytest.raises(FileError, match="`diracnets models --trained` lists those that are"):
        diracnets.load("plain-100-1")


def test_info_without_the_layers(capsys):
    assert main(["info", "diracnet-28-1-cifar10", "--short"]) == 0
    short = capsys.readouterr().out.splitlines()
    assert main(["info", "diracnet-28-1-cifar10"]) == 0
    assert "\n".join(short) in capsys.readouterr().out
    assert short[0].split() == ["name", "diracnet-28-1-cifar10", "(network)"]
    assert len(short) < 12
    assert main(["info", "diracnet-28-1", "--short", "--json"]) == 2


@pytest.mark.parametrize("function", ["diracify", "undiracify", "fold", "evaluate", "save", "parameter_groups"])
def test_a_name_where_a_module_is_wanted_is_refused_clearly(function):
    call = getattr(diracnets, function)
    arguments = () if function in ("diracify", "undiracify", "fold") else (None,)
    with pytest.raises(UsageError, match=f"{function} takes a torch.nn.Module, not 'resnet': make or load the network"):
        call("resnet", *arguments)
    with pytest.raises(UsageError, match=r"not the class ReLU: make one, ReLU\(\.\.\.\)"):
        call(nn.ReLU, *arguments)


def test_results_have_a_short_repr():
    data = diracnets.load_data("digits")
    net = diracnets.create_model("diracnet-10-0.25", in_channels=1, image_size=8).eval()
    chain = diracnets.fold(net)
    _, report = diracnets.diracify(nn.Sequential(nn.Conv2d(3, 3, 1)))
    results = [
        data, chain.fold_report, report, diracnets.evaluate(chain, data.val), diracnets.describe("diracnet-10-0.25"),
        Trained(Path("runs/a"), net, chain, 0.5, [{}], None, 1), diracnets.load("diracnet-28-0.5-digits").card,
        diracnets.verify(FOLDER / "diracnet-28-1-cifar10-int8.safetensors"),
    ]  # fmt: skip
    for result in results:
        assert len(repr(result)) < 130
        assert "\n" not in repr(result)
    assert repr(results[-2]) == "<ModelCard of diracnet-28-0.5: 1x8x8, 10 classes, trained on digits>"
    assert repr(data) == "<digits: 1,438 train, 359 val, 10 classes, 1x8x8>"
    assert repr(chain.fold_report).startswith(
        "<folded 6 Dirac parameterizations and 7 batch norms into one flat chain; "
    )


def test_a_check_on_smaller_images_says_why():
    report = diracnets.fold(diracnets.create_model("diracnet-10-0.25").eval()).fold_report
    assert report.probe == ((2, 3, 16, 16),)
    assert "note        checked at 16x16 instead of 32x32 pixels, which is faster: the layers are" in str(report)
    small = diracnets.create_model("diracnet-10-0.25", in_channels=1, image_size=8).eval()
    assert diracnets.fold(small).fold_report.notes == ()


def test_dir_shows_public_names_only():
    assert dir(diracnets) == sorted(diracnets.__all__)
