"""A chain as the few plain layers that any backend can write, with the shapes of what passes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.errors import UsageError
from diracnets.models.integer import IntConv, IntLinear

Array: TypeAlias = npt.NDArray[np.float32]
Pair: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Conv:
    """A 2-d convolution with zeros around the image, and the ReLU after it.

    Args:
        name: of the module in the chain.
        weight: float32 [out, in / groups, height, width].
        bias: float32 [out]; zeros where the module has none.
        stride: down and across.
        padding: above and to the left; below and to the right it is the same.
        dilation: down and across.
        groups: of channels.
        relu: whether negative outputs become zero.
        before: (channels, height, width) of the input.
        after: of the output.
    """

    name: str
    weight: Array
    bias: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    relu: bool
    before: Shape
    after: Shape


@dataclass(frozen=True, eq=False)
class Pool:
    """The largest or the mean value of each window.

    Args:
        name: of the module in the chain.
        kind: "max" or "average". Average pooling has no padding.
        size: of the window; the whole map for global pooling.
        stride: down and across.
        padding: above and to the left, below what any number can be.
        before: (channels, height, width) of the input.
        after: of the output. Rows and columns that fill no window are left out.
    """

    name: str
    kind: str
    size: Pair
    stride: Pair
    padding: Pair
    before: Shape
    after: Shape


@dataclass(frozen=True, eq=False)
class Linear:
    """A fully connected layer, whose input is flattened in the order channel, row, column, and the ReLU after it.

    Args:
        name: of the module in the chain.
        weight: float32 [out, channels * height * width].
        bias: float32 [out]; zeros where the module has none.
        relu: whether negative outputs become zero.
        before: (channels, height, width) of the input.
        after: (out, 1, 1).
    """

    name: str
    weight: Array
    bias: Array
    relu: bool
    before: Shape
    after: Shape


Layer: TypeAlias = Conv | Pool | Linear


def layers_of(chain: nn.Module, card: ModelCard) -> tuple[Layer, ...]:
    """The layers of a chain for images of the card's size, in order.

    A ReLU is part of the layer before it; one after max pooling, with which it commutes, is put before the pooling.

    Args:
        chain: a flat `nn.Sequential` of Conv2d, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), Flatten and Linear,
            such as `fold` makes. Its weights are read as float32, from any device.
        card: of the chain.

    Raises:
        UsageError: a layer of another kind or with arguments that this form does not have, named; images that are not
            (channels, height, width); a chain that does not fit the card.

    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> [type(layer).__name__ for layer in layers_of(chain, ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)))]
    ['Conv', 'Pool', 'Linear']
    """
    if not isinstance(chain, nn.Sequential):
        raise UsageError(
            f"a {type(chain).__name__} is not a chain of layers: only folded DiracNets and other nets without branches "
            "can be written layer by layer"
        )
    if len(card.input_size) != 3:
        raise UsageError(
            f"images of {len(card.input_size) - 1} dimensions: only those of height and width can be written"
        )
    shape: Shape = card.input_size
    layers: list[Layer] = []
    flat = False
    for name, module in chain.named_children():
        if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
            continue
        if type(module) is nn.ReLU:
            _add_relu(layers, name)
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif type(module) is nn.Linear:
            layers.append(_linear(name, module, shape, flat))
        elif flat:
            raise UsageError(
                f"layer {name} ({module}) comes after flattening, where only Linear and ReLU can be written"
            )
        elif type(module) is nn.Conv2d:
            layers.append(_conv(name, module, shape))
        elif type(module) in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d):
            layers.append(_pool(name, module, shape))
        else:
            raise UsageError(f"layer {name} ({module}) cannot be written: known are Conv2d, ReLU, pooling and Linear")
        shape = layers[-1].after if layers else shape
        if min(shape) < 1:
            raise UsageError(f"layer {name} leaves nothing of images of {card.input_size}: its output is {shape}")
    return tuple(layers)


@overload
def as_convolution(layer: Linear) -> Conv: ...
@overload
def as_convolution(layer: IntLinear) -> IntConv: ...


def as_convolution(layer: Linear | IntLinear) -> Conv | IntConv:
    """A fully connected layer as the convolution of the whole map, which need not be flattened.

    >>> weight, bias = np.zeros((2, 12), np.float32), np.zeros(2, np.float32)
    >>> as_convolution(Linear("0", weight, bias, False, (3, 2, 2), (2, 1, 1))).weight.shape
    (2, 3, 2, 2)
    """
    common: dict[str, Any] = {**vars(layer), "weight": layer.weight.reshape(-1, *layer.before)}
    common |= {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    return Conv(**common) if isinstance(layer, Linear) else IntConv(**common)


def _add_relu(layers: list[Layer], name: str) -> None:
    place = len(layers) - 1
    while place >= 0 and isinstance(pool := layers[place], Pool) and pool.kind == "max":
        place -= 1
    layer = layers[place] if place >= 0 else None
    if not isinstance(layer, Conv | Linear):
        raise UsageError(f"layer {name}, a ReLU, comes after no convolution or Linear, so that it cannot be written")
    layers[place] = replace(layer, relu=True)


def _conv(name: str, module: nn.Conv2d, before: Shape) -> Conv:
    if module.padding_mode != "zeros":
        raise UsageError(f"layer {name} ({module}) pads with {module.padding_mode!r}: only zeros can be written")
    size, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    if module.padding == "same":
        whole = [reach * (side - 1) for reach, side in zip(dilation, size, strict=True)]
        if any(amount % 2 for amount in whole):
            raise UsageError(f"layer {name} ({module}) pads more on one side than on the other")
        padding = (whole[0] // 2, whole[1] // 2)
    else:
        padding = (0, 0) if module.padding == "valid" else _pair(module.padding)  # type: ignore[arg-type]
    if before[0] != module.in_channels:
        raise UsageError(f"layer {name} takes {module.in_channels} channels, but gets {before[0]}")
    after = (module.out_channels, *_sides(before, size, stride, padding, dilation))
    return Conv(
        name, _array(module.weight), _bias(module), stride, padding, dilation, module.groups, False, before, after
    )


def _pool(name: str, module: nn.Module, before: Shape) -> Pool:
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size not in (1, (1, 1)):
            raise UsageError(f"layer {name} ({module}) gives more than one number for each channel")
        whole = (before[1], before[2])
        return Pool(name, "average", whole, whole, (0, 0), before, (before[0], 1, 1))
    assert isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    size, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
    odd = module.ceil_mode or _pair(getattr(module, "dilation", 1)) != (1, 1)
    odd = odd or (kind == "average" and (padding != (0, 0) or getattr(module, "divisor_override", None) is not None))
    if odd:
        raise UsageError(f"layer {name} ({module}) pools in a way that cannot be written")
    return Pool(name, kind, size, stride, padding, before, (before[0], *_sides(before, size, stride, padding, (1, 1))))


def _linear(name: str, module: nn.Linear, before: Shape, flat: bool) -> Linear:
    many = before[0] * before[1] * before[2]
    if not flat:
        raise UsageError(f"layer {name} ({module}) comes before the image is flattened, so that it cannot be written")
    if module.in_features != many:
        raise UsageError(
            f"layer {name} takes {module.in_features} numbers, but gets {many} of images of the card's size"
        )
    return Linear(name, _array(module.weight), _bias(module), False, before, (module.out_features, 1, 1))


def _sides(before: Shape, size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    down, across = (
        (before[axis + 1] + 2 * padding[axis] - dilation[axis] * (size[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    return down, across


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _array(tensor: torch.Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _bias(module: nn.Conv2d | nn.Linear) -> Array:
    return np.zeros(module.weight.shape[0], np.float32) if module.bias is None else _array(module.bias)
