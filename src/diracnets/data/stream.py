"""Images that are decoded one by one, by worker processes, and then augmented in batches on the device."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import copy
from functools import partial
from types import FrameType
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from diracnets.data.ahead import Ahead, Bring
from diracnets.data.augment import Normalizer, Size, augmented, check
from diracnets.data.augmentation import Augmentation
from diracnets.data.decoder import Decoder, Mended, RandomPart, Request, Source
from diracnets.data.images import TOGETHER, Batch, schedule
from diracnets.data.share import WHOLE, Share
from diracnets.errors import DataError, DiracNetsError, UsageError, some_of

STALL_SECONDS = 600.0  # a cold network disk takes some, and nobody wants to wait for one that is gone
_LOOK_SECONDS = 5.0  # from one look to the next at whether workers are alive, as torch has it
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of Linux: the signal to send to a process when its parent dies


def default_workers(processes: int = 1) -> int:
    """One a processor that this process may use, and at most 4.

    Args:
        processes: how many share the processors, each with as many workers.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, allowed // processes))


class StreamedImages:
    """Labelled images that are decoded when they are needed; implements `diracnets.data.images.Images`.

    Worker processes are started for each pass over the images and end with it, also when it is abandoned.

    Args:
        source: gives the images.
        labels: int64 [N].
        size: [C, H, W] of the batches' images.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        device: where the batches will be.
        workers: processes that decode; 0 decodes in this one, None takes `default_workers()`.
        groups: int64 [N], for images that lie in files of many: the file of each. An epoch reads from a few at a time.
        bring: brings a file of `groups` to this machine, given its number; called ahead of its use, in a thread.
        spare: how many images may turn out to be unreadable while training. In place of one, the next image that can be
            read is seen twice in that epoch, so that batches keep their size. With 0, or in evaluation, it is an error.

    Raises:
        UsageError: a negative number of workers.
    """

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        *,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        workers: int | None = None,
        groups: Tensor | None = None,
        bring: Bring | None = None,
        spare: int = 0,
    ) -> None:
        self.labels = labels
        self.skipped: dict[int, str] = {}
        self._spare = spare
        self._groups = groups
        self._bring = bring
        self._source = source
        self._size = size
        self._mean, self._std = mean, std
        self._device = torch.device(device)
        self._home = self._device if self._device.type in ("cpu", "cuda") else torch.device("cpu")
        self._normalize = Normalizer(size, mean, std, self._home)
        self.stall_seconds = STALL_SECONDS
        """After which worker processes that give nothing are ended; 0: never."""
        self._workers = default_workers() if workers is None else workers
        if self._workers < 0:
            raise UsageError(f"the number of workers must be 0 or more, not {workers}")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's file, or its number in its data set."""
        return self._source.name(index)

    def image(self, index: int) -> Image.Image:
        """The image as it was before any change."""
        return self._source.image(index)

    def select(self, numbers: Sequence[int]) -> StreamedImages:
        """See `Images.select`."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        some = StreamedImages(
            self._source.select(numbers),
            self.labels[chosen],
            size=self._size,
            mean=self._mean,
            std=self._std,
            device=self._device,
            workers=self._workers,
            groups=None if self._groups is None else self._groups[chosen],
            bring=self._bring,
            spare=self._spare,
        )
        some.stall_seconds = self.stall_seconds
        return some

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> StreamedImages:
        """See `Images.normalized`; what is skipped is shared."""
        other = copy(self)
        other._mean, other._std = mean, std
        other._normalize = Normalizer(self._size, mean, std, self._home)
        return other

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        first: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """See `Images.batches`."""
        plan = schedule(
            len(self),
            batch_size,
            epoch=epoch,
            augment=augment,
            seed=seed,
            first=first,
            share=share,
            groups=self._groups,
        )
        augment = augment or Augmentation()
        check(augment, self._size)
        part = None
        if epoch is not None and augment.crop == "resized":
            part = RandomPart(seed, epoch, augment.min_scale)
        spare = 0 if epoch is None or not self._spare else max(1, self._spare // share.ranks)
        return self._batches(plan, part, epoch, augment, seed, spare)

    def _batches(
        self,
        plan: tuple[Tensor, ...],
        part: RandomPart | None,
        epoch: int | None,
        augment: Augmentation,
        seed: int,
        spare: int,
    ) -> Iterator[Batch]:
        # Tensors in requests would travel through shared memory, one file descriptor each; lists do not.
        requests = [Request(samples.tolist(), part, len(self) if spare else 0) for samples in plan]
        decoder = Decoder(self._source, self._size, min(self._workers, len(requests)))
        with (
            _answers(decoder, requests, self._home, self.stall_seconds) as answers,
            self._ahead(plan) as ahead,  # a thread, and so after the workers are forked
        ):
            for number, (samples, answer) in enumerate(zip(plan, answers, strict=True)):
                if ahead is not None:
                    ahead.at(number)
                if isinstance(answer, DiracNetsError):
                    raise answer
                if isinstance(answer, Mended):
                    self._skip(answer.bad, spare)
                    samples, answer = torch.tensor(answer.samples), answer.pixels
                here = samples.to(self._home)
                pixels = answer.to(self._home, non_blocking=True)
                if epoch is None or not len(samples):
                    images = self._normalize(pixels)
                else:
                    images = augmented(pixels, here, augment, self._normalize, seed=seed, epoch=epoch)
                yield images.to(self._device), self.labels[samples].to(self._device), here.to(self._device)

    def _ahead(self, plan: tuple[Tensor, ...]) -> AbstractContextManager[Ahead | None]:
        if self._bring is None or self._groups is None:
            return nullcontext()
        return Ahead(self._bring, [self._groups[samples.cpu()] for samples in plan], TOGETHER)

    def _skip(self, bad: dict[int, str], spare: int) -> None:
        """Remember images that cannot be read, and stop where these are too many."""
        self.skipped |= bad
        if len(self.skipped) > spare:
            reasons = some_of(self.skipped.values(), limit=3)
            raise DataError(
                f"{len(self.skipped)} of {len(self):,} images cannot be read, and {spare} may be skipped: {reasons}; "
                "replace them, or allow more by --skip-unreadable"
            )


@contextmanager
def _answers(
    decoder: Decoder, requests: list[Request], device: torch.device, stall_seconds: float
) -> Iterator[Iterator[Tensor | Mended | DiracNetsError]]:
    """The decoder's answers, in order; when the block ends, however it does, no worker is left."""
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
        multiprocessing_context="fork" if decoder.workers and sys.platform == "linux" else None,
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
            "use fewer workers or a smaller batch, or 0 workers"
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
