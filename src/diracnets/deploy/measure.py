"""Networks on backends side by side, for parity and bench: what they answer, how fast, and in how much memory."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import find
from diracnets.deploy.export import export
from diracnets.deploy.process import COMPILED, EAGER, PRODUCT, SIDE, BackendError, Job, Worker, store
from diracnets.deploy.row import Row, Timing
from diracnets.errors import DiracNetsError, UsageError, first_line
from diracnets.models.integer import IntegerChain

Images = npt.NDArray[np.float32]
Say = Callable[[str], None]
Seconds = tuple[float, float]  # by the clock, and of the processor
BATCHES, ROUNDS = (1, 16), 11
_PAUSE = 0.005  # seconds in which the threads of the one that ran before go to sleep


@dataclass(frozen=True, eq=False)
class Exact:
    """Images, and what a network in float64 (or an int8 chain) makes of them.

    Args:
        images: float32 [N, channels, height, width], normalized.
        labels: int64 [N]; None where there are none.
        logits: float64 [N, classes].
    """

    images: Images
    labels: npt.NDArray[np.int64] | None
    logits: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is to be measured.

    Args:
        network, backend, precision: see `Row`.
        model: in evaluation mode and in the precision; or a function that writes the file for a number of images at a
            time (None for any) into a folder, and returns its path.
        card: of the network.
        exact: what to compare its answers with; None to measure time and memory only.
        reason: why it cannot be measured, where that is known already.
        multiply_adds: MACs of one image, where they are known.
    """

    network: str
    backend: str
    precision: str
    model: nn.Module | Callable[[Path, int | None], Path]
    card: ModelCard
    exact: Exact | None = None
    reason: str = ""
    multiply_adds: int | None = None


def exactly(model: nn.Module, images: Images, labels: npt.NDArray[np.int64] | None = None) -> Exact:
    """What a network computes in float64, an int8 chain in its integers.

    >>> exactly(nn.Flatten(), np.ones((2, 1, 1, 3), np.float32)).logits.shape
    (2, 3)
    """
    integers = isinstance(model, IntegerChain)
    exact = model if integers else copy.deepcopy(model).cpu().double()
    given = torch.from_numpy(images) if integers else torch.from_numpy(images).double()
    with torch.inference_mode():
        parts = [exact(part).double().numpy() for part in torch.split(given, 64)]
    return Exact(images, labels, np.concatenate(parts))


def side_by_side(
    candidates: Sequence[Candidate],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    threads: int | None = None,
    say: Say = lambda line: None,
) -> list[Row]:
    """Measure all candidates, each in a process of its own, their runs interleaved.

    The order turns with every round, so that what else the machine does falls on all of them alike.

    Args:
        candidates: a row comes out for each.
        batches: numbers of images at a time.
        rounds: how often each is timed, at least 2.
        threads: that compute; by default as many as torch takes.
        say: takes a line about what is being done.

    Raises:
        UsageError: numbers that make no sense.
    """
    check(batches, rounds)
    batches = sorted(set(batches))
    threads = threads or torch.get_num_threads()
    rows = [Row(each.network, each.backend, each.precision, each.reason) for each in candidates]
    with tempfile.TemporaryDirectory(prefix="diracnets-", ignore_cleanup_errors=True) as folder, ExitStack() as open_:
        workers: dict[int, Worker] = {}
        for index, each in enumerate(candidates):
            if each.reason:
                continue
            place = Path(folder) / str(index)
            place.mkdir()
            say(f"{each.network}, {each.backend}, {each.precision}")
            try:
                files = written(each, place, batches)
                size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) // len(
                    set(files.values())
                )
                worker = open_.enter_context(Worker(Job(each.backend, files, each.card, threads)))
                running = {batch: worker.running_bytes(batch) for batch in batches}
                rows[index] = replace(
                    rows[index],
                    file_bytes=size,
                    start_seconds=worker.start_seconds,
                    start_bytes=worker.start_bytes,
                    running_bytes=running,
                    **({} if each.exact is None else _compared(worker, each.exact, batches[-1])),
                )
                workers[index] = worker
            except (DiracNetsError, OSError) as error:
                rows[index] = replace(rows[index], reason=first_line(error))
        if workers:
            say(f"timing {len(workers)} side by side, {rounds} rounds")
            nothing = Path(folder)
            card = next(iter(candidates)).card
            product = open_.enter_context(Worker(Job(PRODUCT, dict.fromkeys(batches, nothing), card, threads)))
            _add_latencies(rows, candidates, workers, product, batches, rounds)
    return rows


def check(batches: Sequence[int], rounds: int) -> None:
    """Raise `UsageError` for batch sizes and a number of rounds that cannot be measured with."""
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes are {', '.join(map(str, batches)) or 'missing'}; each must be at least 1")
    if rounds < 2:
        raise UsageError(f"rounds is {rounds}; at least 2 are needed to tell their spread")


def written(candidate: Candidate, folder: Path, batches: Sequence[int]) -> dict[int, Path]:
    """The candidate's file for each number of images at a time, in `folder`: the same one where it takes any number.

    Raises:
        DiracNetsError: it cannot be exported; the message says why.
    """
    model, backend = candidate.model, candidate.backend
    if backend in (EAGER, COMPILED):
        if not isinstance(model, nn.Module):
            raise BackendError("torch does not read this file")
        store(model, folder / "model.pt")
        return dict.fromkeys(batches, folder / "model.pt")
    dynamic = find(backend).dynamic

    def write(batch: int | None) -> Path:
        if not isinstance(model, nn.Module):
            return model(folder, batch)
        path = folder / f"model-{batch or 'any'}{find(backend).suffix}"
        return export(model, backend, path, batch=batch, card=candidate.card).path

    if dynamic:
        return dict.fromkeys(batches, write(None))
    return {batch: write(batch) for batch in batches}


def _compared(worker: Worker, exact: Exact, batch: int) -> dict[str, Any]:
    """Accuracy, agreement and difference of what it answers, `batch` images at a time."""
    found = []
    for first in range(0, len(exact.images), batch):
        part = exact.images[first : first + batch]
        filled = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.float32)])
        found.append(worker.outputs(filled)[: len(part)])
    logits = np.concatenate(found)
    if logits.shape != exact.logits.shape:
        raise BackendError(f"it gives {logits.shape} where the network gives {exact.logits.shape}")
    chosen = logits.argmax(1)
    return {
        "top1": None if exact.labels is None else float((chosen == exact.labels).mean()),
        "agreement": float((chosen == exact.logits.argmax(1)).mean()),
        "difference": float(np.abs(logits - exact.logits).max()),
    }


def _add_latencies(
    rows: list[Row],
    candidates: Sequence[Candidate],
    workers: dict[int, Worker],
    product: Worker,
    batches: Sequence[int],
    rounds: int,
) -> None:
    """Put what the rounds find into `rows`; one whose process fails gets the reason instead."""
    for batch in batches:
        seconds: dict[int, list[Seconds]] = {index: [] for index in workers}
        products: list[Seconds] = []
        for turn in range(rounds):
            products.append(product.seconds(batches[0]))
            order = list(workers)
            for index in order[turn % len(order) :] + order[: turn % len(order)] if order else []:
                time.sleep(_PAUSE)
                try:
                    seconds[index].append(workers[index].seconds(batch))
                except BackendError as error:
                    place = rows[index]
                    rows[index] = Row(place.network, place.backend, place.precision, first_line(error))
                    del workers[index]
        first = next(iter(workers), None)
        for index in workers:
            assert first is not None
            timing = _timing(seconds[index], seconds[first], products, candidates[index].multiply_adds, batch)
            rows[index] = replace(rows[index], latency={**rows[index].latency, batch: timing})


def _timing(
    mine: Sequence[Seconds],
    others: Sequence[Seconds],
    products: Sequence[Seconds],
    multiply_adds: int | None,
    batch: int,
) -> Timing:
    found: list[tuple[float, float, float]] = []
    for clock in (0, 1):
        found.append(_quartiles([each[clock] for each in mine]))
        found.append(_quartiles([each[clock] / other[clock] for each, other in zip(mine, others, strict=True)]))
    of_peak = None
    if multiply_adds is not None:
        work = multiply_adds * batch / SIDE**3  # in matrix products
        of_peak = statistics.median(work * whole[1] / each[1] for each, whole in zip(mine, products, strict=True))
    (low, middle, high), (ratio_low, ratio, ratio_high), (_, used, _), (used_low, used_ratio, used_high) = found
    return Timing(
        seconds=middle,
        seconds_quartiles=(low, high),
        ratio=ratio,
        ratio_quartiles=(ratio_low, ratio_high),
        processor_seconds=used,
        processor_ratio=used_ratio,
        processor_ratio_quartiles=(used_low, used_high),
        of_peak=of_peak,
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
