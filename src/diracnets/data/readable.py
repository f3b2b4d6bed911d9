"""Which of many images can be read: looked at by several processes, and remembered, so that a resume is quick."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from diracnets.data.decode import decoded
from diracnets.data.encoded import EncodedImages
from diracnets.data.image_file import check_whole, opened
from diracnets.data.processes import spread
from diracnets.data.progress import Report
from diracnets.errors import DataError, FileError
from diracnets.places import absolute_place, cache_folder

Depth = Literal["whole", "decoded"]
CHECKED = 20_000  # images: of larger sets, none is looked at before training, which would take minutes
_VERSION = 1  # of what is remembered: to be raised where the checks find more
_KEPT = 50  # lists of files, of as many folders


def unreadable(
    source: EncodedImages, root: str | Path, depth: Depth, *, workers: int = 0, report: Report | None = None
) -> dict[int, str]:
    """The numbers of the images that cannot be read, and why.

    Images that were found good are remembered by their place and its time of change, in the folder for downloads: asked
    again, they are not opened.

    Args:
        source: of the images.
        root: the folder or place that they belong to.
        depth: "whole" reads an image's header, and looks whether its end is there; "decoded" decodes it.
        workers: processes that look.
        report: is told how many are looked at, and of how many.
    """
    known = _Known(root)
    keys = source.keys()
    new: list[int] = np.flatnonzero(~known.has(keys, depth)).tolist()
    check = _why_not_whole if depth == "whole" else _why_not_decoded
    wrong: dict[int, str] = {}
    good: list[int] = []
    answers = spread(check, source, new, workers)
    for done, (number, why) in enumerate(zip(new, answers, strict=True), 1):
        if why is None:
            good.append(number)
        else:
            wrong[number] = why
        if report is not None:
            report(done, len(new))
    known.add(keys[good], depth)
    return wrong


def remember_decoded(keys: npt.NDArray[np.uint64], root: str | Path) -> None:
    """Remember images that were decoded otherwise, as `unreadable` does, by their keys as they were before."""
    _Known(root).add(keys, "decoded")


def _why_not_whole(source: EncodedImages, index: int) -> str | None:
    return _why_not(source, index, _look_at)


def _why_not_decoded(source: EncodedImages, index: int) -> str | None:
    return _why_not(source, index, _decode)


def _why_not(source: EncodedImages, index: int, look: Callable[[str | BinaryIO, str], None]) -> str | None:
    try:
        place = source.encoded(index)  # a server or file of many images that cannot be read is an error at once
    except DataError as error:
        return str(error)
    try:
        look(place, source.name(index))
    except (DataError, FileError) as error:
        return str(error)
    return None


def _look_at(place: str | BinaryIO, name: str) -> None:
    check_whole(place if isinstance(place, str) else place.read(), name)


def _decode(place: str | BinaryIO, name: str) -> None:
    with opened(place, name) as image:
        decoded(image, 3)


class _Known:
    """The images of a place that were found good: their keys, in one file.

    It is a cache: where it cannot be read or written, files are looked at again.
    """

    def __init__(self, root: str | Path) -> None:
        name = hashlib.blake2b(os.fsencode(absolute_place(root)), digest_size=16).hexdigest()
        self._folder = cache_folder() / "checked"
        self._file = self._folder / f"{name}-{_VERSION}.npz"
        self._good: dict[str, npt.NDArray[np.uint64]] = {}
        with (
            suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
            np.load(self._file, allow_pickle=False) as stored,
        ):
            self._good = {depth: stored[depth].astype(np.uint64) for depth in stored.files}

    def has(self, keys: npt.NDArray[np.uint64], depth: Depth) -> npt.NDArray[np.bool_]:
        """Which are known to be good; what was decoded is whole."""
        depths = ("decoded",) if depth == "decoded" else ("decoded", "whole")
        known = np.concatenate([self._of(each) for each in depths])
        return np.array(np.isin(keys, known) & (keys != 0), np.bool_)

    def add(self, keys: npt.NDArray[np.uint64], depth: Depth) -> None:
        """Remember more."""
        if not len(keys):
            return
        self._good[depth] = np.union1d(self._of(depth), keys)
        part = self._file.with_name(f".{self._file.stem}-{secrets.token_hex(4)}.npz")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                np.savez(part, **self._good)  # type: ignore[arg-type]
                part.replace(self._file)
            finally:
                part.unlink(missing_ok=True)
            for old in sorted(self._folder.glob("*.npz"), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
                old.unlink()

    def _of(self, depth: str) -> npt.NDArray[np.uint64]:
        return self._good.get(depth, np.empty(0, np.uint64))
