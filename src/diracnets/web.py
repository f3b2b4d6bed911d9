"""One question to a server: where its answer may send us, how slow it may be, how much of it is taken."""

from __future__ import annotations

import functools
import http.client
import re
import ssl
import string
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import quote, urljoin, urlsplit

from diracnets.errors import FileError, first_line

ATTEMPTS = 4  # connections
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which to try again
BROKEN = (urllib.error.URLError, ssl.SSLError, http.client.HTTPException, ConnectionError, TimeoutError)
_MOVED = (301, 302, 303, 307, 308)
_REDIRECTS = 5
_CHUNK = 1 << 18
_PATIENCE = 30.0  # seconds without an answer
_SLOWEST = 100  # bytes a second, on the average of so many seconds
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts: the first, doubled each time, and the longest


def ask(url: str, headers: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
    """The answer to one question, wherever the server sends us for it, to be closed.

    Redirections are followed to http and https alone, from https to https alone, and 5 times at most.

    Args:
        url: http or https.
        headers: to send along.

    Raises:
        HTTPError: the server answers with an error.
        FileError: the URL, or the one that the server sends us to, is not to be asked.
        URLError, or another of `BROKEN`: it does not answer.
    """
    asked = url
    try:
        for _ in range(_REDIRECTS + 1):
            answer = _asked(asked, headers or {})
            if not isinstance(answer, str):
                return answer
            asked = _moved(asked, answer)
    except urllib.error.URLError:
        raise
    except (http.client.InvalidURL, ValueError) as error:
        raise FileError(f"cannot read {asked}: it leads to no URL ({first_line(error)})") from error
    raise FileError(f"cannot read {url}: its server sends us on more than {_REDIRECTS} times")


def _asked(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse | str:
    """What a server answers, or where it sends us."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise FileError(f"cannot read {url}: it is no http or https URL")
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        answer: http.client.HTTPResponse = _opener().open(request, timeout=_PATIENCE)
        return answer
    except urllib.error.HTTPError as error:
        if error.code not in _MOVED:
            raise
        with error:
            return error.headers.get("Location") or ""


def _moved(url: str, location: str) -> str:
    """The URL that a server sends us on to."""
    new = urljoin(url, quote(location, encoding="iso-8859-1", safe=string.punctuation))
    allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
    if not location or urlsplit(new).scheme not in allowed:
        raise FileError(f"cannot read {url}: its server sends us on to {new}, which is not {' or '.join(allowed)}")
    return new


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """What asks: it knows http, https and proxies, but no files, FTP or redirections, which `ask` follows itself."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """What an answer holds, as it comes in.

    Raises:
        ConnectionError, or another of `BROKEN`: it ends too soon, or comes more slowly than 100 bytes a second.
    """
    begin, have = time.monotonic(), 0
    while True:
        try:
            piece = answer.read1(_CHUNK)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not piece:
            return
        yield piece
        have += len(piece)
        seconds = time.monotonic() - begin
        if seconds > _PATIENCE:
            if have < _SLOWEST * seconds:
                raise ConnectionError(f"it sends fewer than {_SLOWEST} bytes a second")
            begin, have = time.monotonic(), 0


def read_url(url: str, most: int) -> bytes | None:
    """What a URL gives, if that is no more than `most` bytes; None where the server has no such page, or keeps it shut.

    Raises:
        FileError: the server does not answer, or gives more.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with ask(url) as answer:
                length = number(answer.headers.get("Content-Length"))
                content = bytearray()
                for piece in pieces(answer) if (length or 0) <= most else ():
                    content += piece
                    if len(content) > most:
                        break
            if max(len(content), length or 0) > most:
                raise FileError(f"{url} gives more than {most:,} bytes")
            if length is not None and len(content) < length:
                raise ConnectionError(f"the connection broke after {len(content):,} of {length:,} bytes")
            return bytes(content)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (403, 404, 410):
                    return None
                if error.code not in BUSY or attempt == ATTEMPTS:
                    raise FileError(f"cannot read {url}: the server answers {error.code} {error.reason}") from error
                wait(attempt, error.headers.get("Retry-After"))
        except BROKEN as error:
            if attempt == ATTEMPTS:
                raise FileError(f"cannot read {url}: {getattr(error, 'reason', None) or error}") from error
            wait(attempt)
    return None


def wait(attempt: int, asked: str | None = None) -> None:
    """Back off: twice as long each time, or as long as the server asks for."""
    seconds = number(asked)
    time.sleep(min(_PAUSE * 2 ** (attempt - 1) if seconds is None else seconds, _LONGEST_PAUSE))


def number(text: str | None) -> int | None:
    """The number in a header; None where it holds none.

    >>> number("120"), number("-1"), number(None), number("9" * 5000)
    (120, None, None, None)
    """
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text.strip()) else None
