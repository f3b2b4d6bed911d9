"""Which of many image files can be read: looked at by several processes, and remembered, so that a resume is quick."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from diracnets.data.decode import check_whole, decoded, opened
from diracnets.data.processes import spread
from diracnets.data.progress import Report
from diracnets.errors import DataError, FileError
from diracnets.files import cache_folder

Depth = Literal["whole", "decoded"]
_VERSION = 1  # of what is remembered: to be raised where the checks find more
_KEPT = 50  # lists of files, of as many folders


def unreadable(
    files: Sequence[Path], root: Path, depth: Depth, *, workers: int = 0, report: Report | None = None
) -> dict[Path, str]:
    """The files that cannot be read, and why.

    Files that were found good are remembered by path, size and time of change, in the folder for downloads: asked
    again, they are not opened.

    Args:
        files: images.
        root: the folder that they belong to.
        depth: "whole" reads a file's header, and looks whether its end is there; "decoded" decodes it.
        workers: processes that look.
        report: is told how many are looked at, and of how many.
    """
    known = _Known(root)
    keys = _keys(files)
    new: list[int] = np.flatnonzero(~known.has(keys, depth)).tolist()
    check = _why_not_whole if depth == "whole" else _why_not_decoded
    wrong: dict[Path, str] = {}
    good: list[int] = []
    answers = spread(check, [files[number] for number in new], workers)
    for done, (number, why) in enumerate(zip(new, answers, strict=True), 1):
        if why is None:
            good.append(number)
        else:
            wrong[files[number]] = why
        if report is not None:
            report(done, len(new))
    known.add(keys[good], depth)
    return wrong


def remember_decoded(files: Sequence[Path], root: Path) -> None:
    """Remember files that were decoded otherwise, as `unreadable` does."""
    _Known(root).add(_keys(files), "decoded")


def _why_not_whole(file: Path) -> str | None:
    try:
        check_whole(file)
    except (DataError, FileError) as error:
        return str(error)
    return None


def _why_not_decoded(file: Path) -> str | None:
    try:
        with opened(file) as image:
            decoded(image, 3)
    except (DataError, FileError) as error:
        return str(error)
    return None


class _Known:
    """The files of a folder that were found good: hashes of their path, size and time of change, in one file.

    It is a cache: where it cannot be read or written, files are looked at again.
    """

    def __init__(self, root: Path) -> None:
        name = hashlib.blake2b(os.fsencode(root.absolute()), digest_size=16).hexdigest()
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


def _keys(files: Sequence[Path]) -> npt.NDArray[np.uint64]:
    """A hash for each file as it is now, 0 where it cannot be looked up."""
    return np.fromiter(map(_key, files), np.uint64, len(files))


def _key(file: Path) -> int:
    try:
        facts = file.stat()
    except OSError:
        return 0
    words = b"\0".join([os.fsencode(file.absolute()), b"%d" % facts.st_size, b"%d" % facts.st_mtime_ns])
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
