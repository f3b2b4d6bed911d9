"""The shards of a set: where to read each one now, and the index of each, which is made once and kept."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diracnets.data.encoded import stamp_of
from diracnets.data.shard_cache import ShardCache
from diracnets.data.shard_index import ShardIndex, index_shard
from diracnets.data.shard_list import Stated, Where
from diracnets.data.tar import BLOCK, begins
from diracnets.errors import DataError, FileError
from diracnets.files import locked, reading, written_whole
from diracnets.places import cache_folder, url_in
from diracnets.web import read_url

_LONGEST = 1 << 28  # bytes of an index


class ShardFiles:
    """Shards by their paths or URLs. It may be sent to other processes.

    Args:
        where: the shards.
        cache: for remote ones; by default the usual one.
    """

    def __init__(self, where: Where, cache: ShardCache | None = None) -> None:
        self._stated = where.stated
        self._cache = cache
        self._versions: dict[str, str | None] = {}  # of the remote shards that were indexed

    def bring(self, location: str, stopped: Callable[[], bool]) -> None:
        """Download a remote shard, where there is no copy of it.

        Args:
            location: of the shard.
            stopped: asked now and then whether to give up.

        Raises:
            FileError: it cannot be had.
        """
        if url_in(location) is not None:
            self._open(location, stopped).close()

    def has_room(self, shards: int, size: int) -> bool:
        """Whether the copies of so many remote shards of this size fit into the cache."""
        self._cache = self._cache or ShardCache()
        return shards * size <= self._cache.limit

    def content(self, location: str, offset: int, size: int) -> bytes:
        """A member's content, with a look at the header before it: the shard may have changed.

        Raises:
            DataError: at this place is no member of this size.
            FileError: the shard cannot be read.
        """
        with self._opened(location) as file:
            file.seek(offset - BLOCK)
            found = file.read(BLOCK + size)
        if not begins(io.BytesIO(found), BLOCK, size) or len(found) != BLOCK + size:
            raise FileError(f"{location} has changed since it was indexed: start again, and it is indexed anew")
        return found[BLOCK:]

    def stamp(self, location: str) -> bytes:
        """What changes with the shard's content, see `stamp_of`; of a remote one, its version."""
        if url_in(location) is None:
            return stamp_of(location)
        version = self._stated.get(location, Stated()).sha256 or self._versions.get(location)
        return f"{location}\0{version}".encode(errors="surrogateescape") if version else b""

    def index(self, location: str) -> ShardIndex:
        """The index of a shard: the one that was kept or came with it, if it is of this very shard, or a new one.

        Raises:
            DataError: it is no tar file, or compressed.
            FileError: it cannot be read.
        """
        kept = _kept(location)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with locked(kept.with_suffix(".lock")):  # or each of several processes would do the same work
                index = self._found_or_made(location, kept)
        except OSError:  # of the folder: what cannot be kept is made each time
            index = self._found_or_made(location, kept)
        self._versions[location] = index.version
        return index

    def _found_or_made(self, location: str, kept: Path) -> ShardIndex:
        remote = url_in(location) is not None
        stamp: dict[str, object] = {"location": _absolute(location)}
        if not remote:
            stamp["changed"] = _stat(Path(location))
        size = self._stated.get(location, Stated()).size
        with suppress(OSError):
            index = ShardIndex.from_json(kept.read_bytes(), **stamp)
            if index is not None and (not remote or size in (None, index.size)):
                return index
        index = self._published(location) or self.made_index(location)
        with suppress(FileError), written_whole(kept) as part:
            part.write_text(index.to_json(**stamp), encoding="utf-8")
        return index

    def made_index(self, location: str) -> ShardIndex:
        """A new index, of what is in the shard now. Raises as `index` does."""
        with self._opened(location) as file:
            try:
                index = index_shard(file)
            except DataError as error:
                raise DataError(f"{location} {error}") from error
            if url_in(location) is not None and self._cache is not None:
                index.version = self._cache.version(Path(file.name))
            return index

    def _published(self, location: str) -> ShardIndex | None:
        """The index that came with a shard, if there is one that fits it."""
        stated = self._stated.get(location, Stated())
        if stated.index is None or stated.size is None:
            return None
        if url_in(location):
            index = ShardIndex.from_json(read_url(stated.index, _LONGEST) or b"")
            return index if index is not None and index.size == stated.size else None
        with suppress(OSError):
            index = ShardIndex.from_json(Path(stated.index).read_bytes())
            with self._opened(location) as file:
                return index if index is not None and index.size == file.seek(0, 2) and index.fits(file) else None
        return None

    @contextmanager
    def _opened(self, location: str) -> Iterator[BinaryIO]:
        file = self._open(location)
        with reading(location), file:
            yield file

    def _open(self, location: str, stopped: Callable[[], bool] | None = None) -> BinaryIO:
        if url_in(location) is None:
            with reading(location):
                return Path(location).open("rb")
        if self._cache is None:
            self._cache = ShardCache()
        file = self._cache.open(location, self._stated.get(location, Stated()), stopped)
        indexed = self._versions.get(location)
        if indexed is not None and (found := self._cache.version(Path(file.name))) not in (None, indexed):
            file.close()
            _kept(location).unlink(missing_ok=True)
            raise FileError(f"{location} has changed since it was indexed ({found} is not {indexed}): start again")
        return file


def _absolute(location: str) -> str:
    return location if url_in(location) else str(Path(location).absolute())


def _kept(location: str) -> Path:
    """Where an index is kept."""
    name = hashlib.sha256(_absolute(location).encode(errors="surrogateescape")).hexdigest()[:40]
    return cache_folder() / "indices" / f"{name}.json"


def _stat(file: Path) -> list[int]:
    with reading(file):
        facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]
