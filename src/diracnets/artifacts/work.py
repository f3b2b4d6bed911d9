"""How much a layer has to do for one image, from its arguments and shapes alone."""

from __future__ import annotations

import math

from torch import nn

MOST_WORK = 1 << 41  # multiplications or comparisons for one image: minutes on one core; a VGG-16 needs 2^34


def work_of(layer: nn.Module, before: int, after: int) -> int:
    """Multiplications, or comparisons and the like, for one image.

    Args:
        layer: of a chain.
        before: numbers that it is given.
        after: numbers that it makes of them.

    >>> work_of(nn.Conv2d(3, 8, 3, padding=1), before=3 * 100, after=8 * 100)
    21600
    >>> work_of(nn.MaxPool2d(2), before=400, after=100)
    400
    """
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return before * layer.weight[0].numel()
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        return after * layer.weight[0].numel()
    kernel: int | tuple[int, ...] | None = getattr(layer, "kernel_size", None)
    if kernel is not None:
        return after * math.prod(kernel if isinstance(kernel, tuple) else (kernel,) * _axes(layer))
    if hasattr(layer, "output_size"):  # parts of different sizes, which overlap
        return after + (before << _axes(layer))
    return max(before, after) * 16  # of the bicubic Upsample; less of the others


def _axes(layer: nn.Module) -> int:
    return int(type(layer).__name__[-2])  # of MaxPool2d, ...
