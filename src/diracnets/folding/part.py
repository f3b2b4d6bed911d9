"""The values of a part of a network, between two places that all paths pass."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from diracnets.folding.affine import Window, both
from diracnets.folding.carry import STEEPEST, Value
from diracnets.folding.fuse import BatchNorm, scale_and_shift
from diracnets.folding.pieces import Bend

_RANGE = (1e-4, 1e4)  # of the scales of a batch norm whose input is computed back


class Part:
    """Makes the values of a part, each after its sources.

    Args:
        name: of the input, for errors.
        channels: of the input.
        positive: whether the input cannot be negative.
        like: a tensor of the dtype and device to compute with.

    >>> part = Part("the input", 2, True, torch.ones(()))
    >>> part.new("relu", "a ReLU", part.values[0]).channels
    2
    """

    def __init__(self, name: str, channels: int, positive: bool, like: Tensor) -> None:
        self.values, self.positive, self.like = [Value("start", name, (), channels)], positive, like

    def new(self, kind: str, name: str, *sources: Value, **more: object) -> Value:
        """A value of as many channels as its first source, and as large."""
        value = Value(kind, name, sources, sources[0].channels, sources[0].step, **more)  # type: ignore[arg-type]
        self.values.append(value)
        return value

    def summed(self, name: str, values: Sequence[Value]) -> Value:
        """The sum of values of one size."""
        return values[0] if len(values) == 1 else self.new("sum", name, *values)

    def convolved(
        self, name: str, value: Value, weight: Tensor | None, bias: Tensor | None, window: Window | None = None
    ) -> Value:
        """A convolution, of single pixels if no window is given; without a weight, subsampling."""
        window = Window() if window is None else window
        made = self.new("conv", name, value, weight=weight, bias=bias, window=window)
        made.channels = value.channels if weight is None else len(weight)
        made.step = both(operator.mul, value.step, window.stride)
        return made

    def scaled(self, name: str, value: Value, scale: Tensor, shift: Tensor) -> Value:
        """`scale * value + shift`, both [channels]."""
        steady = (scale.abs() >= _RANGE[0]) & (scale.abs() <= _RANGE[1]) & (shift.abs() <= STEEPEST * scale.abs())
        return self.new("scale", name, value, norm=(scale, shift, steady))

    def normalized(self, norm: BatchNorm, name: str, value: Value) -> Value:
        """A batch norm."""
        scale, shift = scale_and_shift(norm)
        steady = (scale.abs() >= _RANGE[0]) & (scale.abs() <= _RANGE[1])
        if norm.affine:
            steady &= norm.bias.abs() <= STEEPEST * norm.weight.abs()
        return self.new("scale", name, value, norm=(scale, shift, steady))

    def bent(self, name: str, value: Value, bends: Sequence[Bend], constant: float) -> Value:
        """A piecewise linear function, as a sum of ReLUs and a constant."""
        ones = torch.ones_like(self.like).expand(value.channels)

        def vector(number: float | Tensor) -> Tensor:
            return number.flatten() * ones if isinstance(number, Tensor) else number * ones

        parts = []
        for scale, shift, factor in bends:
            bare = isinstance(scale, float) and (scale, shift) == (1.0, 0.0)
            inner = value if bare else self.scaled(name, value, vector(scale), vector(shift))
            parts.append(self.scaled(name, self.new("relu", name, inner), vector(factor), 0 * ones))
        return self.scaled(name, self.summed(name, parts), 1 * ones, constant * ones)
