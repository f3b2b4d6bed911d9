"""--devices starts several processes by torchrun, stops them in order, and goes on when one has died."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import HashStore
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from diracnets.cli import main
from diracnets.errors import DiracNetsError, TrainingError, UsageError
from diracnets.runtime.job import STOP, exit_code, job, program
from diracnets.runtime.launch import count_processes, report
from diracnets.runtime.meeting import fresh_store
from diracnets.runtime.ranks import TORCHRUN, _own_device

FLAGS = "--data digits --model diracnet-10-0.25 --device cpu"
STARTED = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")


@pytest.fixture
def begin(request, tmp_path):
    """Starts `diracnets train` on a few pictures, in a session of its own; the process, what it prints, its folder."""
    for part in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / part).mkdir(parents=True)
        for number in range(16):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    flags = f"--data folder --data-dir {tmp_path} --image-size 16 --batch-size 8 --workers 0 --epochs 500"
    flags += " --model diracnet-10-0.25 --precision float32 --device cpu"

    def begun(*words):
        said, run = tmp_path / "said", tmp_path / "run"
        with said.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "diracnets", "train", *flags.split(), *words, "--run-dir", str(run)],
                start_new_session=True,
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

        def end():
            for each in (process.pid, *children(process.pid)):
                with suppress(ProcessLookupError):
                    os.killpg(each, signal.SIGKILL)

        request.addfinalizer(end)
        return process, said, run

    return begun


def children(pid):
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_for_epochs(said, count, text="everything goes to"):
    for _ in range(6000):
        if len(re.findall(r"^ *\d+/\d+ ", said.read_text().partition(text)[2], re.MULTILINE)) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(said.read_text())


@pytest.mark.slow
@STARTED
def test_a_killed_process_is_restarted_and_ctrl_c_stops_all(begin):
    process, said, run = begin("--devices", "2", "--restarts", "1")
    wait_for_epochs(said, 2)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    wait_for_epochs(said, 1, "resumed after")
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT, said.read_text()
    *_, last = said.read_text().splitlines()
    assert "and saved; go on with: diracnets train --resume" in last
    assert last.endswith("--device cpu --workers 0 --devices 2 --restarts 1")
    for words in ("all start again, 1 of 1 restarts", "batches, restart 1 of 1", "2 processes that train one network"):
        assert words in said.read_text()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    epochs = [line.split(",")[0] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [f'{{"epoch": {each + 1}' for each in range(len(epochs))]
    assert said.read_text().count(" 1/500 ") == 1


def test_how_many_processes(monkeypatch):
    for cards in (0, 8):
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: cards)
        monkeypatch.setattr(torch.cuda, "is_available", lambda cards=cards: cards > 0)
        assert count_processes("auto", "auto") == max(1, cards)
    assert count_processes("auto", "cpu") == count_processes("auto", "cuda:1") == 1
    assert count_processes("3", "cuda") == count_processes("3", "cpu") == 3
    for devices, device, words in (
        ("9", "cuda", "has 8 graphics cards"),
        ("2", "cuda:1", "is one device"),
        ("0", "cpu", "auto or a number"),
        ("two", "cpu", "auto or a number"),
    ):
        with pytest.raises(UsageError, match=words):
            count_processes(devices, device)
    for name in TORCHRUN:
        monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match="leave out --devices"):
        count_processes("auto", "cpu")


def test_each_process_takes_the_card_of_its_number(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [_own_device(name, 5, 8) for name in ("auto", "cuda")] == [torch.device("cuda", 5)] * 2
    assert taken == [5, 5]
    assert _own_device("cpu", 5, 16) == torch.device("cpu")
    with pytest.raises(UsageError, match="9 processes were started on a machine with 8 graphics cards"):
        _own_device("auto", 5, 9)


def test_what_the_launcher_refuses_before_it_starts_anything(tmp_path, capsys):
    (tmp_path / "last.pt").touch()
    for words, said in {
        ("--devices", "2", "--run-dir", str(tmp_path)): "already holds a run",
        ("--restarts", "2"): "--restarts needs --devices",
        ("--devices", "2", "--restarts=-1"): "must be 0 or more",
    }.items():
        assert main(["train", *FLAGS.split(), *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["distill", "--teacher", "any", "--devices", "2"]) == 2
    assert "Unrecognized options: --devices" in capsys.readouterr().err


def test_what_is_wrong_with_a_command_is_said_once(monkeypatch, capsys):
    for rank, said in ("0", True), ("1", False):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["train", *FLAGS.split(), "--shard", "--compile"]) == 2
        assert ("do not go together" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((1, 2), 2),
        ((TrainingError.exit_code, 1), 1),
        ((1, 128 + signal.SIGTERM), 1),
        ((1, -signal.SIGTERM), 1),
        ((0, -signal.SIGTERM), 1),
    ],
)
def test_the_command_ends_as_the_process_that_knows_why(codes, code):
    failures = {rank: ProcessFailure(rank, 0, each, "") for rank, each in enumerate(codes)}
    with pytest.raises(SystemExit) as ended:
        report(failures)
    assert ended.value.code == code
    with pytest.raises(DiracNetsError, match="process 2 of the run was killed by SIGKILL"):
        report({**failures, 2: ProcessFailure(2, 0, -signal.SIGKILL, "")})


def test_modules_of_the_current_folder_are_not_run(monkeypatch, tmp_path):
    (tmp_path / "diracnets.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    codes = []
    for path in ([], [str(tmp_path)]):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "path", path)
            found = program()
        codes.append(subprocess.run([*found, "--version"], stdout=subprocess.DEVNULL).returncode)
    assert codes == [0, 9]


def test_a_process_that_was_stopped_is_not_started_again(monkeypatch, tmp_path):
    assert exit_code(15) == 143
    monkeypatch.setenv(STOP, str(tmp_path / "stop"))
    assert exit_code(15) == 0
    assert (tmp_path / "stop").read_text() == "15"
    monkeypatch.setenv(STOP, str(tmp_path / "gone" / "stop"))
    assert exit_code(15) == 143


def test_restarted_processes_meet_whatever_the_dead_have_left():
    store = HashStore()
    store.add("here/numbers", 2)  # two that died before they were told
    for count in (3, 3, 2):
        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(lambda rank, count=count: fresh_store(store, rank, count, "here"), range(count)))
        assert [part.add("starts", 1) for part in parts] == list(range(1, count + 1))
    with pytest.raises(TrainingError, match="have come"):
        fresh_store(store, 0, 2, "here", wait=0.05)


def test_a_job_is_known_by_its_id_or_by_who_started_it(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun says it
    agent = job()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert job() not in (agent, None, "none")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    assert job() == "mine"
