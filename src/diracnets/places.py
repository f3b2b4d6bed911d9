"""Paths and URLs as a user gives them: what is there, where else it is known, and whether it can be written to."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal

from diracnets.errors import FileError, UsageError


def kind_of(path: str | Path) -> Literal["file", "folder", "other"] | None:
    """What is at a path; None where nothing is or can be, as of text too long for a path, at which `Path` raises.

    >>> kind_of("/"), kind_of("a" * 5000)
    ('folder', None)
    """
    if os.path.isdir(path):  # noqa: PTH112
        return "folder"
    if os.path.isfile(path):  # noqa: PTH113
        return "file"
    return "other" if os.path.exists(path) else None  # noqa: PTH110


def cache_folder() -> Path:
    """The folder for what can be made or downloaded again: `$DIRACNETS_HOME`, or else `~/.cache/diracnets`."""
    if given := os.environ.get("DIRACNETS_HOME"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diracnets"


def absolute_place(where: str | Path) -> str:
    """The same place from any working directory: of a path, a URL, or several of them as `load_data` takes for shards.

    >>> absolute_place("train=https://example.com/a.tar::val=/b/*.tar")
    'train=https://example.com/a.tar::val=/b/*.tar'
    """
    if kind_of(where):
        return str(Path(where).absolute())
    pieces = []
    for piece in str(where).split("::"):
        named = re.fullmatch(r"((?:train|val|classes)=)?(.*)", piece, re.DOTALL)
        name, place = (named[1] or "", named[2]) if named else ("", piece)
        pieces.append(name + (url_in(place) or str(Path(place).absolute())))
    return "::".join(pieces)


def url_in(path: str | Path) -> str | None:
    """The URL that was given where a path is wanted, if it was one; of `//` a path keeps one slash.

    >>> url_in(Path("https://example.com/cat.png")), url_in("cat.png")
    ('https://example.com/cat.png', None)
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)", str(path))
    if found is None or found[2]:
        return str(path) if found else None
    return f"{found[1]}:{'///' if found[1].lower() == 'file' else '//'}{str(path)[found.end() :]}"


def check_folder(path: str | Path) -> None:
    """Refuse at once a folder that could not be written to after hours. Nothing is made.

    Raises:
        UsageError: it is a file, or in one.
        FileError: it cannot be written, as on a disk that can only be read.

    >>> check_folder("/dev/null/report")
    Traceback (most recent call last):
    ...
    diracnets.errors.UsageError: /dev/null is a file, not a folder to write /dev/null/report to: choose another folder
    """
    path = Path(path)
    there = next(each for each in (path, *path.parents, Path()) if each.exists())
    if not there.is_dir():
        where = "" if there == path else f" {path}"
        raise UsageError(f"{there} is a file, not a folder to write{where} to: choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(f"cannot write {path}: {there} is not writable for you; choose another folder")


def check_model_name(path: Path) -> None:
    """Refuse at once a model file under a name that says another format, or where no file can be written.

    Raises:
        UsageError, FileError: as `check_folder` of its folder, or its name does not end in .safetensors.

    >>> check_model_name(Path("net.onnx"))
    Traceback (most recent call last):
    ...
    diracnets.errors.UsageError: net.onnx would be a model file, whose name ends in .safetensors: choose another name
    """
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"{path} would be a model file, whose name ends in .safetensors: choose another name")
    check_folder(path.parent)


def check_room(out: Path, needed: int, what: str) -> None:
    """Refuse at once what would fill the disk after hours.

    Args:
        out: what is to be written.
        needed: bytes.
        what: they are for.

    Raises:
        FileError: there is no room.
    """
    there = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise FileError(f"{there} has {free:,} bytes left, and the {what} need {needed:,}: choose another place")
