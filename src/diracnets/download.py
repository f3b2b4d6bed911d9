"""Fetches a published file: with progress, resumable, and checked before it is used."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diracnets.errors import FileError, UsageError, printable
from diracnets.files import reading
from diracnets.places import cache_folder
from diracnets.transfer import Report, Transfer

_PATIENT_ATTEMPTS = 10  # connections
_FEWEST_DIGITS = 8  # of a hash


@dataclass(frozen=True)
class Checksum:
    """What a published file has to hash to.

    Args:
        algorithm: of the hash.
        digits: all its hexadecimal digits, or the first ones, at least 8, where no more were published. So few tell
            damage from the published file, but not another file that somebody made to have them.

    Raises:
        UsageError: fewer digits, more than the hash has, or something else.

    >>> Checksum("md5", "d41d8cd98f00b204e9800998ecf8427e")
    Checksum(algorithm='md5', digits='d41d8cd98f00b204e9800998ecf8427e')
    """

    algorithm: Literal["md5", "sha256"]
    digits: str

    def __post_init__(self) -> None:
        most = 2 * hashlib.new(self.algorithm, usedforsecurity=False).digest_size
        if not isinstance(self.digits, str) or not re.fullmatch(rf"[0-9a-f]{{{_FEWEST_DIGITS},{most}}}", self.digits):
            raise UsageError(
                f"{str(self.digits)[:80]!r} is no {self.algorithm}: give {_FEWEST_DIGITS} to {most} digits of 0-9, a-f"
            )

    def check(self, path: Path) -> str | None:
        """None where the file is the published one, else how it differs, for an error: "md5 12ab..., not 34cd...".

        Raises:
            FileError: it cannot be read.
        """
        found = hash_of(path, self.algorithm)
        return None if found.startswith(self.digits) else f"{self.algorithm} {found}, not {self.digits}"


def hash_of(path: Path, algorithm: Literal["md5", "sha256"]) -> str:
    """A file's hash, in hexadecimal digits.

    Raises:
        FileError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def download(url: str, target: Path, checksum: Checksum, largest: int) -> None:
    """Bring `url` to `target`, which appears when all of it is there and is what was published.

    What has come is kept as `<target>.part` when the connection breaks: a later call asks for the rest alone.

    Args:
        url: http or https.
        target: the file; its folder is made, and taken away again where nothing comes.
        checksum: of the whole file.
        largest: bytes that it may have.

    Raises:
        FileError: the server does not give it, it is damaged or too large, or it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _progress(url, target) as report:
            transfer = Transfer(url, part, report, largest)
            resumed = transfer.run()
            wrong = checksum.check(part)
            if wrong and resumed:  # what was there before may have been of another file
                part.unlink()
                transfer.run()
                wrong = checksum.check(part)
        if wrong:
            part.unlink()
            raise FileError(f"what came from {url} is damaged ({wrong}): try again, or from elsewhere")
        part.replace(target)
    except OSError as error:
        other = "; DIRACNETS_HOME chooses another folder" if cache_folder() in target.parents else ""
        raise FileError(f"cannot write {target}: {error.strerror or error}{other}") from error
    finally:
        with suppress(OSError):  # it holds something
            for made in new:
                made.rmdir()


def fetch(
    url: str,
    target: Path,
    *,
    largest: int,
    size: int | None = None,
    checksum: Checksum | None = None,
    stopped: Callable[[], bool] | None = None,
) -> str | None:
    """Bring `url` to `target` without a word, which appears when all of it is there; only one process may at a time.

    A broken connection is taken up where it broke, if the server says that the file is still the same.

    Args:
        url: http or https.
        target: the file, in a folder that is there.
        largest: bytes that it may have, where `size` does not say how many it has.
        size: that it must have, in bytes.
        checksum: that it must have.
        stopped: asked now and then whether to give up.

    Returns:
        What the server calls this version of the file (its ETag, or else its date), if it calls it anything.

    Raises:
        FileError: the server does not give it, it is another file, it cannot be written, or `stopped` said so.
    """

    def report(done: int, total: int | None) -> None:
        if stopped is not None and stopped():
            raise InterruptedError("no longer wanted")

    part = target.with_name(target.name + ".part")
    most = largest if size is None else size
    transfer = Transfer(url, part, report, most, attempts=_PATIENT_ATTEMPTS, checked=checksum is not None)
    try:
        if checksum is None:
            part.unlink(missing_ok=True)  # which may be of another version
        if transfer.run() and checksum is not None and checksum.check(part):
            part.unlink()
            transfer.run()
        wrong = checksum and checksum.check(part)
        if size is not None and part.stat().st_size != size:
            wrong = f"{part.stat().st_size:,} bytes, not {size:,}"
        if wrong:
            part.unlink()
            raise FileError(f"{url} is damaged or has changed on the server ({wrong})")
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    return transfer.version


@contextmanager
def _progress(url: str, target: Path) -> Iterator[Report]:
    """A bar on a terminal, one line elsewhere, both on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(printable(f"downloading {url} to {target}"), file=sys.stderr, flush=True)
        yield lambda done, total: None
        return
    columns = (TextColumn(target.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(target.name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
