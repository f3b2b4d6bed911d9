"""The bytes of a published file, brought over as many connections as that takes, and no more of them than allowed."""

from __future__ import annotations

import re
import shutil
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from diracnets.errors import FileError
from diracnets.web import ATTEMPTS, BROKEN, BUSY, ask, number, pieces, wait

Report = Callable[[int, int | None], None]


class Transfer:
    """Appends to a file until the server has no more.

    Args:
        url: http or https.
        part: the file.
        report: told now and then how many bytes are there, and how many there will be, if that is known.
        largest: bytes that the file may have.
        attempts: connections that may be made.
        checked: the whole file will be checked by a hash. Without one, bytes are kept only where the server says that
            the rest is of the same version.
    """

    def __init__(
        self, url: str, part: Path, report: Report, largest: int, *, attempts: int = ATTEMPTS, checked: bool = True
    ) -> None:
        self._url, self._part, self._report, self._largest = url, part, report, largest
        self._attempts, self._checked = attempts, checked
        self._total: int | None = None  # bytes, by what the server said last
        self.version: str | None = None

    def run(self) -> bool:
        """Bring all of it; True if bytes from an earlier call were kept.

        Raises:
            FileError: the server does not give it, or gives too much.
            OSError: the file cannot be written.
        """
        url, part = self._url, self._part
        kept = self._have() > 0
        for attempt in range(1, self._attempts + 1):
            before = self._have()
            try:
                return self._once() and kept
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 416 and before and attempt < self._attempts:  # the server has no more than that
                        if self._checked and self._total in (None, before):  # the hash will tell
                            return kept
                        self._start_over()
                    elif error.code not in BUSY or attempt == self._attempts:
                        raise FileError(
                            f"cannot download {url}: the server answers {error.code} {error.reason}"
                        ) from error
                    else:
                        wait(attempt, error.headers.get("Retry-After"))
            except BROKEN as error:
                if attempt == self._attempts:
                    reason = getattr(error, "reason", None) or error
                    raise FileError(
                        f"cannot download {url}: {reason} ({self._have():,} bytes kept); "
                        f"try again to go on, or bring the file to {part.with_suffix('')} yourself"
                    ) from error
                if self._have() <= before:
                    wait(attempt)
        return kept

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _start_over(self) -> None:
        self._part.unlink(missing_ok=True)
        self.version = self._total = None

    def _once(self) -> bool:
        """One request for what is lacking; False if the server starts over, as it does where the file has changed."""
        if not self._checked and self.version is None:  # nothing would tell that the rest is of another file
            self._start_over()
        have = self._have()
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and self.version:
            headers["If-Range"] = self.version
        with ask(self._url, headers) as answer:
            goes_on = bool(have) and answer.status == 206
            if goes_on and not self._same(answer.headers, have):
                self._start_over()
                raise ConnectionError("the file changed on the server")
            have = have if goes_on else 0
            self.version = _version(answer.headers)
            length = number(answer.headers.get("Content-Length"))
            self._total = total = None if length is None else have + length
            self._refuse_excess(total or have, have)
            with self._part.open("ab" if goes_on else "wb") as file:
                for piece in pieces(answer):
                    have += len(piece)
                    if have > self._largest:
                        break
                    file.write(piece)
                    self._report(have, total)
            self._refuse_excess(have, have)
        if total is not None and have < total:
            raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
        return goes_on

    def _same(self, headers: Message, have: int) -> bool:
        """Whether an answer goes on with the file that has begun, where that was left."""
        content_range = headers.get("Content-Range")
        known = (None, _whole_size(content_range)) if self._total is None else (_whole_size(content_range),)
        same_version = self.version in (None, _version(headers))
        return same_version and self._total in known and _first_byte(content_range) == have

    def _refuse_excess(self, size: int, have: int) -> None:
        """Refuse a file that would be larger than it may be, or than the disk has room for."""
        if size > self._largest:
            self._start_over()
            raise FileError(f"{self._url} gives more than {self._largest:,} bytes, the most that it may have")
        if size > have and size - have > (free := shutil.disk_usage(self._part.parent).free):
            raise FileError(f"{self._url} gives {size - have:,} bytes, but {self._part.parent} has room for {free:,}")


def _version(headers: Message) -> str | None:
    """What names this version of a file, for `If-Range`: a strong ETag, or else the date of its last change."""
    etag: str | None = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _first_byte(content_range: str | None) -> int | None:
    found = re.match(r"bytes ([0-9]+)-", content_range or "")
    return number(found[1]) if found else None


def _whole_size(content_range: str | None) -> int | None:
    """How many bytes there are in all, of `bytes 10-19/20`."""
    found = re.search(r"/([0-9]+)$", content_range or "")
    return number(found[1]) if found else None
