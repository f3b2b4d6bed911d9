"""What may be given as images to classify, spelled out to single ones: files, folders, patterns, pipes, pictures,
arrays."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image
from torch import Tensor

from diracnets.data.arrays import Array, pictures_in
from diracnets.data.image_file import SUFFIXES
from diracnets.data.tree import Account, search
from diracnets.errors import DataError, FileError, UsageError, shown
from diracnets.files import reading
from diracnets.places import url_in

_KINDS = "a path, a PIL image, the bytes of a file, a tensor or an array"

Picture = str | Path | Image.Image | BinaryIO
Given = Picture | bytes | bytearray | memoryview | Array


def pictures(
    given: Given | Iterable[Given], on_note: Callable[[str], None]
) -> Iterator[tuple[str, Picture | DataError | FileError]]:
    """Each image with its name; or what is given and cannot be found, with the error.

    Args:
        given: one or several of: a file; a folder, which is searched; a pattern such as "photos/*.jpg"; "-" for what
            is piped in; a PIL image; the bytes of a file, or a stream of them; a tensor or an array of an image or a
            batch of them, see `diracnets.data.arrays`.
        on_note: called with what is left out of a folder.

    Raises:
        UsageError: something that is none of these.
    """
    one = str | Path | Image.Image | Tensor | np.ndarray | bytes | bytearray | memoryview
    single = isinstance(given, one) or hasattr(given, "read")
    if not single and not isinstance(given, Iterable) and not hasattr(given, "__getitem__"):
        raise UsageError(f"images is {shown(given)}: give {_KINDS}, or several of them")
    several = cast(Iterable[Given], [given] if single else given)
    for index, picture in enumerate(several):
        if isinstance(picture, Tensor | np.ndarray):
            name = f"image {index}"
            try:
                found = pictures_in(picture, name)
            except DataError as error:
                yield name, error
            else:
                for place, each in enumerate(found):
                    yield name if picture.ndim < 4 else f"image {place}" if single else f"{name}[{place}]", each
        elif isinstance(picture, str | Path):
            try:
                for file in [_piped()] if picture == "-" else _files(picture, on_note):
                    yield str(file) if isinstance(file, Path) else "-", file
            except (DataError, FileError) as error:
                yield str(picture), error
        elif isinstance(picture, bytes | bytearray | memoryview):
            yield f"image {index}", io.BytesIO(picture)
        elif isinstance(picture, Image.Image) or hasattr(picture, "read"):
            yield f"image {index}", picture
        else:
            pair = ": give the images alone, without their labels" if isinstance(picture, tuple | list) else ""
            raise UsageError(f"image {index} is a {type(picture).__name__}, not {_KINDS}{pair}")


def _piped() -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise FileError("- stands for an image that is piped in, but nothing is")
    return sys.stdin.buffer


def _files(given: str | Path, on_note: Callable[[str], None]) -> Iterator[Path]:
    path = Path(given)
    with reading(str(given)[:200]):  # a name that is too long, a folder that may not be entered
        there = path.exists()
    if there and path.is_dir():
        yield from _images_in(path, on_note)
    elif there:
        yield path
    elif url := url_in(given):
        raise FileError(f"{url} is a URL, which is not fetched: download it first")
    elif not glob.has_magic(str(given)):
        raise FileError(f"there is no image {path}")
    else:
        anchor = Path(path.anchor)
        matches = sorted(set(_matches(anchor, path.relative_to(anchor).parts)))
        if not matches:
            raise FileError(f"no file matches {given}")
        for match in matches:
            yield from _images_in(match, on_note) if match.is_dir() else [match]


def _images_in(folder: Path, on_note: Callable[[str], None]) -> Iterator[Path]:
    account = Account(folder)
    found = sorted(search(folder, account).all())
    for note in account.notes():
        on_note(f"{folder}: {note}")
    if not found:
        raise DataError(f"the folder {folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    yield from found


def _matches(base: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What a pattern stands for below `base`; a part of it that is there by its very name is no pattern."""
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if os.path.lexists(base / first):
        yield from _matches(base / first, rest)
    elif first == "**":
        yield from _matches(base, rest)
        for folder in _glob(base, "*/"):
            if not folder.is_symlink():  # which may lead in a circle
                yield from _matches(folder, parts)
    else:
        for match in _glob(base, first):
            yield from _matches(match, rest)


def _glob(base: Path, pattern: str) -> list[Path]:
    return [base / name for name in glob.glob(pattern, root_dir=base)]  # noqa: PTH207 (Path.glob finds hidden ones too)
