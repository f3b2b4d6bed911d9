"""Batches of uint8 images on a device: crop, flip, normalise and cut out, for every kind of data alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diracnets.data.augmentation import Augmentation
from diracnets.data.random import Stream, below, draw
from diracnets.errors import UsageError

Size = tuple[int, int, int]


def check(augment: Augmentation, size: Size) -> None:
    """Raise UsageError where `augment` does not suit images of `size` [C, H, W]."""
    side = min(size[1:])
    if augment.crop == "pad" and augment.pad >= side:
        raise UsageError(f"pad {augment.pad} is too large for images of {side} pixels: take at most {side - 1}")
    if augment.cutout >= side:
        raise UsageError(f"cutout {augment.cutout} would hide all of an image of {side} pixels: take less")


class Normalizer:
    """From uint8 pixels to normalised float32: (pixel / 255 - mean) / std, in one pass over rows.

    Args:
        size: [C, H, W] of the images.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        device: where the pixels will be.

    >>> normalize = Normalizer((1, 2, 2), mean=[0.5], std=[0.5])
    >>> normalize(torch.tensor([0, 255, 255, 0], dtype=torch.uint8).view(1, 2, 2, 1)).flatten().tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """

    def __init__(
        self, size: Size, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # One row of an image, [W * C]: long enough to be vectorized, which three channels are not.
        self._scale = (1 / (255 * stds)).float().repeat(size[2]).to(device)
        self._shift = (-means / stds).float().repeat(size[2]).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] to float32 [B, C, H, W], channels_last."""
        batch, height, width, channels = pixels.shape
        rows = pixels.reshape(batch, height, width * channels).float()
        rows.mul_(self._scale).add_(self._shift)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def augmented(
    pixels: Tensor, samples: Tensor, augment: Augmentation, normalize: Normalizer, *, seed: int, epoch: int
) -> Tensor:
    """A training batch: what is drawn for an image depends on (seed, epoch, its number) alone.

    Args:
        pixels: uint8 [B, H, W, C].
        samples: int64 [B], the images' numbers, on the same device.
        augment: what to do. A "resized" crop is made before this: see `parts` and `decode`.
        normalize: the normalization, applied before cutout so that cutout's zeros are the mean colour.
        seed: of the run.
        epoch: from 0.

    Returns:
        float32 [B, C, H, W], channels_last.
    """
    height, width = pixels.shape[1:3]
    pad = augment.pad if augment.crop == "pad" else 0
    top, left, mirror, row, column = draw(seed, epoch, samples, Stream.BATCH, 5)
    if pad or augment.flip != "none":
        shift = 2 * pad + 1
        if augment.flip == "alternating":
            mirror = (below(draw(seed, 0, samples, Stream.FLIP)[0], 2) + epoch) % 2
        else:
            mirror = below(mirror, 2 if augment.flip == "random" else 1)
        pixels = crop_and_flip(pixels, below(top, shift) - pad, below(left, shift) - pad, mirror, pad)
    images = normalize(pixels)
    if augment.cutout:
        cut_out(images, below(row, height), below(column, width), augment.cutout)
    return images


def crop_and_flip(pixels: Tensor, top: Tensor, left: Tensor, mirror: Tensor, pad: int) -> Tensor:
    """Shift each image by (top, left) within its reflection, then mirror it where `mirror` is 1.

    A row reflected at both ends repeats itself and is its own mirror image about pixel 0, so a mirrored crop of it is
    an ordinary crop somewhere else. One copy of rows does all three.

    Args:
        pixels: uint8 [B, H, W, C].
        top: int64 [B], from -pad to pad.
        left: int64 [B], from -pad to pad.
        mirror: int64 [B], 0 or 1.
        pad: the largest shift, less than H and W.

    Returns:
        uint8 [B, H, W, C].
    """
    batch, height, width, channels = pixels.shape
    rows = pixels.reshape(batch * height, width, channels)
    back = rows.flip(1)
    # Pixels -(W - 1 + pad) .. W - 1 + pad of the reflected row.
    reflected = torch.cat([rows[:, width - 1 - pad : width - 1], back, rows[:, 1:], back[:, 1 : 1 + pad]], 1)
    length = reflected.shape[1]

    row = torch.arange(height, device=pixels.device) + top[:, None]  # [B, H]
    row = height - 1 - (height - 1 - row.abs()).abs()
    row = row + torch.arange(batch, device=pixels.device)[:, None] * height
    first = torch.where(mirror == 1, -(left + width - 1), left) + (width - 1 + pad)  # [B]
    start = (row * length + first[:, None]) * channels

    flat = reflected.view(-1)
    span = width * channels
    windows = flat.as_strided((flat.numel() - span + 1, span), (1, 1))
    return windows.index_select(0, start.view(-1)).view(batch, height, width, channels)


def cut_out(images: Tensor, rows: Tensor, columns: Tensor, side: int) -> None:
    """Set a square of each image to 0, in place (DeVries & Taylor 2017).

    Args:
        images: float32 [B, C, H, W], channels_last.
        rows: int64 [B], the square's centre.
        columns: int64 [B], the square's centre.
        side: in pixels; what lies over the border is lost.
    """
    batch, channels, height, width = images.shape
    reach = torch.arange(side, device=images.device) - side // 2
    # Clamped numbers repeat the square's pixels at the border, which does no harm.
    row = (rows[:, None] + reach).clamp(0, height - 1)  # [B, side]
    column = (columns[:, None] + reach).clamp(0, width - 1)
    row = row + torch.arange(batch, device=images.device)[:, None] * height
    pixel = row[:, :, None] * width + column[:, None, :]  # [B, side, side]
    images.permute(0, 2, 3, 1).view(-1, channels).index_fill_(0, pixel.view(-1), 0.0)
