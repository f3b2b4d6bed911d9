"""Fetches a published file: with progress, resumable, and checked before it is used."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diracnets.errors import FileError, printable

_CHUNK = 1 << 18
_ATTEMPTS = 4
_PATIENCE = 30.0  # seconds without an answer

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Checksum:
    """What a published file has to hash to.

    Args:
        algorithm: of the hash.
        digits: all its hexadecimal digits, or the first ones where no more were published.

    >>> Checksum("md5", "d41d8cd98f00b204e9800998ecf8427e")
    Checksum(algorithm='md5', digits='d41d8cd98f00b204e9800998ecf8427e')
    """

    algorithm: Literal["md5", "sha256"]
    digits: str

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
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def download(url: str, target: Path, checksum: Checksum) -> None:
    """Bring `url` to `target`, which appears when all of it is there and is what was published.

    What has come is kept as `<target>.part` when the connection breaks: a later call asks for the rest alone.

    Args:
        url: http or https.
        target: the file; its folder is made.
        checksum: of the whole file.

    Raises:
        FileError: the server does not give it, it is damaged, or it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _progress(url, target) as report:
            resumed = _fetch_all(url, part, report)
            wrong = checksum.check(part)
            if wrong and resumed:  # what was there before may have been of another file
                part.unlink()
                _fetch_all(url, part, report)
                wrong = checksum.check(part)
        if wrong:
            part.unlink()
            raise FileError(f"what came from {url} is damaged ({wrong}): try again, or from elsewhere")
        part.replace(target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error


def _fetch_all(url: str, part: Path, report: Report) -> bool:
    """Append to `part` until the server has no more; True if bytes from an earlier call were kept."""
    before = part.stat().st_size if part.exists() else 0
    kept = before > 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            kept = _fetch(url, part, report) and kept
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and part.exists():  # there is no more than that; its hash will tell
                    return kept
                raise FileError(f"cannot download {url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, ssl.SSLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == _ATTEMPTS:
                have = part.stat().st_size if part.exists() else 0
                reason = getattr(error, "reason", None) or error
                raise FileError(
                    f"cannot download {url}: {reason} ({have:,} bytes kept); "
                    f"try again to go on, or bring the file to {part.with_suffix('')} yourself"
                ) from error
        else:
            return kept
    return kept


def _fetch(url: str, part: Path, report: Report) -> bool:
    """One request for what `part` lacks; False if the server starts over."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
        goes_on = bool(have) and answer.status == 206 and _first_byte(answer.headers.get("Content-Range")) == have
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdigit() else None
        with part.open("ab" if goes_on else "wb") as file:
            while piece := answer.read(_CHUNK):
                file.write(piece)
                have += len(piece)
                report(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
    return goes_on


def _first_byte(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


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
