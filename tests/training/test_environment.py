import json
import subprocess

import torch

from diracnets.training.environment import describe_environment, record_environment


def test_the_commit_and_changes_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_environment(torch.device("cpu"))["commit"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("one")
    for command in (["init"], ["add", "file"], [*identity, "commit", "-m", "first"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    commit = describe_environment(torch.device("cpu"))["commit"]
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert describe_environment(torch.device("cpu"))["commit"] == commit + "+changes"


def test_each_start_is_an_entry(tmp_path):
    for _ in range(2):
        record_environment(tmp_path / "environment.json", torch.device("cpu"))
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [set(entry) >= {"started", "command", "versions", "device", "threads"} for entry in entries] == [True, True]
