"""The receptive field: how many pixels of the image one number depends on, followed layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from diracnets.nn.dirac import CONVOLUTIONS, TRANSPOSED

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_TAPS = {"nearest": 1, "nearest-exact": 1, "linear": 2, "bilinear": 2, "trilinear": 2, "bicubic": 4}


@dataclass(frozen=True)
class Field:
    """The receptive field after some layer.

    Args:
        size: how far it reaches, in pixels of the image, along each axis.
        step: from one number to the next, in pixels of the image, along each axis.
    """

    size: tuple[Fraction, ...]
    step: tuple[Fraction, ...]

    @classmethod
    def of_pixel(cls, axes: int) -> Field:
        """That of the image itself."""
        return cls((Fraction(1),) * axes, (Fraction(1),) * axes)

    @property
    def pixels(self) -> tuple[int, ...]:
        """The size in whole pixels; at the image's border part of it lies outside."""
        return tuple(map(math.ceil, self.size))

    def after_layer(self, layer: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> Field | None:
        """The field of the layer's output, None for the whole image.

        Args:
            layer: which.
            before: its input's height and width (or fewer or more axes).
            after: its output's.

        >>> field = Field.of_pixel(2).after_layer(nn.Conv2d(1, 1, 3, stride=2), (9, 9), (4, 4))
        >>> field.after_layer(nn.MaxPool2d(2), (4, 4), (2, 2)).pixels
        (5, 5)
        """
        axes = len(self.size)
        if isinstance(layer, nn.Flatten | nn.Linear):
            return None
        if isinstance(layer, _ADAPTIVE):
            if all(size == 1 for size in after):
                return None
            ratio = [Fraction(size, left) for size, left in zip(before, after, strict=True)]
            return self._grown([math.ceil(r) + (r.denominator > 1) for r in ratio], ratio)
        if isinstance(layer, TRANSPOSED):
            stride = _each(layer.stride, axes)
            reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
            return self._grown(
                [-(-r // s) for r, s in zip(reach, stride, strict=True)], [Fraction(1, s) for s in stride]
            )
        if isinstance(layer, (*CONVOLUTIONS, *_POOLS)):
            kernel, dilation = _each(layer.kernel_size, axes), _each(getattr(layer, "dilation", 1), axes)
            reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
            return self._grown(reach, list(map(Fraction, _each(layer.stride, axes))))
        if isinstance(layer, nn.Upsample | nn.PixelShuffle):
            taps = _TAPS[layer.mode] if isinstance(layer, nn.Upsample) else 1
            return self._grown([taps] * axes, [Fraction(size, more) for size, more in zip(before, after, strict=True)])
        return self

    def _grown(self, kernel: list[int], stride: list[Fraction]) -> Field:
        size = tuple(size + (k - 1) * step for size, k, step in zip(self.size, kernel, self.step, strict=True))
        return Field(size, tuple(step * s for step, s in zip(self.step, stride, strict=True)))


def _each(value: Any, axes: int) -> list[int]:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else [value] * axes
