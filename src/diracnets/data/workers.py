"""Processes that decode: no signal stops them, one that dies or stalls is an error, and none outlives its pass."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diracnets.data.decoder import Decoder, Mended, Request
from diracnets.data.processes import START, unguarded
from diracnets.errors import DataError, DiracNetsError, some_of
from diracnets.runtime.processor import usable_processors

STALL_SECONDS = 600.0  # a cold network disk takes some, and nobody wants to wait for one that is gone
_LOOK_SECONDS = 5.0  # from one look to the next at whether workers are alive, as torch has it
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux: the signal to send to a process when its parent dies


def default_workers(processes: int = 1) -> int:
    """One a processor that this process may use, and at most 4.

    Args:
        processes: how many share the processors, each with as many workers.
    """
    return max(1, min(4, usable_processors() // processes))


@contextmanager
def answered(
    decoder: Decoder, requests: list[Request], device: torch.device, stall_seconds: float
) -> Iterator[Iterator[Tensor | Mended | DiracNetsError]]:
    """The decoder's answers, in order; when the block ends, however it does, no worker is left.

    Args:
        decoder: says how many processes decode.
        requests: what it is asked for.
        device: where the batches will be; for CUDA the answers lie in pinned memory.
        stall_seconds: after which processes that give nothing are ended; 0: never.

    Raises:
        DataError: a process died, or they gave nothing for so long.
    """
    loader = DataLoader(
        decoder,
        batch_size=None,
        sampler=requests,
        num_workers=decoder.workers,
        timeout=_LOOK_SECONDS if decoder.workers else 0,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_belong_to, os.getpid()),
        generator=torch.Generator(),  # or each pass would draw from the global one
        pin_memory=device.type == "cuda",
        multiprocessing_context=START if decoder.workers else None,
    )
    iterator = None
    try:
        with warnings.catch_warnings():
            # Workers run neither torch's threads nor CUDA, so that forking a process that has them is safe.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*worker processes in total")
            with _signals_held():  # until the workers ignore them
                iterator = iter(loader)
                _running.append(iterator)
        with _deaths_found_by_waiting():
            yield _until_stalled(iterator, decoder, stall_seconds)
    except (RuntimeError, EOFError, OSError) as error:  # how a death shows depends on what the process was doing
        if not decoder.workers or (isinstance(error, RuntimeError) and "worker" not in str(error)):
            raise
        raise DataError(
            "a process that decodes images died, most likely for lack of (shared) memory: "
            f"use fewer workers or a smaller batch, or 0 workers{unguarded()}"
        ) from error
    finally:
        if iterator is not None:
            stop = getattr(iterator, "_shutdown_workers", None)  # else they would live until the next collection
            if stop is not None:
                with suppress(RuntimeError):  # of a worker's death, once more
                    stop()
            _kill_workers(iterator)  # what hangs, for it ignored the SIGTERM that torch sent
            _running.remove(iterator)


def _until_stalled(
    iterator: Iterator[Tensor | DiracNetsError], decoder: Decoder, limit: float
) -> Iterator[Tensor | DiracNetsError]:
    """The answers; raises `DataError` where one does not come for `limit` seconds."""
    waiting_since = time.monotonic()
    while True:
        try:
            answer = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            waited = time.monotonic() - waiting_since
            if not limit or waited < limit:
                continue
            at = decoder.at()
            where = f"; they are at {some_of(at)}" if at else ""
            raise DataError(
                f"the input has stalled: the processes that decode images have given nothing for {waited:.0f} seconds"
                f"{where}. Look at the disk or network that holds the images, or allow more with --stall-seconds"
            ) from None
        yield answer
        waiting_since = time.monotonic()


def _as_it_is(answer: Any) -> Any:  # noqa: ANN401
    return answer


_running: list[Any] = []  # iterators whose workers have not been stopped yet


def _kill_workers(iterator: Any) -> None:  # noqa: ANN401
    for worker in getattr(iterator, "_workers", ()):
        if worker.is_alive():
            worker.kill()
            worker.join(_LOOK_SECONDS)  # one that waits for a disk that does not answer cannot be ended


@atexit.register
def _kill_all_workers() -> None:
    """The program would wait for ever for those of a pass that an exception keeps alive until its end."""
    for iterator in _running:
        _kill_workers(iterator)


_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that stop a program are delivered after the block; processes that are started in it never get them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deaths_found_by_waiting() -> Iterator[None]:
    """torch's SIGCHLD handler raises wherever the main thread is, such as in a training step, where none expects it.

    What waits for a dead worker's answer finds it out as well, and raises where it waits.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def quiet(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):
            handler(number, frame)

    signal.signal(signal.SIGCHLD, quiet)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _belong_to(parent: int, _: int) -> None:
    """A signal to the whole process group is the parent's to handle, which may save; it then stops the workers.

    A worker ends with its parent, even if that is killed: it holds the lock of the run folder too. torch's workers look
    for their parent themselves, but one whose parent was killed before its first look would live for ever.
    """
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
