import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from diracnets.data import processes
from diracnets.data.augmentation import Augmentation
from diracnets.data.decode import to_input
from diracnets.data.load import load_data
from diracnets.data.stream import StreamedImages
from diracnets.errors import DataError, UsageError

RESIZED = Augmentation(crop="resized", min_scale=0.2, flip=True, cutout=5)
PADDED = Augmentation(crop="pad", pad=3, flip=True)


def train(folder, workers, image_size=32):
    return load_data("folder", data_dir=folder, image_size=image_size, workers=workers).train


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def alike(one, other):
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("augment", [RESIZED, PADDED, Augmentation()])
def test_workers_batches_and_where_it_starts_do_not_matter(split_folder, augment):
    alone = joined(train(split_folder, 0).batches(4, epoch=1, augment=augment, seed=3))
    with_workers = train(split_folder, 2)
    assert alike(alone, joined(with_workers.batches(4, epoch=1, augment=augment, seed=3)))
    assert alike(alone, joined(with_workers.batches(5, epoch=1, augment=augment, seed=3)))
    rest = joined(with_workers.batches(4, epoch=1, augment=augment, seed=3, first=2))
    assert alike([part[8:] for part in alone], rest)
    assert not alone[0].equal(joined(train(split_folder, 0).batches(4, epoch=2, augment=augment, seed=3))[0])
    assert alone[2].sort().values.equal(torch.arange(12))
    assert list(with_workers.batches(4, epoch=1, first=3)) == []


@pytest.mark.parametrize("image_size", [32, 96])
def test_evaluation_sees_what_prediction_sees(split_folder, image_size):
    data = load_data("folder", data_dir=split_folder, image_size=image_size, workers=2)
    pixels, labels, indices = joined(data.val.batches(3))
    assert labels.tolist() == [0, 0, 1, 1]
    assert indices.tolist() == [0, 1, 2, 3]
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for index in range(4):
        assert pixels[index].equal(to_input(data.val.name(index), data.input_size, data.mean, data.std))
    assert data.val.name(3).endswith("dog/1.png")
    assert data.val.image(3).size == (40, 30)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_while_decoding_is_named(split_folder, workers):
    data = train(split_folder, workers)
    broken = split_folder / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"dog/1\.png cannot be decoded") as caught:
        list(data.batches(4, epoch=0, augment=RESIZED))
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_no_process_is_left_when_a_pass_is_abandoned(split_folder):
    data = train(split_folder, 2)
    batches = data.batches(2, epoch=0, augment=RESIZED)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


class Dying:
    def fitted(self, index, size):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("start", "usual", "advice"),
    [("fork", "spawn", "0 workers$"), (None, "fork", "0 workers$"), (None, "spawn", "if __name__")],
)
def test_a_worker_that_dies_is_reported(start, usual, advice, monkeypatch):
    monkeypatch.setattr(processes, "START", start)
    monkeypatch.setattr(processes, "get_start_method", lambda: usual)
    data = StreamedImages(Dying(), torch.zeros(9).long(), size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, workers=1)
    with pytest.raises(DataError, match=r"a process that decodes images died.*use fewer workers") as caught:
        list(data.batches(1))
    assert re.search(advice, str(caught.value))
    assert multiprocessing.active_children() == []


class Slow(Dying):
    def fitted(self, index, size):
        if index > 2:
            time.sleep(60)
        return np.zeros((8, 8, 3), np.uint8)


def test_a_worker_that_dies_while_the_network_computes_is_reported_where_its_answer_is_missed(split_folder):
    """torch's SIGCHLD handler would raise in the middle of a training step."""
    data = StreamedImages(Slow(), torch.zeros(9).long(), size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, workers=1)
    list(train(split_folder, 1).batches(4))  # torch has set its handler
    before = signal.getsignal(signal.SIGCHLD)
    batches = data.batches(1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    sum(range(10**6))  # the step, in which nothing is raised
    with pytest.raises(DataError, match="a process that decodes images died"):
        list(batches)
    assert signal.getsignal(signal.SIGCHLD) is before


def test_the_global_random_state_is_left_alone(split_folder):
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(train(split_folder, workers).batches(4, epoch=0, augment=RESIZED))
    assert torch.get_rng_state().equal(before)


def test_wrong_use_is_refused_before_the_first_batch(split_folder):
    with pytest.raises(UsageError, match="pad 40 is too large"):
        train(split_folder, 0).batches(4, epoch=0, augment=Augmentation(crop="pad", pad=40))
    with pytest.raises(UsageError, match="workers must be 0 or more, not -1"):
        train(split_folder, -1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_selection_has_the_same_images(workers, split_folder):
    data = train(split_folder, workers)
    chosen = data.select([7, 2])
    pixels, labels, _ = joined(chosen.batches(4))
    everything = joined(data.batches(12))
    assert pixels.equal(everything[0][[7, 2]])
    assert labels.equal(everything[1][[7, 2]])
    assert chosen.name(0) == data.name(7)


class Hanging:
    """Images of which one never comes."""

    def name(self, index):
        return f"slow disk/{index}.png"

    def fitted(self, index, size):
        time.sleep(600 if index == 5 else 0)
        return np.zeros((8, 8, 3), dtype=np.uint8)


@pytest.mark.slow
def test_an_input_that_stalls_is_an_error_that_names_the_file(monkeypatch):
    monkeypatch.setattr("diracnets.data.workers._LOOK_SECONDS", 0.2)
    images = StreamedImages(Hanging(), torch.zeros(12).long(), size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, workers=2)
    images.stall_seconds = 0.5
    batches = images.batches(1)
    for _ in range(5):
        next(batches)
    with pytest.raises(DataError, match=r"given nothing for \d seconds; they are at slow disk/5\.png\. Look"):
        next(batches)
    assert not multiprocessing.active_children()


ORPHANS = """
import os, signal, sys, time, torch
from torch.utils.data import _utils
from diracnets.data.stream import StreamedImages
late = _utils.signal_handling._set_worker_signal_handlers
def killing():  # in a worker, before it has looked for its parent
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.5)
    late()
_utils.worker.signal_handling._set_worker_signal_handlers = killing
class Images:
    def fitted(self, index, size):
        return torch.zeros(*size[1:], size[0], dtype=torch.uint8).numpy()
images = StreamedImages(Images(), torch.zeros(9).long(), size=(3, 8, 8), mean=[0.5] * 3, std=[0.5] * 3, workers=2)
next(images.batches(1))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills as Linux does")
def test_workers_end_with_a_parent_that_is_killed_before_they_begin():
    done = subprocess.Popen([sys.executable, "-c", ORPHANS], start_new_session=True)
    assert done.wait(timeout=120) == -signal.SIGKILL
    for _ in range(100):
        time.sleep(0.1)
        try:
            os.killpg(done.pid, 0)
        except ProcessLookupError:
            return
    os.killpg(done.pid, signal.SIGKILL)
    raise AssertionError("a worker lives on, and holds whatever its parent held")
