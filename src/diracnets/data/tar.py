"""Where the files of a tar archive lie in it: headers alone are read, within bounds, and nothing is ever unpacked.

Python's tarfile keeps every member in memory, and reads extended headers of any length. Archives of strangers get
neither here. What it makes of one block is used.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

from diracnets.errors import DataError, DiracNetsError, FileError, first_line

BLOCK = 512
_LONGEST = 1 << 16  # bytes of an extended header: file names, times and owners
_IN_A_ROW = 16  # extended headers of one file
_LONGEST_NAME = 1 << 12  # bytes, as Linux allows
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class _Bounded(tarfile.TarInfo):
    """A header as tarfile reads it, without those that would take any memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _EXTENDING and found.size > _LONGEST):
            raise tarfile.ReadError(f"an extended header of {found.size:,} bytes")
        return found

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        tar = cast(_BoundedTar, tar)
        if tar.headers == _IN_A_ROW:
            raise tarfile.ReadError(f"more than {_IN_A_ROW} extended headers in a row")
        tar.headers += 1
        try:
            return super().fromtarfile(tar)
        finally:
            tar.headers -= 1


class _BoundedTar(tarfile.TarFile):
    """An archive in which few extended headers follow each other: tarfile goes a level deeper at each of them.

    Where the stack ends, what Python does in between fails half-done, such as freeing memory that processes share.
    """

    tarinfo = _Bounded
    headers = 0


def files_in(archive: Path, wanted: Callable[[str], bool], largest: int) -> Iterator[tuple[str, bytes]]:
    """The name and content of the wanted files in a .tar.gz or .tar, in order; links and the like are passed over.

    Args:
        archive: of a few files, which is read from its beginning to its end.
        wanted: whether a file of this name is.
        largest: bytes of a file; larger ones are passed over.

    Raises:
        FileError: it cannot be read, or is damaged.
    """
    try:
        with archive.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with _BoundedTar.open(archive, "r:gz" if packed else "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and member.size <= largest and wanted(member.name):
                    content = tar.extractfile(member)
                    if content is not None:
                        yield member.name, content.read()
    except OSError as error:
        raise FileError(f"cannot read {archive}: {error.strerror or error}") from error
    except DiracNetsError:
        raise
    except Exception as error:  # of a damaged archive, tarfile raises almost anything
        raise FileError(f"{archive} is damaged: {first_line(error)}; delete it and get it again") from error


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar archive.

    Attributes:
        name: any text at all; never a place to write to.
        offset: of its content, in bytes from the start of the archive.
        size: of its content, in bytes.
    """

    name: str
    offset: int
    size: int


def members(archive: BinaryIO) -> Iterator[Member]:
    """The ordinary files in a tar archive, in order; folders, links and devices are passed over.

    Args:
        archive: that can be read from any place. Its position may be changed between two members.

    Raises:
        DataError: it is compressed, no tar archive, damaged or cut off, after the members before that place.

    >>> buffer = io.BytesIO()
    >>> with tarfile.open(fileobj=buffer, mode="w") as tar:
    ...     info = tarfile.TarInfo("0.cls")
    ...     info.size = 2
    ...     tar.addfile(info, io.BytesIO(b"42"))
    >>> [member] = members(buffer)
    >>> buffer.getvalue()[member.offset : member.offset + member.size]
    b'42'
    """
    end = archive.seek(0, io.SEEK_END)
    archive.seek(0)
    _refuse_compressed(archive.read(BLOCK))
    place, name, size = 0, None, None
    while place < end:
        archive.seek(place)
        header = _header(archive.read(BLOCK), place)
        if header is None:
            return
        content = place + BLOCK
        length = header.size if size is None or header.type in _EXTENDING else size
        if length < 0 or content + length > end:
            raise DataError(f"is cut off: at byte {place:,} a file of {length:,} bytes begins, and {end:,} are there")
        place = content + -(-length // BLOCK) * BLOCK
        if header.type in _EXTENDING:
            if length > _LONGEST:
                raise DataError(f"has an extended header of {length:,} bytes at byte {content - BLOCK:,}")
            given = archive.read(length)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = _text(given.partition(b"\0")[0])
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                name, size = _extended(given, name, content)
            continue
        if header.type in (*tarfile.REGULAR_TYPES,) and header.type != tarfile.GNUTYPE_SPARSE:
            yield Member(header.name if name is None else name, content, length)
        name = size = None
    raise DataError(f"is cut off: its {end:,} bytes end without the mark that ends a tar file")


_EXTENDING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


def begins(archive: BinaryIO, offset: int, size: int) -> bool:
    """Whether at this offset of an archive the content of a member of this size begins.

    The header before it must have a valid checksum; sizes in extended headers are not known here.
    """
    archive.seek(offset - BLOCK)
    try:
        header = _header(archive.read(BLOCK), offset)
    except DataError:
        return False
    return header is not None and header.size == size


def _refuse_compressed(start: bytes) -> None:
    for mark, kind in _COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(f"is compressed ({kind}): single images can only be read from a plain tar file; unpack it")
    if not start:
        raise DataError("is empty (0 bytes)")


def _header(block: bytes, place: int) -> tarfile.TarInfo | None:
    """What a block says, None for the end of the archive."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if block.count(0) == BLOCK:
            return None
        raise DataError(f"is damaged or no tar file: no header at byte {place:,} ({error})") from error
    except Exception as error:  # numbers in headers of strangers
        raise DataError(f"is damaged: a header that cannot be read at byte {place:,}") from error


def _extended(records: bytes, name: str | None, place: int) -> tuple[str | None, int | None]:
    """The name and size that a pax header gives: records of `<length> <key>=<value>` and a line break."""
    size = None
    records, at = records.rstrip(b"\0"), 0
    try:
        while at < len(records):
            space = records.find(b" ", at, at + 10)
            length = int(records[at:space])
            if space < 0 or not 5 <= length <= len(records) - at:
                raise ValueError("a record of a wrong length")
            key, _, value = records[space + 1 : at + length].removesuffix(b"\n").partition(b"=")
            if key == b"path":
                name = _text(value)
            elif key == b"size":
                size = int(value)
            at += length
    except ValueError as error:
        raise DataError(f"is damaged: an extended header at byte {place:,} ({error})") from error
    return name, size


def _text(name: bytes) -> str:
    if len(name) > _LONGEST_NAME:
        raise DataError(f"has a file with a name of {len(name):,} bytes")
    return name.decode("utf-8", "surrogateescape")
