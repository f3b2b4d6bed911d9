"""Which device a training or an evaluation runs on, and how."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diracnets.errors import UsageError


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


@contextmanager
def repeatable(seed: int, *, deterministic: bool) -> Iterator[None]:
    """Seed torch, and within the block allow only deterministic algorithms if asked to.

    Args:
        seed: of torch's random state on all devices.
        deterministic: refuse operations that may give another result the next time.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is refused
    torch.use_deterministic_algorithms(deterministic or before)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
