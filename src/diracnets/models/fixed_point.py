"""Integers times a real number, in integers alone, with the rounding of TensorFlow Lite's reference kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from diracnets.errors import UsageError

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Quantization:
    """Which real number an int8 stands for: scale * (integer - zero_point).

    Args:
        scale: a positive number; it is rounded to float32.
        zero_point: -128 to 127.

    Raises:
        UsageError: other numbers.

    >>> import torch
    >>> Quantization(0.5, -128).real(torch.tensor([-128, 0]))
    tensor([ 0., 64.])
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        scale = float(np.float32(self.scale))
        if not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"a scale of {self.scale}: it must be positive and finite in float32")
        if type(self.zero_point) is not int or not -128 <= self.zero_point <= 127:
            raise UsageError(f"a zero point of {self.zero_point!r}: it must be a whole number from -128 to 127")
        object.__setattr__(self, "scale", scale)

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantization:
        """The finest one that holds all numbers from `low` to `high`, and 0 exactly.

        >>> Quantization.of_range(0, 25.5)
        Quantization(scale=0.10000000149011612, zero_point=-128)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255)) or float(np.finfo(np.float32).tiny)
        return cls(scale, max(-128, min(127, round(-128 - low / scale))))

    def integers(self, real: Tensor) -> Tensor:
        """The nearest of -128 to 127, as float32, half to even, of real numbers in float32."""
        return real.div(self.scale).round_().add_(self.zero_point).clamp_(-128, 127)

    def real(self, integers: Tensor) -> Tensor:
        """float32."""
        return (integers.float() - self.zero_point) * self.scale


def quantize_multiplier(multiplier: float) -> tuple[int, int]:
    """A real number as q * 2^(shift - 31), with q an int32 of 31 bits.

    Args:
        multiplier: 0 or positive.

    Returns:
        q and shift. Numbers below 2^-32 become 0.

    >>> quantize_multiplier(0.25)
    (1073741824, -1)
    """
    if multiplier == 0:
        return 0, 0
    fraction, shift = math.frexp(multiplier)
    q = math.floor(fraction * 2**31 + 0.5)
    if q == 2**31:
        q, shift = q // 2, shift + 1
    return (q, shift) if shift >= -31 else (0, 0)


def quantize_multipliers(scales: npt.NDArray[np.float64]) -> tuple[Int32, Int32]:
    """`quantize_multiplier` of each: int32 [n] twice."""
    pairs = np.array([quantize_multiplier(float(scale)) for scale in scales], np.int64).reshape(-1, 2)
    return pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32)


def multiply(integers: Tensor, q: Tensor, shift: Tensor) -> Tensor:
    """round(round(x 2^left q / 2^31) / 2^right), as `MultiplyByQuantizedMultiplier` of TensorFlow Lite computes it.

    The first rounding takes halves up; the second takes them away from zero. `left` and `right` are the positive and
    the negative part of `shift`.

    Args:
        integers: int64 of the range of int32 [...], overwritten.
        q: int64, the same shape or one that broadcasts.
        shift: int64, as `q`.

    Returns:
        int64 [...].

    >>> import torch
    >>> q, shift = map(torch.tensor, quantize_multiplier(0.1))
    >>> multiply(torch.tensor([-25, -24, 24, 25]), q, shift).tolist()
    [-3, -2, 2, 3]
    """
    left, right = shift.clamp(min=0), (-shift).clamp(min=0)
    x = integers.mul_(q << left).add_(1 << 30).bitwise_right_shift_(31)
    away = (x >> 63) * (right > 0)  # -1 for negative numbers that are divided
    return x.add_(((1 << right) >> 1) + away).bitwise_right_shift_(right)
