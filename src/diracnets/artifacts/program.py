"""Files that hold a program instead of weights: TorchScript, and exported programs (.pt2)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn

from diracnets.errors import FileError, first_line


def load_program(path: Path) -> nn.Module | None:
    """The module in a TorchScript file or an exported program, on the CPU; None for a file that is neither.

    Such a file is a program: running it runs what its author wrote, within what torch's operations can do.

    Raises:
        FileError: it is damaged, or was written by a torch that this one cannot read.

    >>> load_program(Path("model.safetensors")) is None
    True
    """
    kind = _kind(path)
    if kind is None:
        return None
    try:
        if kind == "TorchScript":
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
        return torch.export.load(path).module()
    except Exception as error:  # of a damaged file, or of another version of torch
        raise FileError(f"cannot load the {kind} in {path}: {first_line(error)}") from error


def _kind(path: Path) -> str | None:
    """What a file holds, by the names in its archive; state dicts of `torch.save` are archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return None
    parts = [name.partition("/")[2] for name in names]
    if any(part.startswith("code/") for part in parts) and "constants.pkl" in parts:
        return "TorchScript"
    return "exported program" if "archive_format" in parts else None
