"""From image files of any kind to pixels of the size that a network takes, the same in training and in prediction.

EXIF orientation is respected; transparency is composited over white; 16-bit grey keeps its upper 8 bits; of an
animation the first picture is taken. Resizing is bilinear with antialiasing (Pillow's).
"""

from __future__ import annotations

import io
import math
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from diracnets.data.augment import Normalizer, Size
from diracnets.errors import DataError, DiracNetsError, FileError, UsageError

Pixels = npt.NDArray[np.uint8]

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
TINY = 64  # up to this size an image is resized whole: there is nothing to crop away
_MARGIN = 256 / 224  # Zagoruyko & Komodakis 2017 evaluate ImageNet resized to 256, cropped to 224
_SPARE = 2.0  # a JPEG of which a part is taken is decoded smaller, as long as it stays this much larger than needed
_ORIENTATION = 0x0112
_SCANS = 200  # of a progressive JPEG; cameras and programs write 10, and rarely a thumbnail with its own
_PIPED = 1 << 29  # bytes that may come through a pipe for one picture
_LONGEST = 65_535  # pixels of a side, as in JPEG; each row costs memory and time of its own, however short
_FREE, _DENSEST = 1 << 22, 10_000  # pixels that any file may have, and those for each of its bytes; PNG allows 8,258


def to_input(
    image: Image.Image | str | Path | BinaryIO,
    input_size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    name: str | None = None,
) -> Tensor:
    """An image as a network's input, exactly as evaluation makes it.

    Args:
        image: a picture of any size and kind, its file, or a stream of the file's bytes.
        input_size: [C, H, W] of the network, C 1 (grey) or 3 (RGB).
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        name: what to call the image in errors; by default its file, or "the image".

    Returns:
        float32 [C, H, W], normalised.

    Raises:
        DataError: the image cannot be decoded.
        FileError: there is no such file, or it may not be read.
        UsageError: the network takes neither 1 nor 3 channels.

    >>> to_input(Image.new("RGB", (640, 480), "red"), (3, 224, 224), [0.5] * 3, [0.5] * 3)[:, 0, 0].tolist()
    [1.0, -1.0, -1.0]
    """
    if isinstance(image, Image.Image):
        with reported(name or "the image"):
            pixels = fitted(image, input_size)
    else:
        with opened(image, name) as file:
            pixels = fitted(file, input_size)
    return Normalizer(input_size, mean, std)(torch.from_numpy(pixels)[None])[0]


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
            _refuse_bomb(image, name, file.seek(0, io.SEEK_END))
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


def fitted(image: Image.Image, input_size: Size) -> Pixels:
    """The image as evaluation and prediction see it: uint8 [H, W, C].

    An image that has the input's size is taken as it is. Else, for inputs of up to 64 pixels it is resized whole; for
    larger ones it is resized to cover 256/224 of the input, and the centre is cropped.
    """
    channels, height, width = input_size
    whole = decoded(image, channels)
    if max(height, width) <= TINY or whole.size == (width, height):
        return as_array(_resized(whole, (width, height)))
    scale = _MARGIN * max(width / whole.width, height / whole.height)
    size = (max(width, round(whole.width * scale)), max(height, round(whole.height * scale)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    # Of the image that is cropped only the part that remains is computed: all of it may be millions of pixels long.
    by_x, by_y = whole.width / size[0], whole.height / size[1]
    box = (left * by_x, top * by_y, (left + width) * by_x, (top + height) * by_y)
    return as_array(_resized(whole, (width, height), box))


def random_part(image: Image.Image, input_size: Size, min_scale: float, draws: Sequence[float]) -> Pixels:
    """A random part of the image, resized to the input: uint8 [H, W, C].

    Ten attempts at a part of `min_scale` to 1 of the area and 3/4 to 4/3 the proportions (Szegedy et al. 2015), then
    the largest central part with allowed proportions.

    Args:
        image: any size.
        input_size: [C, H, W].
        min_scale: smallest fraction of the area.
        draws: 40 numbers in [0, 1), which decide.
    """
    channels, height, width = input_size
    whole = _upright_size(image)
    left, top, part_width, part_height = _random_box(*whole, min_scale, draws)
    if image.format == "JPEG":  # whose decoder can leave out detail that would be lost anyway
        wanted = _SPARE * max(width / part_width, height / part_height)
        image.draft(None, (math.ceil(image.width * wanted), math.ceil(image.height * wanted)))
    picture = decoded(image, channels)
    by_x, by_y = picture.width / whole[0], picture.height / whole[1]
    box = (left * by_x, top * by_y, (left + part_width) * by_x, (top + part_height) * by_y)
    return as_array(_resized(picture, (width, height), box))


def _random_box(width: int, height: int, min_scale: float, draws: Sequence[float]) -> tuple[int, int, int, int]:
    log_ratio = math.log(4 / 3)
    for attempt in range(0, len(draws), 4):
        scale, ratio, across, down = draws[attempt : attempt + 4]
        area = width * height * (min_scale + (1 - min_scale) * scale)
        aspect = math.exp(log_ratio * (2 * ratio - 1))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            left, top = int(across * (width - part_width + 1)), int(down * (height - part_height + 1))
            return left, top, part_width, part_height
    part_width = min(width, max(1, round(height * 4 / 3)))
    part_height = min(height, max(1, round(width * 4 / 3)))
    return (width - part_width) // 2, (height - part_height) // 2, part_width, part_height


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format != "JPEG":
        image.load()  # the size and the orientation of some formats change with decoding
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata does not make the pixels worse
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decoded(image: Image.Image, channels: int) -> Image.Image:
    """The whole image, upright, grey (1) or RGB (3)."""
    if channels not in (1, 3):
        raise UsageError(f"an image file gives 1 or 3 channels, and the network takes {channels}")
    if isinstance(image, ImageFile.ImageFile) and image.tile:  # not decoded yet, and maybe not from `opened`
        _refuse_bomb(image, "the image")
    image.load()
    if _orientation(image) > 1:
        with suppress(Exception):  # of damaged metadata, which it writes again
            image = ImageOps.exif_transpose(image)
    return _colored(image, "L" if channels == 1 else "RGB")


def is_grey(image: Image.Image) -> bool:
    """Whether an image has no colours, by its kind and not by its pixels.

    >>> [is_grey(Image.new(mode, (1, 1))) for mode in ("L", "LA", "I;16", "RGB", "P")]
    [True, True, True, False, False]
    """
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _colored(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels have more than 16 bits: convert it to 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        upper = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper)
        del upper
    return image.convert("RGB").convert(mode)


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    if box is None and image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def as_array(image: Image.Image) -> Pixels:
    """A grey or RGB image as uint8 [H, W, C]."""
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _refuse_bomb(image: Image.Image, name: str, size: int | None = None) -> None:
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
