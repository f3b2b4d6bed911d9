"""A chain in int8, every number rounded to the nearest: ranges from real images, nothing mended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy.graph import Array, Conv, Layer, Linear, Pool, layers_of
from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLayer, IntLinear, IntPool

Weights = tuple[npt.NDArray[np.int8], Array]  # of a layer, and their scales, [out] or [1]


def rounded_chain(
    chain: nn.Module, card: ModelCard, images: Tensor, *, per_channel: bool = True, bits: int = 8
) -> IntegerChain:
    """A chain in int8 by rounding each weight to the nearest; activations reach as far as they do on `images`.

    Args:
        chain: see `layers_of`.
        card: of the chain; the integer chain carries it too.
        images: normalized, float32 [batch, channels, height, width].
        per_channel: a scale for each output channel of a convolution; otherwise one for the layer. A fully connected
            layer has one in any case, as many kernels have it.
        bits: of the weights.

    Raises:
        UsageError: as `layers_of`; no images, or of another size than the card's.

    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> images = torch.rand(16, 1, 8, 8) * 2 - 1
    >>> integers = rounded_chain(chain, ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)), images)
    >>> bool((integers(images) - chain(images)).abs().max() < 0.1)
    True
    """
    check_images(images, card)
    layers = layers_of(chain, card)
    ranges = [pixel_range(card), *(_range(x) for x in activations(layers, images))]
    weights = [None if isinstance(layer, Pool) else rounded_weights(layer, per_channel, bits) for layer in layers]
    integers = integer_chain(layers, weights, [Quantization.of_range(*each) for each in ranges])
    attach_card(integers, card)
    return integers


def integer_chain(
    layers: Sequence[Layer], weights: Sequence[Weights | None], quantizations: Sequence[Quantization]
) -> IntegerChain:
    """The integer chain of float layers whose weights are quantized; their biases are rounded here.

    Args:
        layers: of `layers_of`.
        weights: of each layer; None for pooling.
        quantizations: of the images and of each layer's output; that of pooling is not looked at.

    Raises:
        UsageError: a bias that int32 does not hold.
    """
    made: list[IntLayer] = []
    current = quantizations[0]
    for layer, weight, output in zip(layers, weights, quantizations[1:], strict=True):
        if isinstance(layer, Pool):
            made.append(IntPool(**_fields(layer), input=current))
            continue
        assert weight is not None
        integers, scales = weight
        bias = np.rint(layer.bias.astype(np.float64) / (np.float64(current.scale) * scales.astype(np.float64)))
        if np.abs(bias).max(initial=0) >= 2**31:
            raise UsageError(f"layer {layer.name} has biases that are too large for int32 in steps of its weights")
        kind = IntConv if isinstance(layer, Conv) else IntLinear
        given = {"weight": integers, "scales": scales, "bias": bias.astype(np.int32)}
        made.append(kind(**{**_fields(layer), **given}, input=current, output=output))
        current = output
    return IntegerChain(made)


def rounded_weights(layer: Conv | Linear, per_channel: bool = True, bits: int = 8) -> Weights:
    """Each weight rounded to the nearest of 2^bits - 1 multiples of the scale, symmetric around 0."""
    rows = layer.weight.reshape(len(layer.weight), -1)
    largest = np.abs(rows).max(1) if per_channel and isinstance(layer, Conv) else np.abs(rows).max(keepdims=True)[0]
    most = 2 ** (bits - 1) - 1
    scales = np.maximum(largest / most, np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.rint(rows / scales[:, None]).clip(-most, most)
    return integers.astype(np.int8).reshape(layer.weight.shape), scales


@torch.no_grad()
def activations(layers: Sequence[Layer], images: Tensor) -> Iterator[Tensor]:
    """What each layer gives of images, float32 [batch, channels, height, width], as the float chain computes it."""
    x = images
    for layer in layers:
        x = apply(layer, x)
        yield x


def apply(layer: Layer, x: Tensor) -> Tensor:
    """The output of one layer, [batch, channels, height, width]."""
    if isinstance(layer, Pool):
        if layer.kind == "max":
            return functional.max_pool2d(x, layer.size, layer.stride, layer.padding)
        return functional.avg_pool2d(x, layer.size, layer.stride)
    weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
    if isinstance(layer, Conv):
        x = functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        x = functional.linear(x.flatten(1), weight, bias)[:, :, None, None]
    return x.relu_() if layer.relu else x


def pixel_range(card: ModelCard) -> tuple[float, float]:
    """The lowest and the highest number that a normalized image can hold.

    >>> pixel_range(ModelCard((1, 8, 8), mean=(0.5,), std=(0.25,)))
    (-2.0, 2.0)
    """
    ends = [(end - mean) / std for mean, std in zip(card.mean, card.std, strict=True) for end in (0.0, 1.0)]
    return min(ends), max(ends)


def check_images(images: Tensor, card: ModelCard) -> None:
    """Refuse calibration on no images, or on some of another size than the card's.

    Raises:
        UsageError: so it is.
    """
    if len(images) == 0:
        raise UsageError("there are no images to calibrate on")
    if tuple(images.shape[1:]) != card.input_size:
        raise UsageError(f"images of {list(images.shape[1:])} to calibrate a network on that takes {card.input_size}")


def _fields(layer: Layer) -> dict[str, Any]:
    return {field.name: getattr(layer, field.name) for field in fields(layer)}


def _range(x: Tensor) -> tuple[float, float]:
    return float(x.min()), float(x.max())
