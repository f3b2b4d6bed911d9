"""What a user tries on a second walk."""

import pytest

import diracnets
from diracnets.cli import main


def test_a_bare_word_lists_all_networks_that_have_it_in_their_name(capsys):
    assert main(["models", "resnet"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names
    assert all("resnet" in name for name in names)
    assert main(["models", "--trained", "digits"]) == 0
    assert "diracnet-28-0.5-digits" in capsys.readouterr().out


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


def test_dir_shows_public_names_only():
    assert dir(diracnets) == sorted(diracnets.__all__)
