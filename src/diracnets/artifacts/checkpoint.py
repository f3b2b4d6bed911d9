"""The checkpoint: one file with the network to evaluate and all that resuming needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diracnets.artifacts import load
from diracnets.errors import FileError, TrainingError, first_line
from diracnets.files import written_whole


def save_checkpoint(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file; one that is there already stays if the writing fails.
        checkpoint: plain values and tensors: "model" (the arguments of `build_model`), "state" (the weights to
            evaluate), "facts", and what else the reader needs.

    Raises:
        TrainingError: a weight is not finite; such weights are never saved.
        FileError: the file cannot be written.
    """
    if not all_finite(checkpoint["state"].values()):
        raise TrainingError(f"weights are infinite or NaN, so that {path} was not written")
    try:
        with written_whole(path) as part:
            torch.save({"format": load.CHECKPOINT_FORMAT, **checkpoint}, part)
    except RuntimeError as error:  # what torch's writer makes of a full disk
        raise FileError(f"cannot write {path}, is the disk full? ({first_line(error)})") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that `save_checkpoint` wrote, its tensors on the CPU. Nothing in the file is executed.

    Raises:
        FileError: there is no such file, it is damaged, or is not a checkpoint of diracnets.
    """
    checkpoint = load.read_checkpoint(Path(path))
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != load.CHECKPOINT_FORMAT:
        raise FileError(f"{path} is not a checkpoint of diracnets")
    return checkpoint


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point tensor among these holds an infinity or NaN.

    >>> all_finite([torch.ones(2), torch.tensor(3)]), all_finite([torch.ones(2) / 0])
    (True, False)
    """
    finite = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(finite).all()) if finite else True
