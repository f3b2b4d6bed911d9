"""Which device a training or an evaluation runs on, and how."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diracnets.errors import UsageError

_MALLOC = (  # of glibc's malloc.h
    (-4, 0),  # M_MMAP_MAX: no pieces of memory outside the heap, which are given back one by one
    (-1, -1),  # M_TRIM_THRESHOLD: give nothing back from the end of the heap
    (-2, 64 * 2**20),  # M_TOP_PAD: let the heap grow by 64 MiB at a time
)
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name, or with "auto" the fastest kind there is: CUDA, then MPS, then CPU.

    Args:
        name: "auto", "cpu", "mps", "cuda", or "cuda:1" and so on.

    Raises:
        UsageError: no such device on this machine, or no such name.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda:0 or mps") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in count:
        raise UsageError(f"device {name!r} is not supported; choose auto, cpu, cuda or mps")
    if (device.index or 0) >= count[device.type]:
        raise UsageError(
            f"device {name!r} was asked for, but this machine has {count[device.type]} of its kind; try auto"
        )
    return device


def memory_format(channels_last: bool) -> torch.memory_format:
    """How images and filters lie in memory: with the channels of a pixel side by side, or plane by plane."""
    return torch.channels_last if channels_last else torch.contiguous_format


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors, on Linux with glibc; elsewhere do nothing.

    A training step on a CPU frees large tensors and asks for the same ones again. By default glibc gives these back to
    the system at once, which then has to find and clear the same pages at every step: up to a third of a step's time.
    It helps the main thread; glibc serves large tensors of others as before. Where glibc's own variables are set,
    `MALLOC_...` or `GLIBC_TUNABLES`, they decide. It cannot be undone, so only the command line, whose process is its
    own, does it; a program that trains may do the same.

    >>> keep_memory()
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC:
            mallopt(option, value)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given: a clock has to, before it is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, torch's random state on all devices follows from a seed; after it, it is as it was before.

    >>> before = torch.get_rng_state()
    >>> with seeded(0):
    ...     first = torch.rand(1)
    >>> with seeded(0):
    ...     torch.rand(1).equal(first)
    True
    >>> torch.get_rng_state().equal(before)
    True
    """
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


@contextmanager
def repeatable(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch, and within the block allow only deterministic algorithms if asked to.

    Args:
        seed: of torch's random state on all devices; after the block, it is as it was before.
        deterministic: refuse operations that may give another result the next time.
    """
    if not deterministic:
        with seeded(seed):
            yield
        return
    before, warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get(_CUBLAS)
    os.environ.setdefault(_CUBLAS, ":4096:8")  # without it, cuBLAS is refused
    torch.use_deterministic_algorithms(True)
    try:
        with seeded(seed):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warning)
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
