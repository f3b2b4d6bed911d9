"""Fetches a published file: with progress, resumable, and checked before it is used."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Literal

from diracnets.errors import FileError, printable

_CHUNK = 1 << 18
_ATTEMPTS, _PATIENT_ATTEMPTS = 4, 10  # connections
_PATIENCE = 30.0  # seconds without an answer
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts: the first, doubled each time, and the longest
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which to try again
_BROKEN = (urllib.error.URLError, ssl.SSLError, http.client.HTTPException, ConnectionError, TimeoutError)

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
        target: the file; its folder is made, and taken away again where nothing comes.
        checksum: of the whole file.

    Raises:
        FileError: the server does not give it, it is damaged, or it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _progress(url, target) as report:
            transfer = _Transfer(url, part, report)
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
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it holds something
            for made in new:
                made.rmdir()


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    checksum: Checksum | None = None,
    stopped: Callable[[], bool] | None = None,
) -> str | None:
    """Bring `url` to `target` without a word, which appears when all of it is there; only one process may at a time.

    A broken connection is taken up where it broke, if the server says that the file is still the same.

    Args:
        url: http or https.
        target: the file, in a folder that is there.
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
    transfer = _Transfer(url, part, report, attempts=_PATIENT_ATTEMPTS, largest=size)
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


def read_url(url: str, most: int) -> bytes | None:
    """What a URL gives, if that is no more than `most` bytes; None where the server has no such page, or keeps it shut.

    Raises:
        FileError: the server does not answer, or gives more.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
                content: bytes = answer.read(most + 1)
                length = answer.headers.get("Content-Length")
            if length is not None and length.isdigit() and len(content) < min(int(length), most):
                raise ConnectionError(f"the connection broke after {len(content):,} of {length} bytes")
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (403, 404, 410):
                    return None
                if error.code not in _BUSY or attempt == _ATTEMPTS:
                    raise FileError(f"cannot read {url}: the server answers {error.code} {error.reason}") from error
                _wait(attempt, error.headers.get("Retry-After"))
        except _BROKEN as error:
            if attempt == _ATTEMPTS:
                raise FileError(f"cannot read {url}: {getattr(error, 'reason', None) or error}") from error
            _wait(attempt)
        else:
            if len(content) > most:
                raise FileError(f"{url} gives more than {most:,} bytes")
            return content
    return None


class _Transfer:
    """Appends to a file until the server has no more, over as many connections as that takes, up to a limit."""

    def __init__(
        self, url: str, part: Path, report: Report, *, attempts: int = _ATTEMPTS, largest: int | None = None
    ) -> None:
        self._url, self._part, self._report = url, part, report
        self._attempts, self._largest = attempts, largest
        self._total: int | None = None  # bytes, by what the server said last
        self.version: str | None = None

    def run(self) -> bool:
        """Bring all of it; True if bytes from an earlier call were kept."""
        url, part = self._url, self._part
        kept = self._have() > 0
        for attempt in range(1, self._attempts + 1):
            before = self._have()
            try:
                return self._once() and kept
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 416 and part.exists():  # there is no more than that; its hash will tell
                        return kept
                    if error.code not in _BUSY or attempt == self._attempts:
                        raise FileError(
                            f"cannot download {url}: the server answers {error.code} {error.reason}"
                        ) from error
                    _wait(attempt, error.headers.get("Retry-After"))
            except _BROKEN as error:
                if attempt == self._attempts:
                    reason = getattr(error, "reason", None) or error
                    raise FileError(
                        f"cannot download {url}: {reason} ({self._have():,} bytes kept); "
                        f"try again to go on, or bring the file to {part.with_suffix('')} yourself"
                    ) from error
                if self._have() <= before:
                    _wait(attempt)
        return kept

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _once(self) -> bool:
        """One request for what is lacking; False if the server starts over, as it does where the file has changed."""
        have = self._have()
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and self.version:
            headers["If-Range"] = self.version
        request = urllib.request.Request(self._url, headers=headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            version = _version(answer.headers)
            total = _whole_size(answer.headers.get("Content-Range"))
            same = version == self.version and total == self._total if self._total is not None else True
            goes_on = (
                bool(have)
                and answer.status == 206
                and same
                and _first_byte(answer.headers.get("Content-Range")) == have
            )
            if have and answer.status == 206 and not goes_on:  # a part of another version, or from another place
                self._part.unlink()
                self.version = self._total = None
                raise ConnectionError("the file changed on the server")
            have = have if goes_on else 0
            self.version = version
            length = answer.headers.get("Content-Length")
            self._total = total = have + int(length) if length is not None and length.isdigit() else None
            with self._part.open("ab" if goes_on else "wb") as file:
                while piece := answer.read(_CHUNK):
                    have += len(piece)
                    if self._largest is not None and have > self._largest:
                        file.close()
                        self._part.unlink()
                        raise FileError(f"{self._url} gives more than {self._largest:,} bytes: it has changed")
                    file.write(piece)
                    self._report(have, total)
        if total is not None and have < total:
            raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
        return goes_on


def _version(headers: Message) -> str | None:
    """What names this version of a file, for `If-Range`: a strong ETag, or else the date of its last change."""
    etag: str | None = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _wait(attempt: int, asked: str | None = None) -> None:
    """Back off: twice as long each time, or as long as the server asks for."""
    seconds = float(asked) if asked is not None and asked.isdigit() else _PAUSE * 2 ** (attempt - 1)
    time.sleep(min(seconds, _LONGEST_PAUSE))


def _first_byte(content_range: str | None) -> int | None:
    found = re.match(r"bytes (\d+)-", content_range or "")
    return int(found[1]) if found else None


def _whole_size(content_range: str | None) -> int | None:
    """How many bytes there are in all, of `bytes 10-19/20`."""
    found = re.search(r"/(\d+)$", content_range or "")
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
