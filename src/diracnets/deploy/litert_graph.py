"""A chain in the operators of LiteRT, once TensorFlow Lite: the bytes of a .tflite file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Options, description
from diracnets.deploy.graph import Conv, Layer, Pair, Pool, Shape, as_convolution, layers_of
from diracnets.deploy.pixels import integers_of_pixels, with_normalization
from diracnets.deploy.tflite import TFLiteWriter
from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLayer, IntPool


def content(model: nn.Module, card: ModelCard, options: Options) -> bytes:
    """A .tflite file: images are [batch, height, width, channels], of a fixed number; logits [batch, classes].

    Of a float chain, both are float32. Of an integer chain, both are int8, all the integers are the chain's, and
    pixels are given as int8, pixel - 128. Operators are those that TFLite Micro has too.

    Raises:
        UsageError: the model is no chain that can be written.
    """
    batch, name = options.batch or 1, "pixels" if options.from_pixels else "images"
    layers: Sequence[Layer | IntLayer]
    if isinstance(model, IntegerChain):
        integers = integers_of_pixels(model, card) if options.from_pixels else model
        layers, numbers = integers.layers, _Numbers.of(integers.input)
    else:
        layers = layers_of(with_normalization(model, card) if options.from_pixels else model, card)
        numbers = _Numbers("uint8", 1.0) if options.from_pixels else _Numbers()
    network = _Network(batch, name, layers[0].before, numbers)
    for layer in layers:
        network.add(layer)
    precision = "int8" if isinstance(model, IntegerChain) else "float32"
    return network.content({KEY: description(card, options, precision).encode()})


@dataclass(frozen=True)
class _Numbers:
    """How a tensor writes numbers down: a real number is scale * (integer - zero point), if there is a scale."""

    dtype: str = "float32"
    scale: float | None = None
    zero_point: int = 0

    @classmethod
    def of(cls, quantization: Quantization) -> _Numbers:
        return cls("int8", quantization.scale, quantization.zero_point)


class _Network:
    """Layers written one after another, each onto the tensor that the last one made. Images are [batch, height, width,
    channels], as always in this format."""

    def __init__(self, batch: int, name: str, shape: Shape, numbers: _Numbers) -> None:
        self.writer = TFLiteWriter()
        self.batch = batch
        self.numbers = numbers  # of the last tensor, as everything below
        self.positive = False  # whether none is below zero
        self.source = self.last = self._image(name, shape)
        self.shape = shape
        if numbers.dtype == "uint8":
            self.numbers = _Numbers()
            self._then("DEQUANTIZE", self._image("real", shape), "DequantizeOptions")

    def add(self, layer: Layer | IntLayer) -> None:
        if isinstance(layer, Conv | IntConv):
            self._conv(layer)
        elif isinstance(layer, Pool | IntPool):
            self._pool(layer)
        else:
            # LiteRT's reference FULLY_CONNECTED rounds int8 sums otherwise than its CONV_2D and TFLite Micro do.
            self._conv(as_convolution(layer))
        self.shape = layer.after

    def content(self, metadata: dict[str, bytes]) -> bytes:
        if self.shape[1:] != (1, 1):
            raise UsageError(f"a chain that ends in a map of {self.shape[1]}x{self.shape[2]} cannot be written")
        shape = [self.batch, self.shape[0]]
        numbers = np.array(shape, np.int32)
        constants = [self.writer.tensor("shape", [2], "int32", numbers)]
        self._then("RESHAPE", self._tensor("logits", shape), "ReshapeOptions", constants, newShape=numbers)
        return self.writer.content(self.source, self.last, "a chain written by diracnets", metadata)

    def _conv(self, layer: Conv | IntConv) -> None:
        many, _, height, width = layer.weight.shape
        padding = self._pad(layer, (height, width), layer.dilation)
        depthwise = layer.groups == layer.before[0] > 1
        # [out, in, height, width] becomes [out, height, width, in], or [1, height, width, out] if depthwise
        weight = layer.weight.transpose(1, 2, 3, 0) if depthwise else layer.weight.transpose(0, 2, 3, 1)
        constants = self._weights(layer, weight, axis=3 if depthwise else 0)
        self.positive = layer.relu
        values: dict[str, Any] = {
            "padding": padding,
            "strideH": layer.stride[0],
            "strideW": layer.stride[1],
            "dilationHFactor": layer.dilation[0],
            "dilationWFactor": layer.dilation[1],
            "fusedActivationFunction": self._activation(layer.relu),
        }
        after = self._image(layer.name, layer.after)
        if depthwise:
            values["depthMultiplier"] = many // layer.before[0]
            version = self._version(2 if layer.dilation != (1, 1) else 1, 3)
            self._then("DEPTHWISE_CONV_2D", after, "DepthwiseConv2DOptions", constants, version, **values)
        else:
            version = 6 if layer.groups > 1 else self._version(1, 3)
            self._then("CONV_2D", after, "Conv2DOptions", constants, version, **values)

    def _pool(self, layer: Pool | IntPool) -> None:
        values: dict[str, Any] = {
            "padding": self._pad(layer, layer.size, (1, 1)),
            "strideH": layer.stride[0],
            "strideW": layer.stride[1],
            "filterHeight": layer.size[0],
            "filterWidth": layer.size[1],
        }
        code = "MAX_POOL_2D" if layer.kind == "max" else "AVERAGE_POOL_2D"
        after = self._image(layer.name, layer.after)
        self._then(code, after, "Pool2DOptions", version=self._version(1, 2), **values)

    def _weights(self, layer: Conv | IntConv, weight: npt.NDArray[Any], axis: int) -> list[int]:
        """The constants of a layer; what comes after them are numbers of its output."""
        add = self.writer.tensor
        if isinstance(layer, Conv):
            return [
                add(f"{layer.name}/weight", weight.shape, "float32", weight),
                add(f"{layer.name}/bias", layer.bias.shape, "float32", layer.bias),
            ]
        self.numbers = _Numbers.of(layer.output)
        steps = np.float32(layer.input.scale) * layer.scales
        return [
            add(f"{layer.name}/weight", weight.shape, "int8", weight, layer.scales, axis=axis),
            add(f"{layer.name}/bias", layer.bias.shape, "int32", layer.bias, steps),
        ]

    def _pad(self, layer: Conv | Pool | IntConv | IntPool, size: Pair, dilation: Pair) -> int:
        """Pad the last tensor, if the format's own padding is not the layer's, and say which the operator must have."""
        kinds = self.writer.schema.Padding
        if layer.padding == (0, 0):
            return int(kinds.VALID)
        around = [(0, 0)]
        same = True
        for axis in (0, 1):
            before, after = layer.before[axis + 1], layer.after[axis + 1]
            stride, first = layer.stride[axis], layer.padding[axis]
            needed = max((after - 1) * stride + (size[axis] - 1) * dilation[axis] + 1 - before, 0)
            around.append((first, max(needed - first, 0)))
            same = same and after == math.ceil(before / stride) and first == needed // 2
        if same:
            return int(kinds.SAME)
        amounts = np.array([*around, (0, 0)], np.int32)
        constants = [self.writer.tensor(f"{layer.name}/padding", amounts.shape, "int32", amounts)]
        channels, height, width = layer.before
        padded = self._image(f"{layer.name}/padded", (channels, height + sum(around[1]), width + sum(around[2])))
        if isinstance(layer, Conv | IntConv) or self.positive:
            self._then("PAD", padded, "PadOptions", constants, self._version(1, 2))
        else:  # zeros would win over negative numbers
            lowest = np.array([self._version(np.finfo(np.float32).min, -128)])
            constants.append(self._tensor(f"{layer.name}/lowest", [1], lowest))
            self._then("PADV2", padded, "PadV2Options", constants, self._version(1, 2))
        return int(kinds.VALID)

    def _version(self, real: Any, integer: Any) -> Any:  # noqa: ANN401
        """One of two values, by what the last tensor holds."""
        return integer if self.numbers.dtype == "int8" else real

    def _activation(self, relu: bool) -> int:
        kinds = self.writer.schema.ActivationFunctionType
        return int(kinds.RELU if relu else kinds.NONE)

    def _image(self, name: str, shape: Shape) -> int:
        channels, height, width = shape
        return self._tensor(name, [self.batch, height, width, channels])

    def _tensor(self, name: str, shape: Sequence[int], data: npt.NDArray[Any] | None = None) -> int:
        numbers = self.numbers
        return self.writer.tensor(name, shape, numbers.dtype, data, numbers.scale, numbers.zero_point)

    def _then(
        self, code: str, output: int, options: str, constants: Sequence[int] = (), version: int = 1, **values: object
    ) -> None:
        self.writer.operator(code, [self.last, *constants], output, options, version, **values)
        self.last = output
