"""Stopping runs whose images are decoded by worker processes, from outside, as shells, terminals and clusters do."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diracnets.training.checkpoints import Checkpoints, Position

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
FLAGS = (
    "--data folder --model diracnet-10-0.25 --image-size 16 --batch-size 8 --precision float32 --device cpu "
    "--workers 2 --epochs 500"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 pictures to train on and 40 to validate, of two classes."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("a", "b"):
            (place / part / kind).mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / part / kind / f"{number}.png")
    return place


@pytest.fixture
def begin():
    """Start `diracnets train` in a process group of its own, which the end of the test kills."""
    started = []

    def make(words, prefix=()):
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "diracnets", "train", *words],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield make
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_epochs(run, count):
    lines = run / "metrics.jsonl"
    for _ in range(9000):
        if lines.exists() and lines.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no epoch ended in three minutes")


def children(pid):
    """Processes whose parent this is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == pid and rest[0] != "Z":
            found.append(int(name))
    return found


def epochs_done(run):
    return (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize(
    ("number", "pause"),
    [
        (signal.SIGTERM, 0.02),
        pytest.param(signal.SIGINT, 0.0, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 0.05, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_whole_group_saves_and_leaves_no_process(number, pause, begin, pictures, tmp_path):
    """What a cluster's cancel, systemd, `timeout`, Ctrl-C and a closed terminal send: workers get it too."""
    process = begin([*FLAGS.split(), "--data-dir", str(pictures), "--run-dir", str(tmp_path / "run")])
    wait_for_epochs(tmp_path / "run", 1)
    time.sleep(pause)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=180)[1]
    assert process.returncode == 128 + number, said
    assert re.search(r"stopped after \d+ of 500 epochs and \d+ of 5 batches and saved; go on with", said)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


@pytest.mark.slow
def test_a_worker_that_dies_costs_no_step_and_is_not_taken_for_a_signal(begin, pictures, tmp_path):
    run = tmp_path / "run"
    process = begin([*FLAGS.split(), "--data-dir", str(pictures), "--run-dir", str(run)])
    wait_for_epochs(run, 1)
    killed = None
    for _ in range(3000):
        if process.poll() is not None:
            break
        time.sleep(0.02)  # torch looks for dead workers once in five seconds
        for worker in children(process.pid):
            with suppress(ProcessLookupError):  # of the epoch before
                os.kill(worker, signal.SIGKILL)
                killed = worker
    assert killed is not None
    said = process.communicate(timeout=180)[1]
    assert process.returncode == 1
    assert "a process that decodes images died, most likely for lack of (shared) memory" in said
    saved, _ = Checkpoints(run).read()
    assert Position.of(saved).epochs == epochs_done(run)


@pytest.mark.slow
def test_sighup_stays_ignored_under_nohup(begin, pictures, tmp_path):
    run = tmp_path / "run"
    process = begin([*FLAGS.split(), "--data-dir", str(pictures), "--run-dir", str(run)], prefix=["nohup"])
    wait_for_epochs(run, 1)
    os.killpg(process.pid, signal.SIGHUP)
    wait_for_epochs(run, epochs_done(run) + 2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    assert process.returncode == 143


HANGING = """
import os, sys, time, torch
from torch.utils.data import _utils
from diracnets.data.stream import StreamedImages
_utils.MP_STATUS_CHECK_INTERVAL = 0.2  # seconds that torch waits for a worker to end
class Hanging:
    def fitted(self, index, size):
        time.sleep(0 if index == 0 else 10**6)
        return torch.zeros(*size[1:], size[0], dtype=torch.uint8).numpy()
images = StreamedImages(
    Hanging(), torch.zeros(9).long(), size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, workers=2
)
batches = images.batches(1)
next(batches)
if sys.argv[1] == "close":
    batches.close()
    print("closed", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["close", "exit"])
def test_workers_that_hang_are_ended_with_the_pass_or_the_program(way):
    done = subprocess.run(
        [sys.executable, "-c", HANGING, way], capture_output=True, text=True, timeout=180, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert ("closed" in done.stdout) == (way == "close")
