"""Image files: the kinds that are read, and what is refused by a file's header before any pixel is decoded."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError, features

from diracnets.errors import DataError, DiracNetsError, FileError

# Formats that pictures come in, of the many that Pillow reads, some of which run other programs. The last two are only
# there where Pillow was built with them.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
_BUILT_WITH = {"JPEG2000": "jpg_2000", "AVIF": "avif"}
_FORMATS = tuple(kind for kind in _SUFFIXES if kind not in _BUILT_WITH or features.check(_BUILT_WITH[kind]))
SUFFIXES = frozenset(suffix for kind in _FORMATS for suffix in _SUFFIXES[kind])
ADVICE = ": replace or remove it"  # how an error about one bad file ends
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82", "GIF": b"\x3b"}
_SCANS = 200  # of a progressive JPEG; cameras and programs write 10, and rarely a thumbnail with its own
_PIPED = 1 << 29  # bytes that may come through a pipe for one picture
_LONGEST = 65_535  # pixels of a side, as in JPEG; each row costs memory and time of its own, however short
_FREE, _DENSEST = 1 << 22, 10_000  # pixels that any file may have, and those for each of its bytes; PNG allows 8,258


@contextmanager
def opened(source: str | Path | BinaryIO, name: str | None = None) -> Iterator[Image.Image]:
    """An image file, its header read, its pixels not yet; what goes wrong inside the block names the file.

    Args:
        source: a file, a pipe, or a stream of bytes.
        name: what to call it in errors; by default its path.

    Raises:
        DataError: it is empty, no image, damaged, or so large that decoding it could exhaust the memory.
        FileError: it is not there, or may not be read.
    """
    name = str(source) if name is None else name
    with reported(name), _bytes_of(source) as file:
        if file.seek(0, io.SEEK_END) == 0:
            raise DataError(f"{name} is empty (0 bytes){ADVICE}")
        if file.tell() > _PIPED and isinstance(file, io.BytesIO):
            raise DataError(f"{name} gives more than {_PIPED >> 20} MiB: give a file instead of a pipe")
        file.seek(0)
        with Image.open(file, formats=_FORMATS) as image:
            refuse_bomb(image, name, file.seek(0, io.SEEK_END))
            if image.format == "JPEG" and image.info.get("progressive"):
                _refuse_scans(file, name)
            yield image


@contextmanager
def _bytes_of(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """A file that can be read from any place, which a pipe cannot."""
    if not isinstance(source, str | Path):
        yield io.BytesIO(source.read(_PIPED + 1))
        return
    with Path(source).open("rb") as file:
        whole = stat.S_ISREG(Path(source).stat().st_mode)
        yield file if whole else io.BytesIO(file.read(_PIPED + 1))


def suffix_of(image: Image.Image) -> str:
    """The usual extension of the file that an image was read from.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (1, 1)).save(buffer, "JPEG")
    >>> suffix_of(Image.open(buffer))
    '.jpg'
    """
    return suffixes_of(image)[0]


def suffixes_of(image: Image.Image) -> tuple[str, ...]:
    """All extensions that suit the file that an image was read from, the usual one first."""
    return _SUFFIXES["JPEG" if image.format == "MPO" else str(image.format)]  # of phones: a JPEG with another behind


def check_whole(source: str | Path | bytes, name: str | None = None, *, decode: bool = False) -> None:
    """Read an image's header, and decode it where its end does not show that it is all there.

    Args:
        source: a file, or its bytes.
        name: what to call it in errors; by default its path.
        decode: decode it in any case.

    Raises:
        DataError, FileError: as `opened`; or it is cut off.
    """
    with opened(io.BytesIO(source) if isinstance(source, bytes) else source, name) as image:
        if decode or not _ends_well(str(image.format), source):
            image.load()


def _ends_well(kind: str, source: str | Path | bytes) -> bool:
    """Whether a file shows that it is all there, by its end or the length at its start."""
    with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
        start = file.read(8)
        size = file.seek(0, io.SEEK_END)
        if kind == "WEBP":
            return int.from_bytes(start[4:], "little") + 8 <= size
        file.seek(-min(64, size), io.SEEK_END)
        return kind in _ENDS and _ENDS[kind] in file.read()


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Turn what Pillow raises and warns about while reading `name` into one DataError or FileError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and large images; the latter are refused anyway
            yield
    except DiracNetsError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that can be read ({', '.join(_FORMATS)}){ADVICE}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise FileError(f"cannot read {name}: {error.strerror}") from error
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(name, "too many")) from error
    except Exception as error:  # damaged files make Pillow's decoders raise all sorts
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} cannot be decoded, it is damaged or of an unusual kind: {reason}") from error


def refuse_bomb(image: Image.Image, name: str, size: int | None = None) -> None:
    """Refuse an image, by its header, that may not fit into memory, or that says to be more than its bytes can be.

    Args:
        image: not decoded yet.
        name: for errors.
        size: of its file, bytes.
    """
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise DataError(_too_large(name, f"{image.width}x{image.height}"))
    if max(image.size) > _LONGEST:
        raise DataError(
            f"{name} has {image.width}x{image.height} pixels, and sides may have {_LONGEST:,}: "
            "make it smaller or remove it"
        )
    if size is not None and pixels > _FREE + _DENSEST * size:
        raise DataError(
            f"{name} has {image.width}x{image.height} pixels in {size:,} bytes, as files have that are made to fill "
            "the memory: remove it"
        )


def _refuse_scans(file: BinaryIO, name: str) -> None:
    """Refuse a JPEG of so many scans that decoding it takes minutes: each may be of a few bytes and all the pixels."""
    file.seek(0)
    scans, end = 0, b""
    while block := file.read(1 << 20):
        scans += (end + block).count(b"\xff\xda")
        end = block[-1:]
    if scans > _SCANS:
        raise DataError(f"{name} has {scans:,} scans, more than the {_SCANS} that are decoded: save it again")


def _too_large(name: str, pixels: str) -> str:
    limit = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
    return f"{name} has {pixels} pixels, more than the {limit} that are safe to decode: make it smaller or remove it"
