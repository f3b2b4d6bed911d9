"""A network on one backend in a process of its own: how soon it answers, what, how fast, and in how much memory."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import usable
from diracnets.deploy.memory import peak_memory, reset_peak, used_memory
from diracnets.errors import DiracNetsError, first_line

EAGER, COMPILED, PRODUCT = "torch", "torch.compile", "matrix product"  # beside the backends' names
SIDE = 1024  # of the matrices of PRODUCT
_PATIENCE = 900.0  # seconds that an answer may take
_LEAST_SECONDS, _MOST_CALLS = 0.02, 50  # of one measurement
_LONG_SECONDS = 0.2  # a call that takes so long needs no other before it

Arrays = npt.NDArray[Any]
Run = Callable[[Arrays], Arrays]


class BackendError(DiracNetsError):
    """A backend that did not do what it was asked for."""


@dataclass(frozen=True)
class Job:
    """What a process is to run.

    Args:
        backend: the name of a backend, or EAGER, COMPILED or PRODUCT.
        files: for each number of images at a time, the file that takes it.
        card: of the network.
        threads: that compute.
    """

    backend: str
    files: Mapping[int, Path]
    card: ModelCard
    threads: int


class Worker:
    """The process of a job. As a context manager it ends with the block.

    Attributes:
        start_seconds: from reading the file to the first answer, for the least number of images; packages were
            imported before.
        start_bytes: the most memory held meanwhile, beyond what the process held before.

    Raises:
        BackendError: the file cannot be loaded or run.
    """

    start_seconds: float
    start_bytes: int

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # threads do not survive a fork
        self._connection, theirs = context.Pipe()
        self._words = tempfile.NamedTemporaryFile(prefix="diracnets-", suffix=".log")  # noqa: SIM115 (closed by close)
        self._process = context.Process(target=_serve, args=(theirs, job, self._words.name), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.start_seconds, self.start_bytes = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def outputs(self, images: Arrays) -> Arrays:
        """float32 [batch, classes] of float32 [batch, channels, height, width], for one of the job's batch sizes."""
        return np.asarray(self._ask("outputs", images))

    def seconds(self, batch: int) -> tuple[float, float]:
        """Seconds of a call for `batch` images: the median of some, after one that does not count unless it is long;
        and those of processor time, of all threads, on the average."""
        wall, processor = self._ask("seconds", batch)
        return float(wall), float(processor)

    def running_bytes(self, batch: int) -> int:
        """The most memory held while it runs on `batch` images, beyond what was held before the file was loaded."""
        return int(self._ask("running_bytes", batch))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._words.close()

    def _ask(self, *question: object) -> Any:  # noqa: ANN401
        try:
            self._connection.send(question)
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> Any:  # noqa: ANN401
        try:
            if not self._connection.poll(_PATIENCE):
                raise BackendError(f"no answer within {_PATIENCE:.0f} seconds")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, BackendError):
            raise answer
        return answer

    def _ended(self) -> BackendError:
        self._process.join(5)
        said = Path(self._words.name).read_text(encoding="utf-8", errors="replace").strip()
        last = f": {said.splitlines()[-1][:200]}" if said else ""
        return BackendError(f"its process ended with exit code {self._process.exitcode}{last}")


def store(model: nn.Module, path: Path) -> None:
    """Write a module for EAGER and COMPILED, which read it back in their own process.

    Raises:
        BackendError: it cannot be written, as one whose class is defined inside of a function.
    """
    try:
        torch.save(model, path)
    except Exception as error:  # whatever a module's own state raises
        path.unlink(missing_ok=True)
        raise BackendError(f"it cannot be sent to another process: {first_line(error)}") from error


def _serve(connection: Connection, job: Job, words: str) -> None:
    """What the process does: load, then answer questions until nobody asks any more."""
    silent = os.open(words, os.O_WRONLY)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(silent, stream)
    try:
        torch.set_num_threads(job.threads)
        served = _Served(job)
        connection.send(served.start())
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(served, name)(*arguments))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:  # whatever a runtime raises
        connection.send(BackendError(f"{type(error).__name__}: {first_line(error)}"))


class _Served:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._load = _loader(job)
        self._runs: dict[Path, Run] = {}
        self._before = 0

    def start(self) -> tuple[float, int]:
        batch = min(self._job.files)
        images = self._images(batch)
        reset_peak()
        self._before = used_memory()
        begin = time.perf_counter()
        self._run(batch)(images)
        return time.perf_counter() - begin, peak_memory() - self._before

    def outputs(self, images: Arrays) -> Arrays:
        return np.asarray(self._run(len(images))(images), np.float32)

    def seconds(self, batch: int) -> tuple[float, float]:
        run, images = self._run(batch), self._images(batch)
        clock: list[tuple[float, float]] = []  # wall and processor time of each call
        while not clock or (sum(wall for wall, _ in clock[1:]) < _LEAST_SECONDS and len(clock) <= _MOST_CALLS):
            begin, before = time.perf_counter(), time.process_time()
            run(images)
            clock.append((time.perf_counter() - begin, time.process_time() - before))
            if clock[0][0] > _LONG_SECONDS:
                break
        counted = clock[1:] or clock
        return statistics.median(wall for wall, _ in counted), statistics.fmean(used for _, used in counted)

    def running_bytes(self, batch: int) -> int:
        run, images = self._run(batch), self._images(batch)
        run(images)
        reset_peak()
        run(images)
        return peak_memory() - self._before

    def _run(self, batch: int) -> Run:
        file = self._job.files[batch]
        if file not in self._runs:
            self._runs[file] = self._load(file)
        return self._runs[file]

    def _images(self, batch: int) -> Arrays:
        generator = np.random.default_rng(0)
        return generator.standard_normal((batch, *self._job.card.input_size), np.float32)


def _loader(job: Job) -> Callable[[Path], Run]:
    if job.backend == PRODUCT:
        left, right = torch.randn(2, SIDE, SIDE).unbind()
        return lambda path: lambda images: (left @ right)[:1].numpy()
    if job.backend not in (EAGER, COMPILED):
        backend = usable(job.backend)
        return lambda path: backend.load(path, job.card)
    torch.set_grad_enabled(False)

    def load(path: Path) -> Run:
        model = torch.load(path, weights_only=False)  # that the process before wrote a moment ago
        if job.backend == COMPILED:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path.parent / "inductor")
            model = torch.compile(model, dynamic=False, options={"freezing": True})
        dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
        return lambda images: model(torch.from_numpy(images).to(dtype)).float().numpy()

    return load
