"""From image files of any kind to pixels of the size that a network takes, the same in training and in prediction.

EXIF orientation is respected; transparency is composited over white; 16-bit grey keeps its upper 8 bits; of an
animation the first picture is taken. Resizing is bilinear with antialiasing (Pillow's).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from diracnets.data.augment import Normalizer, Size
from diracnets.data.image_file import opened, refuse_bomb, reported
from diracnets.errors import UsageError

Pixels = npt.NDArray[np.uint8]

TINY = 64  # up to this size an image is resized whole: there is nothing to crop away
_MARGIN = 256 / 224  # Zagoruyko & Komodakis 2017 evaluate ImageNet resized to 256, cropped to 224
_SPARE = 2.0  # a JPEG of which a part is taken is decoded smaller, as long as it stays this much larger than needed
_ORIENTATION = 0x0112


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
        refuse_bomb(image, "the image")
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
