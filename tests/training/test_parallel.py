"""Training by several processes gives what one gives; they stop, fail and resume together."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import pytest
import torch
from ranks import assert_same, findings, once, start

from diracnets.errors import UsageError
from diracnets.runtime.ranks import Ranks, joined
from diracnets.training.parallel import Trainee
from diracnets.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("bare_runs")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    stopped = ("signalled", "signalled:again", "resumed:signalled:again")
    with once(tmp_path_factory, "two") as (folder, first):
        if first:
            start(2, folder, "sync", "muon", "apart", "frozen", *stopped, "broken", "crashed")
    return folder, findings(2, folder)


@pytest.fixture(scope="module")
def three(two, tmp_path_factory):
    with once(tmp_path_factory, "three") as (folder, first):
        if first:
            shutil.copytree(two[0] / "signalled", folder / "signalled")
            start(3, folder, "resumed:signalled", "sync", "muon", "apart", "frozen")
    return findings(3, folder)


def test_two_processes_train_as_one_does(two, one):
    """With a last batch of 5 images, mixup, clipped gradients, an average and its statistics."""
    _, found = two
    for mine in found:
        assert_same(mine["sync"], one("sync"))
    assert found[0]["sync"]["weights"] == found[1]["sync"]["weights"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(two, one, ranks, tmp_path):
    folder, found = two
    ends = [mine["signalled"] for mine in found]
    assert {end["error"] for end in ends} == {"Interrupted"}
    assert {end["code"] for end in ends} == {128 + signal.SIGTERM}
    assert "after 1 of 2 epochs and 2 of 5 batches and saved" in ends[0]["says"]
    assert sorted(end["silent"] for end in ends) == [False, True]
    shutil.copytree(folder / "signalled", tmp_path / "run")
    assert_same(ranks.trained("sync", tmp_path / "run", resume=True), one("sync"))


def test_an_image_that_one_process_cannot_read_ends_all_with_one_message_and_is_no_loss(two):
    folder, found = two
    ends = [mine["broken"] for mine in found]
    told = {(end["error"], end["says"].partition(";")[0]) for end in ends}
    assert told == {("DataError", "a broken image")}
    assert sorted(end["silent"] for end in ends) == [False, True]
    assert torch.load(folder / "broken" / "last.pt", weights_only=True)["resume"]["batch"] == 3


@pytest.mark.parametrize("case", ["muon", "frozen"])
def test_two_processes_train_as_one_does_in_parts_too(case, two, one):
    for mine in two[1]:
        assert_same(mine[case], one(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sync", "muon", "frozen"])
def test_three_processes_train_as_one_does_though_one_gets_no_image_of_the_last_batch(case, three, one):
    for mine in three:
        assert_same(mine[case], one(case))


@pytest.mark.slow
def test_each_image_is_seen_once_an_epoch(two, three):
    everything = {(epoch, index): 1 for epoch in (1, 2) for index in range(37)}
    for found in (two[1], three):
        assert Counter(tuple(each) for mine in found for each in mine["apart"]["seen"]) == everything


@pytest.mark.slow
def test_without_synchronized_norms_all_processes_still_have_the_same_network(two, three):
    for found in (two[1], three):
        first = {name: values for name, values in found[0]["apart"]["weights"].items() if "tracked" not in name}
        for mine in found:
            assert first.items() <= mine["apart"]["weights"].items()
            assert mine["apart"]["history"] == found[0]["apart"]["history"]
        assert found[0]["apart"]["history"][-1]["loss"] < found[0]["apart"]["history"][0]["loss"]


def test_an_error_of_one_process_ends_the_others_too(two):
    left, crashed = (mine["crashed"] for mine in two[1])
    assert (crashed["error"], crashed["silent"]) == ("ValueError", False)
    assert (left["error"], left["silent"]) == ("TrainingError", True)
    assert "another process of this run has ended" in left["says"]


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed_by_others(two, three, one):
    for mine in two[1]:
        assert_same(mine["resumed:signalled:again"], one("sync"))
    for mine in three:
        assert_same(mine["resumed:signalled"], one("sync"))


def test_parts_add_up_to_the_gradient_of_the_whole(one, ranks, tmp_path, monkeypatch):
    monkeypatch.setitem(ranks.RECIPES, "frozen", ranks.RECIPES["frozen"].replaced(accumulate=1))
    assert_same(one("frozen"), ranks.trained("frozen", tmp_path / "whole"))


def test_a_process_alone_joins_nobody(monkeypatch):
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "nowhere",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    with joined("cpu") as ranks:
        assert ranks.alone
        assert not torch.distributed.is_initialized()


def test_compiled_pieces_between_synchronized_norms_are_refused():
    two = Ranks(torch.device("cpu"), rank=0, count=2)
    with pytest.raises(UsageError, match="compile and sync_bn do not go together"):
        Trainee(torch.nn.Linear(2, 2), two, sync_bn=True, compiled=True)


FLAGS = (
    "--data digits --num-train 100 --recipe demo --model diracnet-10-0.25 --precision float32 --device cpu "
    "--epochs 500 --sync-bn"
)


@pytest.mark.slow
def test_torchrun_is_stopped_by_a_signal(tmp_path):
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m diracnets train"
    process = subprocess.Popen(
        [sys.executable, *torchrun.split(), *FLAGS.split(), "--run-dir", str(tmp_path / "run")],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        lines = tmp_path / "run" / "metrics.jsonl"
        for _ in range(6000):
            if lines.exists() and lines.read_text().count("\n") >= 2:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert said.count("and saved; go on with") == 1, said
    assert out.count("  1/500  ") == 1  # of rank 0 alone
    recipe = Recipe.load(tmp_path / "run" / "recipe.toml")
    assert recipe.optimization.sync_bn
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["resume"]
    assert len(state["history"]) == state["epoch"] - 1 >= 2
