import json
import subprocess
import sys

import pytest
import torch

from diracnets.errors import FileError
from diracnets.runtime.environment import (
    circumstances,
    describe_environment,
    record_environment,
)
from diracnets.runtime.precision import Precision

PRECISION = Precision("bfloat16", "measured")


def test_the_commit_and_changes_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment(torch.device("cpu"), None, PRECISION, None)["commit"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("one")
    for command in (["init"], ["add", "file"], [*identity, "commit", "-m", "first"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    commit = describe_environment(torch.device("cpu"), None, PRECISION, None)["commit"]
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert describe_environment(torch.device("cpu"), None, PRECISION, None)["commit"] == commit + "+changes"


def test_each_start_is_an_entry(tmp_path):
    for _ in range(2):
        record_environment(tmp_path / "environment.json", torch.device("cpu"), None, PRECISION, "best.pt")
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [set(entry) >= {"started", "command", "versions", "device", "threads"} for entry in entries] == [True, True]
    assert [(entry["precision"], entry["precision_reason"], entry["start"]) for entry in entries] == [
        ("bfloat16", "measured", "best.pt")
    ] * 2


@pytest.mark.parametrize("content", ["[{", '{"data_dir": "data"}', '["data"]'])
def test_a_damaged_record_is_a_file_error(content, tmp_path):
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(FileError, match=r"environment\.json"):
        record_environment(tmp_path / "environment.json", torch.device("cpu"), None, PRECISION, None)


@pytest.mark.parametrize("program", ["/somewhere/bin/diracnets", "/somewhere/diracnets/__main__.py"])
def test_the_command_is_told_without_the_path_of_the_program(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train", "--epochs", "1"])
    environment = describe_environment(torch.device("cpu"), None, PRECISION, None)
    assert environment["command"] == ["diracnets", "train", "--epochs", "1"]


def test_the_command_tells_no_folder_of_this_machine(monkeypatch):
    words = ["/bin/diracnets", "study", "cifar", "--data-dir", "/home/me/data", "--out=/tmp/results", "--rows", "a/b"]
    monkeypatch.setattr(sys, "argv", words)
    expected = ["diracnets", "study", "cifar", "--data-dir", "data", "--out=results", "--rows", "a/b"]
    assert circumstances()["command"] == expected
