"""Copies of remote shards on this machine: as many as fit, shared by all processes, brought when they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from diracnets.data.shard_list import Stated
from diracnets.download import Checksum, fetch
from diracnets.errors import FileError, UsageError
from diracnets.files import locked, written_whole
from diracnets.places import cache_folder

LIMIT = "DIRACNETS_CACHE_GB"
_USUAL_GB = 100
_TOUCHED_EVERY = 30.0  # seconds: which shards were used last decides which are removed


def cache_limit() -> int:
    """How many bytes of remote shards are kept: `$DIRACNETS_CACHE_GB` x 10^9, or else 100 x 10^9.

    Raises:
        UsageError: it is set to something else than a positive number.
    """
    given = os.environ.get(LIMIT, str(_USUAL_GB))
    try:
        limit = int(float(given) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise UsageError(f"{LIMIT} is {given!r}, but must be a number of GB above 0")
    return limit


class ShardCache:
    """Copies of remote shards. It may be sent to other processes, which share the copies.

    Args:
        folder: of the copies; by default `shards` in `cache_folder()`.
        limit: bytes that the copies may have together, by default `cache_limit()`. The copies that were used last are
            kept, and the one that was asked for last in any case. A shard whose size is not listed may have as many.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "shards" if folder is None else folder
        self.limit = cache_limit() if limit is None else limit
        self._touched: dict[str, float] = {}

    def open(self, url: str, stated: Stated, stopped: Callable[[], bool] | None = None) -> BinaryIO:
        """The copy of a shard, opened; it is downloaded where there is none.

        Args:
            url: of the shard.
            stated: its size and hash, where they are listed: a copy that has others is refused.
            stopped: asked now and then whether to give up the download.

        Raises:
            FileError: it cannot be downloaded or kept, or is not what was listed.
        """
        file = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:20]}-{Path(urlsplit(url).path).name[-60:]}"
        now = time.monotonic()
        if now - self._touched.get(url, -_TOUCHED_EVERY) < _TOUCHED_EVERY:
            with suppress(FileNotFoundError):
                return file.open("rb")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(_lock(file)):  # in which no other process brings or removes it
                if not self._is_copy(file, stated):
                    self._make_room(stated.size or 0, keep=file)
                    checksum = Checksum("sha256", stated.sha256) if stated.sha256 else None
                    found = fetch(url, file, largest=self.limit, size=stated.size, checksum=checksum, stopped=stopped)
                    with written_whole(_about(file)) as part:
                        part.write_text(json.dumps({"url": url, "version": found, "bytes": file.stat().st_size}))
                    self._make_room(0, keep=file)
                os.utime(file)
                self._touched[url] = now
                return file.open("rb")
        except OSError as error:
            raise FileError(f"cannot keep a copy of {url} in {self.folder}: {error.strerror or error}") from error

    def version(self, file: Path) -> str | None:
        """What the server called the shard that a copy is of."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(_about(file).read_bytes())["version"]
            return found if isinstance(found, str) else None
        return None

    def _is_copy(self, file: Path, stated: Stated) -> bool:
        """Whether there is a copy that was completed, of the stated size."""
        try:
            size = json.loads(_about(file).read_bytes())["bytes"]
            return file.stat().st_size == size and stated.size in (None, size)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _make_room(self, size: int, keep: Path) -> None:
        """Remove the copies that were used least recently, until there is room for `size` more bytes.

        Downloads that were broken off count too, and go likewise: the lock of one under way is held by its process.
        """
        copies = []
        for file in (*self.folder.glob("*.tar"), *self.folder.glob("*.tar.part")):
            with suppress(OSError):  # another process removes too
                facts = file.stat()
                copies.append((facts.st_mtime, facts.st_size, file))
        used = sum(each[1] for each in copies) + size
        free = shutil.disk_usage(self.folder).free
        for _, copy, file in sorted(copies):
            if used <= self.limit and size <= free:
                return
            whole = file.with_suffix("") if file.suffix == ".part" else file
            if whole != keep:
                with locked(_lock(whole), wait=False) as alone, suppress(OSError):
                    if alone:
                        file.unlink()
                        used, free = used - copy, free + copy
                        if file == whole:
                            _about(file).unlink()


def _about(file: Path) -> Path:
    return file.with_suffix(".json")


def _lock(file: Path) -> Path:
    return file.with_suffix(".lock")
