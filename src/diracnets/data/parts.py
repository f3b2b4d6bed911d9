"""Random parts of images in memory, resized in batches on their device: what `decode.random_part` does one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diracnets.data.random import Stream, draw, fraction

DRAWS = 40  # for one part: ten attempts of four numbers
LOG_RATIO = math.log(4 / 3)  # of the proportions that a part has at most


def random_parts(pixels: Tensor, samples: Tensor, min_scale: float, *, seed: int, epoch: int) -> Tensor:
    """A random part of each image, resized to the size of the whole.

    The same part as `diracnets.data.decode.random_part` takes of the same sample, and the same filter as Pillow's, but
    without the rounding between its two passes: pixels differ by 1 at most.

    Args:
        pixels: uint8 [B, H, W, C].
        samples: int64 [B], the images' numbers, on the same device.
        min_scale: smallest part of the area, over 0 and up to 1.
        seed: of the run.
        epoch: from 0.

    Returns:
        uint8 [B, H, W, C].

    >>> random_parts(torch.full((2, 8, 8, 3), 7, dtype=torch.uint8), torch.arange(2), 0.1, seed=0, epoch=0).unique()
    tensor([7], dtype=torch.uint8)
    """
    height, width = pixels.shape[1:3]
    draws = fraction(draw(seed, epoch, samples, Stream.RESIZED, DRAWS))
    left, top, part_width, part_height = random_boxes(draws, height, width, min_scale)
    return resized_parts(pixels, left, top, part_width, part_height)


def random_boxes(draws: Tensor, height: int, width: int, min_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the parts are: the first of ten attempts that lies within the image, else the largest central part.

    Args:
        draws: [40, B], numbers in [0, 1).
        height, width: of the images.
        min_scale: smallest part of the area.

    Returns:
        left, top, width and height, float64 [B], whole numbers.

    Source: Szegedy et al. 2015.
    """
    scale, ratio, across, down = draws.double().view(DRAWS // 4, 4, -1).unbind(1)  # [attempts, B]
    area = width * height * (min_scale + (1 - min_scale) * scale)
    aspect = torch.exp(LOG_RATIO * (2 * ratio - 1))
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    possible = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    boxes = torch.stack(
        [(across * (width - widths + 1)).floor(), (down * (height - heights + 1)).floor(), widths, heights]
    )
    first = possible.int().argmax(0)  # [B]
    chosen = boxes.gather(1, first.expand(4, 1, -1))[:, 0]  # [4, B]
    most_width, most_height = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    central = ((width - most_width) // 2, (height - most_height) // 2, most_width, most_height)
    found = possible.any(0)
    left, top, part_width, part_height = (
        torch.where(found, one, other) for one, other in zip(chosen, central, strict=True)
    )
    return left, top, part_width, part_height


def resized_parts(pixels: Tensor, left: Tensor, top: Tensor, part_width: Tensor, part_height: Tensor) -> Tensor:
    """Parts of images, resized to the size of the whole: bilinear, with antialiasing where they shrink.

    Args:
        pixels: uint8 [B, H, W, C].
        left, top, part_width, part_height: of each part, [B].

    Returns:
        uint8 [B, H, W, C].
    """
    batch, height, width, channels = pixels.shape
    rows = _weights(top, part_height, height) @ pixels.view(batch, height, width * channels).float()
    columns = rows.view(batch, height, width, channels).transpose(1, 2).reshape(batch, width, height * channels)
    result = _weights(left, part_width, width) @ columns  # [B, W, H * C]
    result = result.view(batch, width, height, channels).transpose(1, 2)
    return result.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _weights(first: Tensor, length: Tensor, size: int) -> Tensor:
    """What each pixel of a line counts for each pixel of a part that is resized to it: float32 [B, size, size]."""
    places = torch.arange(size, device=first.device, dtype=torch.float64) + 0.5
    scale = (length / size)[:, None, None]
    centres = first[:, None, None] + places[:, None] * scale  # [B, to, 1]
    weights = (1 - (places - centres).abs() / scale.clamp_min(1)).clamp_min_(0)
    return (weights / weights.sum(2, keepdim=True)).float()
