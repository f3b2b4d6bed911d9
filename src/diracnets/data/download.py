"""Fetches a published archive: with progress, going on where it stopped, and checked before anyone sees it."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diracnets.errors import FileError

_CHUNK = 1 << 18
_ATTEMPTS = 4
_PATIENCE = 30.0  # seconds without an answer

Report = Callable[[int, int | None], None]


def md5_of(path: Path) -> str:
    """A file's md5 as 32 hexadecimal digits.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def download(url: str, target: Path, md5: str) -> None:
    """Bring `url` to `target`, which appears when all of it is there and has the right md5.

    What has come is kept as `<target>.part` when the connection breaks: a later call asks for the rest alone.

    Args:
        url: http or https.
        target: the file; its folder is made.
        md5: of the whole file, 32 hexadecimal digits.

    Raises:
        FileError: the server does not give it, it is damaged, or it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _progress(url, target) as report:
            resumed = _fetch_all(url, part, report)
            found = md5_of(part)
            if found != md5 and resumed:  # what was there before may have been of another file
                part.unlink()
                _fetch_all(url, part, report)
                found = md5_of(part)
        if found != md5:
            part.unlink()
            raise FileError(f"what came from {url} is damaged (md5 {found}, not {md5}): try again, or from elsewhere")
        part.replace(target)
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror or error}") from error


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Take the named files out of a .tar.gz, all of them or none.

    Only `<folder.name>/<name>` members that are plain files are read, whatever else the archive holds; so nothing can
    be written outside `folder`.

    Args:
        archive: the file.
        folder: where the files go; must not exist.
        names: of the files.

    Raises:
        FileError: the archive is damaged or lacks a file, or the folder cannot be written.
    """
    wanted = {f"{folder.name}/{name}": name for name in names}
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
            whole = Path(place) / folder.name
            whole.mkdir()
            try:
                with tarfile.open(archive) as tar:
                    for member in tar:
                        name = wanted.get(member.name)
                        content = tar.extractfile(member) if name is not None and member.isreg() else None
                        if name is not None and content is not None:
                            _copy(content.read, whole / name)
                            del wanted[member.name]
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise FileError(f"{archive} is damaged: {error}; delete it and try again") from error
            if wanted:
                raise FileError(f"{archive} lacks {', '.join(sorted(wanted))}: it is not the archive as published")
            whole.rename(folder)
    except OSError as error:
        raise FileError(f"cannot unpack {archive} to {folder}: {error.strerror or error}") from error


def _copy(read: Callable[[int], bytes], path: Path) -> None:
    with path.open("xb") as file:
        while piece := read(_CHUNK):
            file.write(piece)


def _fetch_all(url: str, part: Path, report: Report) -> bool:
    """Append to `part` until the server has no more; True if bytes from an earlier call were kept."""
    before = part.stat().st_size if part.exists() else 0
    kept = before > 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            kept = _fetch(url, part, report) and kept
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and part.exists():  # nothing lies behind what is there; its md5 will tell
                    return kept
                raise FileError(f"cannot download {url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, ssl.SSLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == _ATTEMPTS:
                have = part.stat().st_size if part.exists() else 0
                reason = getattr(error, "reason", None) or error
                raise FileError(
                    f"cannot download {url}: {reason} ({have:,} bytes kept); "
                    f"try again to go on, or put the file into {part.parent} yourself"
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
        print(f"downloading {url} to {target}", file=sys.stderr, flush=True)
        yield lambda done, total: None
        return
    columns = (TextColumn(target.name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(target.name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
