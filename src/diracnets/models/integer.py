"""A chain in integers: int8 images, weights and activations, as TensorFlow Lite and microcontrollers compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from diracnets.errors import UsageError
from diracnets.models.fixed_point import Int32, Quantization, multiply, quantize_multipliers

Pair: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, int, int]
_AT_ONCE = 32  # images, so that what passes between layers stays in the processor's cache
_EXACT = 2**24  # whole numbers up to here are exact in float32, and so are their sums


@dataclass(frozen=True, eq=False)
class _Weighted:
    """What a convolution and a fully connected layer have in common: see these."""

    name: str
    weight: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bias: Int32
    input: Quantization
    output: Quantization
    relu: bool
    before: Shape
    after: Shape

    def __post_init__(self) -> None:
        many = self.weight.shape[0]
        if self.weight.dtype != np.int8 or self.weight.min(initial=0) < -127:
            raise UsageError(f"layer {self.name} has weights that are no int8 of -127 to 127")
        if self.scales.dtype != np.float32 or self.scales.shape not in ((1,), (many,)) or not (self.scales > 0).all():
            raise UsageError(f"layer {self.name} needs one positive float32 scale, or one for each of {many} outputs")
        if self.bias.dtype != np.int32 or self.bias.shape != (many,):
            raise UsageError(f"layer {self.name} needs an int32 bias for each of {many} outputs")

    @property
    def multipliers(self) -> tuple[Int32, Int32]:
        """q and shift of each output channel, int32 [out]: sums become outputs by (q, shift), see `multiply`."""
        real = np.float64(self.input.scale) * self.scales.astype(np.float64) / np.float64(self.output.scale)
        return quantize_multipliers(np.broadcast_to(real, self.bias.shape))

    @property
    def lowest(self) -> int:
        """The smallest output: 0 after ReLU, which the zero point stands for."""
        return self.output.zero_point if self.relu else -128


@dataclass(frozen=True, eq=False)
class IntConv(_Weighted):
    """A 2-d convolution with zeros around the image, and the ReLU after it.

    Args:
        name: of the layer.
        weight: int8 [out, in / groups, height, width], -127 to 127; scales * weight are the real ones.
        scales: float32 [out], or [1] for all.
        bias: int32 [out], in steps of input.scale * scales.
        input: of the activations that come in.
        output: of those that go out.
        relu: whether negative outputs become zero.
        before: (channels, height, width) of the input.
        after: of the output.
        stride: down and across.
        padding: above and to the left; below and to the right it is the same. It is filled with the zero point.
        dilation: down and across.
        groups: of channels.

    Raises:
        UsageError: arrays of other types, shapes or ranges.
    """

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, eq=False)
class IntLinear(_Weighted):
    """A fully connected layer, whose input is flattened in the order channel, row, column, and the ReLU after it.

    Args:
        name, scales, bias, input, output, relu, before: as for `IntConv`.
        weight: int8 [out, channels * height * width].
        after: (out, 1, 1).

    Raises:
        UsageError: arrays of other types, shapes or ranges.
    """


@dataclass(frozen=True, eq=False)
class IntPool:
    """The largest or the mean value of each window; a mean is rounded, halves away from zero.

    Args:
        name: of the layer.
        kind: "max" or "average". Average pooling has no padding.
        size: of the window; the whole map for global pooling.
        stride: down and across.
        padding: above and to the left, below what any number can be.
        input: of the activations, those that come in and those that go out.
        before: (channels, height, width) of the input.
        after: of the output. Rows and columns that fill no window are left out.
    """

    name: str
    kind: str
    size: Pair
    stride: Pair
    padding: Pair
    input: Quantization
    before: Shape
    after: Shape

    @property
    def output(self) -> Quantization:
        """The same as `input`."""
        return self.input


IntLayer: TypeAlias = IntConv | IntPool | IntLinear


class IntegerChain(nn.Module):
    """Integer layers one after another, computed bit for bit as TensorFlow Lite's reference kernels do.

    An activation is an int8 that stands for scale * (integer - zero_point); weights are int8, biases int32. A layer's
    sums are int32. They become the next int8 by `multiply`, plus the zero point, clamped. Jacob et al. 2018
    (arXiv:1712.05877), with the double rounding of `MultiplyByQuantizedMultiplier`.

    Args:
        layers: each takes what the one before it gives.

    Raises:
        UsageError: no layers, or two that do not fit each other.

    >>> step = Quantization(0.5, 0)
    >>> weight, scales, bias = np.array([[2, -1]], np.int8), np.array([0.5], np.float32), np.array([4], np.int32)
    >>> chain = IntegerChain([IntLinear("0", weight, scales, bias, step, step, False, (2, 1, 1), (1, 1, 1))])
    >>> chain(torch.tensor([[[[3.0]], [[1.0]]]]))  # 2 * 0.5 * 3 - 0.5 * 1 + 4 * 0.25
    tensor([[3.5000]])
    """

    layers: tuple[IntLayer, ...]

    def __init__(self, layers: Sequence[IntLayer]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        if not self.layers:
            raise UsageError("an integer chain without layers")
        for one, other in zip(self.layers, self.layers[1:], strict=False):
            if one.after != other.before or one.output != other.input:
                raise UsageError(f"layer {other.name} does not take what layer {one.name} gives")
        self._types: dict[int, torch.dtype] = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, IntPool):
                q, shift = layer.multipliers
                tensors = (layer.weight, layer.bias.astype(np.int64), q.astype(np.int64), shift.astype(np.int64))
                for what, array in zip(("weight", "bias", "q", "shift"), tensors, strict=True):
                    self.register_buffer(f"{what}{index}", torch.from_numpy(array), persistent=False)
                self._types[index] = _exact(layer)
        self.eval()

    @property
    def input(self) -> Quantization:
        """Of the images."""
        return self.layers[0].input

    @property
    def output(self) -> Quantization:
        """Of the logits."""
        return self.layers[-1].output

    @property
    def input_size(self) -> Shape:
        """(channels, height, width) of an image."""
        return self.layers[0].before

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images, float [batch, channels, height, width] -> logits, float32 [batch, classes].

        Raises:
            UsageError: images of another size.
        """
        return self.output.real(self._integers(self.input.integers(images.float())))

    def integers(self, images: Tensor) -> Tensor:
        """int8 [batch, channels, height, width] -> int8 [batch, classes], without the real numbers around them."""
        return self._integers(images.float()).to(torch.int8)

    @torch.no_grad()
    def _integers(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.input_size:
            size = "x".join(map(str, self.input_size))
            raise UsageError(f"the int8 chain takes images of {size}, not {list(x.shape[1:])}")
        device = next((buffer.device for buffer in self.buffers()), x.device)
        with torch.autocast(device.type, enabled=False):
            return torch.cat([self.logits(part.to(device)) for part in torch.split(x, _AT_ONCE)])

    def logits(self, x: Tensor) -> Tensor:
        """Whole numbers, as floats: [batch, channels, height, width] -> [batch, classes], in traceable steps."""
        for index, layer in enumerate(self.layers):
            x = _pool(layer, x) if isinstance(layer, IntPool) else self._weigh(layer, index, x)
        return x.flatten(1)

    def _weigh(self, layer: IntConv | IntLinear, index: int, x: Tensor) -> Tensor:
        weight, bias, q, shift = (getattr(self, f"{what}{index}") for what in ("weight", "bias", "q", "shift"))
        x, weight = (each.to(self._types[index]) for each in (x - layer.input.zero_point, weight))
        if isinstance(layer, IntConv):
            sums = functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            sums = functional.linear(x.flatten(1), weight)[:, :, None, None]
        each = (-1, 1, 1)
        outputs = multiply(sums.long().add_(bias.view(each)), q.view(each), shift.view(each))
        return outputs.add_(layer.output.zero_point).clamp_(layer.lowest, 127).float()


def _exact(layer: IntConv | IntLinear) -> torch.dtype:
    """The type in which every sum of products is exact, in whatever order it is computed."""
    most = 255 * np.abs(layer.weight.astype(np.int64)).reshape(len(layer.weight), -1).sum(1).max()
    return torch.float32 if most < _EXACT else torch.float64


def _pool(layer: IntPool, x: Tensor) -> Tensor:
    if layer.kind == "max":
        return functional.max_pool2d(x, layer.size, layer.stride, layer.padding)
    many = layer.size[0] * layer.size[1]
    sums = functional.avg_pool2d(x.double(), layer.size, layer.stride, divisor_override=1)
    return sums.add(sums.sign(), alpha=many // 2).div(many).trunc().float()
