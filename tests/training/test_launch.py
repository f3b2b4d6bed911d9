"""--devices starts several processes by torchrun, stops them in order, and goes on when one has died."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from diracnets.cli import main
from diracnets.errors import UsageError
from diracnets.runtime.launch import count_processes

pytestmark = pytest.mark.usefixtures("bare_runs")
FLAGS = "--data digits --recipe demo --model diracnet-10-0.25 --precision float32 --device cpu --num-train 200"
IN_PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@pytest.fixture
def begin(request):
    """Starts a command line of the package in a session of its own."""

    def begun(*words, module="diracnets"):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

        def end():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        request.addfinalizer(end)
        return process

    return begun


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_epochs(run, count):
    for _ in range(6000):
        lines = run / "metrics.jsonl"
        if lines.exists() and lines.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no epoch was done")


def weights(run):
    return torch.load(run / "last.pt", weights_only=True)["resume"]["net"]


def test_how_many_processes(monkeypatch):
    for cards in (0, 4):
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: cards)
        monkeypatch.setattr(torch.cuda, "is_available", lambda cards=cards: cards > 0)
        assert count_processes("auto", "auto") == max(1, cards)
    assert count_processes("auto", "cpu") == count_processes("auto", "cuda:1") == 1
    assert count_processes("3", "cuda") == count_processes("3", "cpu") == 3
    for devices, device, words in (
        ("5", "cuda", "has 4 graphics cards"),
        ("2", "cuda:1", "is one device"),
        ("0", "cpu", "auto or a number"),
        ("two", "cpu", "auto or a number"),
    ):
        with pytest.raises(UsageError, match=words):
            count_processes(devices, device)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="leave out --devices"):
        count_processes("auto", "cpu")


def test_what_the_launcher_refuses_before_it_starts_anything(tmp_path, capsys):
    (tmp_path / "last.pt").touch()
    for words, said in {
        ("--devices", "2", "--run-dir", str(tmp_path)): "already holds a run",
        ("--restarts", "2"): "--restarts needs --devices",
        ("--devices", "2", "--restarts=-1"): "must be 0 or more",
    }.items():
        assert main(["train", *FLAGS.split(), *words]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
@IN_PROC
@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_signal_stops_all_with_one_message(number, to, begin, tmp_path):
    run = tmp_path / "run"
    process = begin("train", *FLAGS.split(), "--epochs", 500, "--devices", 2, "--run-dir", run)
    wait_for_epochs(run, 1)
    ranks = children(process.pid)
    assert len(ranks) == 2
    to(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said
    assert said.count("\n") == 1, said
    assert "and saved; go on with: diracnets train --resume" in said
    assert said.rstrip().endswith("--device cpu --devices 2")
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
@IN_PROC
def test_a_killed_process_is_restarted_and_nothing_is_lost(begin, tmp_path):
    flags = [*FLAGS.split(), "--epochs", 6, "--devices", 2]
    whole = begin("train", *flags, "--run-dir", tmp_path / "whole")
    _, said = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    process = begin("train", *flags, "--restarts", 1, "--run-dir", tmp_path / "run")
    wait_for_epochs(tmp_path / "run", 2)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "resumed after" in out
    expected = weights(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.slow
@IN_PROC
def test_a_killed_process_ends_the_run_without_restarts(begin, tmp_path):
    process = begin("train", *FLAGS.split(), "--epochs", 500, "--devices", 2, "--run-dir", tmp_path / "run")
    wait_for_epochs(tmp_path / "run", 1)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "was killed by SIGKILL" in said


@pytest.mark.slow
def test_two_machines(begin, tmp_path):
    """Two of torchrun's agents, each with a process, as on two machines."""
    agents = [
        begin(
            *("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", "job"),
            *("--rdzv-endpoint", "localhost:29731", "--local-addr", "localhost"),
            *("-m", "diracnets", "train", *FLAGS.split(), "--epochs", 1, "--run-dir", tmp_path / "run"),
            module="torch.distributed.run",
        )
        for _ in range(2)
    ]
    out = [agent.communicate(timeout=200) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], out
    assert sum(text.count("epoch 1/1") for text, _ in out) == 1
