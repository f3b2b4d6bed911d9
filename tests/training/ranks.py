"""What tests start: `python ranks.py FOLDER COUNT CASE...` is COUNT processes, of one result file each.

Where they can be forks they are, which spares all but one of them the imports.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest
import torch
import torch._dynamo  # as DDP does, which takes as long as importing torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import striped_images

from diracnets.data.images import ImageData
from diracnets.data.share import Share
from diracnets.errors import DataError, DiracNetsError
from diracnets.training import epoch, loop
from diracnets.training.folder import RunFolder
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Events
from diracnets.training.state import State

RECIPE = Recipe().replaced(
    model="diracnet-10-0.25",
    data="stripes",
    init="kaiming",
    epochs=2,
    batch_size=8,
    lr=0.05,
    nesterov=True,
    schedule="one-cycle",
    warmup=0.25,
    crop="pad",
    pad=1,
    flip="random",
    precision="float32",
    sync_bn=True,
)
RECIPES = {
    "sync": RECIPE.replaced(mixup=0.4, clip_grad=1.0, ema_decay=0.8),
    "muon": RECIPE.replaced(
        optimizer="muon",
        accumulate=2,
        mixup=0.4,
        progressive_size=8,
        image_size=12,
        recalibrate_bn=True,
    ),
    "apart": RECIPE.replaced(sync_bn=False, recalibrate_bn=False),  # which sees images once more
    "frozen": RECIPE.replaced(
        sync_bn=False, freeze=True, lr=0.5, epochs=6, patience=1, accumulate=2, class_weights="balanced"
    ),
}
STEPS = 5  # of 8, 8, 8, 8 and 5 images
STOPPED_AFTER = 7


class Watched:
    """Images that note which ones were asked for, and may fail."""

    def __init__(self, images, failing=None):
        self.images, self.failing, self.seen = images, failing, []

    def __getattr__(self, name):
        return getattr(self.images, name)

    def __len__(self):
        return len(self.images)

    def batches(self, batch_size, **options):
        share = options.pop("share", Share())
        own = self.images.batches(batch_size, **options, share=replace(share, before=0))
        batches = self.images.batches(batch_size, **options, share=share)
        for number, (batch, (*_, indices)) in enumerate(zip(batches, own, strict=True)):
            if number == self.failing:
                raise DataError("a broken image")
            if options.get("epoch") is not None:
                self.seen += [[options["epoch"], index] for index in indices.tolist()]
            yield batch


def stripes(size=8, failing=None):
    """37 images to train on and 11 to validate."""
    train, val = striped_images(37, "train", 0, size=size), striped_images(11, "val", 1, size=size)
    return ImageData(
        "stripes", ("low", "middle", "high"), (1, size, size), (0.3,), (0.2,), Watched(train, failing), val
    )


@contextmanager
def once(factory, name):
    """A folder that one of the processes of pytest fills for all of them, and whether it is this one."""
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    with (place / f"{name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        first = not (place / name).exists()
        (place / name).mkdir(exist_ok=True)
        yield place / name, first


def start(count, folder, *cases):
    """Let `count` processes do one case after the other."""
    command = [sys.executable, __file__, str(folder), str(count), *cases]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=300) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def findings(count, folder):
    """What they found."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]


def assert_same(found, expected, tolerance=2e-5):
    for row, other in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, rel=tolerance)
    for name, values in expected["weights"].items():
        torch.testing.assert_close(
            torch.tensor(found["weights"][name]), torch.tensor(values), rtol=tolerance, atol=tolerance, msg=name
        )


def weights(net):
    return {name: tensor.double().flatten().tolist() for name, tensor in net.state_dict().items()}


def numbers(state):
    """How many numbers this process keeps."""
    optimizer = [value for values in state.optimizer.state.values() for value in values.values()]
    average = [] if state.average is None else state.average.net.parameters()
    kept = {"weights": state.net.parameters(), "optimizer": optimizer, "average": average}
    return {
        name: sum((each.to_local() if hasattr(each, "to_local") else each).numel() for each in tensors)
        for name, tensors in kept.items()
    }


def trained(name, run, **options):
    """What a run of a recipe came to."""
    recipe = RECIPES[name]
    held = {}
    data = stripes(recipe.data.image_size or 8)
    start = None
    if recipe.optimization.freeze:
        from diracnets.artifacts.create import create_model

        torch.manual_seed(1)
        start = create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8)

    def noted(self, *arguments, **options):
        State.__init__(self, *arguments, **options)
        held["state"] = self

    loop.State = type("Noted", (State,), {"__init__": noted})
    result = loop.train(recipe, run=run, data=data, device="cpu", quiet=True, start=start, **options)
    loop.State = State
    rows = [{key: row[key] for key in row if "second" not in key} for row in result.history]
    return {
        "history": rows,
        "weights": weights(result.net),
        "seen": data.train.seen,
        "chain": result.chain is not None,
        "numbers": numbers(held["state"]),
    }


def ended(run, rank, how, **options):
    """How a run ends in which something happens to one process."""
    data, step, count = stripes(failing=3 if (how, rank) == ("broken", 1) else None), epoch.train_step, iter(range(100))

    def disturbed(*arguments):
        if next(count) == STOPPED_AFTER - 1 and rank == 1:
            if how == "crashed":
                raise ValueError("a bug")
            if how == "signalled":
                signal.raise_signal(signal.SIGTERM)
        step(*arguments)

    epoch.train_step = disturbed
    try:
        loop.train(RECIPES["sync"], run=run, data=data, device="cpu", quiet=True, **options)
    except Exception as error:
        code = error.exit_code if isinstance(error, DiracNetsError) else None
        return {
            "error": type(error).__name__,
            "says": str(error),
            "silent": getattr(error, "silent", None),
            "code": code,
            "seen": data.train.seen,
        }
    finally:
        epoch.train_step = step
    return {}


def results(folder, rank, cases, ports):
    for case, port in zip(cases, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)  # or one may meet the store of the last case, which the other leaves
        if case in RECIPES:
            yield case, trained(case, folder / case)
        elif case.startswith("resumed:"):
            yield case, trained("sync", folder / case.removeprefix("resumed:"), resume=True)
        elif case.startswith("sharded:"):
            yield case, trained(case.removeprefix("sharded:"), folder / case, shard=True)
        elif case.startswith("resumed-sharded:"):
            yield case, trained("sync", folder / case.removeprefix("resumed-sharded:"), resume=True, shard=True)
        elif case == "stopped-sharded":
            yield case, ended(folder / case, rank, "signalled", shard=True)
        else:
            yield case, ended(folder / case, rank, case.partition(":")[0])


def work(folder, rank, count, ports, cases):
    """What a process does that `torchrun` would have started."""
    torch.set_num_threads(1)
    RunFolder.draw, Events.write = lambda *_: None, lambda *_: None  # they take longer than training
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
    (folder / f"rank{rank}.json").write_text(json.dumps(dict(results(folder, rank, cases, ports))))


def main(folder, count, cases):
    if any("sharded" in case for case in cases):
        import diracnets.training.sharding  # noqa: F401
    with ExitStack() as held:
        free = [held.enter_context(socket.socket()) for _ in cases]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=work, args=(folder, rank, count, ports, cases)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
