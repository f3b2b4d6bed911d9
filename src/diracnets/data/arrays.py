"""Images as tensors and arrays: which axis is which follows from the type, and what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from diracnets.data.decode import Pixels
from diracnets.errors import DataError

Array = Tensor | npt.NDArray[Any]


def pixels_of(image: Array, name: str) -> Pixels:
    """Pixels, uint8 [H, W, C], of a tensor, [C, H, W] or [H, W], or an array, [H, W, C] or [H, W].

    Args:
        image: on any device; uint8 from 0 to 255, or floating-point numbers from 0 to 1, which are rounded to 256
            levels.
        name: what to call it in errors.

    Raises:
        DataError: another shape or dtype, or values out of range.

    >>> pixels_of(torch.tensor([1.0, 0.5, 0.0]).reshape(3, 1, 1), "orange").tolist()
    [[[255, 128, 0]]]
    """
    if isinstance(image, Tensor):
        if image.is_meta or image.layout != torch.strided or image.is_quantized:
            raise DataError(f"{name} is a tensor without values that could be read: give a dense one")
        values = image.detach().cpu()
        array: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = image
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{name} has shape {tuple(image.shape)}, and should have height, width and channels")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:  # also where one is not a number
            raise DataError(
                f"{name} has values from {low:g} to {high:g}, and floats should lie in 0..1: "
                "give pixels of 0..255 as uint8, and leave normalization to diracnets"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"{name} is of {array.dtype}, and should be of uint8, or of floats in 0..1")
    return np.ascontiguousarray(array)


def pictures_in(given: Array, name: str) -> list[Image.Image]:
    """The pictures in a tensor or an array: one, as for `pixels_of`, or a batch with an axis more before the others.

    Raises:
        DataError: as `pixels_of`; or channels other than 1 (grey), 3 (RGB) or 4 (RGB and opacity).

    >>> [picture.size for picture in pictures_in(np.zeros((2, 20, 10, 3), np.uint8), "two")]
    [(10, 20), (10, 20)]
    """
    kind, axes = ("a tensor", "[C, H, W]") if isinstance(given, Tensor) else ("an array", "[H, W, C]")
    parts = list(given) if given.ndim == 4 else [given]
    if not parts:
        raise DataError(f"{name} has shape {tuple(given.shape)}, which holds no image")
    found = []
    for part in parts:
        pixels = pixels_of(part, name)
        if pixels.shape[2] not in (1, 3, 4):
            raise DataError(
                f"{name} has shape {tuple(given.shape)}, which in {kind} is {axes}, with an axis before them "
                f"for a batch: {pixels.shape[2]} channels, where 1, 3 or 4 can be"
            )
        found.append(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return found
