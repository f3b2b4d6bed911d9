"""Files that hold a program instead of weights: TorchScript, and exported programs (.pt2)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn

from diracnets.errors import FileError, UsageError, first_line

_SCRIPT, _EXPORTED = "a TorchScript file", "an exported program"


def load_program(path: Path, *, trusted: bool) -> nn.Module | None:
    """The module in a TorchScript file or an exported program, on the CPU; None for a file that is neither.

    Such a file is a program. TorchScript can write any file as soon as it is loaded; loading an exported program
    unpickles and evaluates parts of it, and so runs any Python code that its author put there.

    Args:
        path: the file.
        trusted: the user knows its author. Without that it is not loaded, whatever its name.

    Raises:
        UsageError: it is a program, and not trusted.
        FileError: it is damaged, or was written by a torch that this one cannot read.

    >>> load_program(Path("model.safetensors"), trusted=False) is None
    True
    """
    kind = _kind(path)
    if kind is None:
        return None
    if not trusted:
        raise UsageError(
            f"{path} is {kind}: loading it can run any code. If you know who made it, add --trust-teacher "
            "(trust_teacher=True); else ask for its weights, as a checkpoint or model file"
        )
    try:
        if kind == _SCRIPT:
            return torch.jit.load(path, map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
        return torch.export.load(path).module()
    except Exception as error:  # of a damaged file, or of another version of torch
        raise FileError(f"cannot load {path}, {kind}: {first_line(error)}") from error


def _kind(path: Path) -> str | None:
    """What a file holds, by the names in its archive; state dicts of `torch.save` are archives too."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return None
    parts = [name.partition("/")[2] for name in names]
    if any(part.startswith("code/") for part in parts) and "constants.pkl" in parts:
        return _SCRIPT
    return _EXPORTED if "archive_format" in parts else None
