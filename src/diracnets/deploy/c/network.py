"""A chain as C needs it: its layers as steps, and its weights in the order in which the code reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.c.step import Kind, Step
from diracnets.deploy.graph import Conv, Layer, Linear, Pool, layers_of
from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLayer, IntLinear, IntPool

Array: TypeAlias = npt.NDArray[Any]
BLOCK = 16  # outputs whose sums are computed side by side
LARGEST = 2**16 - 1  # of what the tables hold in 16 bits


@dataclass(frozen=True, eq=False)
class CNetwork:
    """What is written in C.

    Args:
        layers: of the chain, of floats or of integers.
        steps: the same as the memory plan sees them.
        weights: int8 or float32 [n] of all layers, in the order of reading.
        biases: int32 or float32 [outputs of all layers].
        multipliers: int32, as `biases`; empty for floats.
        shifts: int8, as `biases`; empty for floats.
    """

    layers: Sequence[Layer | IntLayer]
    steps: tuple[Step, ...]
    weights: Array
    biases: Array
    multipliers: Array
    shifts: Array

    @property
    def input(self) -> Quantization | None:
        """Of an image; None for floats."""
        return None if isinstance(first := self.layers[0], Layer) else first.input

    @property
    def output(self) -> Quantization | None:
        """Of the outputs; None for floats."""
        return None if isinstance(last := self.layers[-1], Layer) else last.output

    @property
    def integers(self) -> bool:
        """Whether it computes in int8."""
        return self.weights.dtype == np.int8

    def taps(self, step: Step) -> int:
        """Inputs that are gathered for an output at a time: a multiple of 4 for floats, which are added 4 at a time."""
        return step.taps if self.integers else -(-step.taps // 4) * 4


def network_of(model: nn.Module, card: ModelCard) -> CNetwork:
    """A chain of floats or integers, ready to be written.

    Raises:
        UsageError: a layer that cannot be written, named; sides that are too large.
    """
    layers: Sequence[Layer | IntLayer] = model.layers if isinstance(model, IntegerChain) else layers_of(model, card)
    if not layers:
        raise UsageError("a chain without layers computes nothing that could be written in C")
    width = 1 if isinstance(model, IntegerChain) else 4
    steps = tuple(_step(layer, width) for layer in layers)
    for step in steps:
        numbers = (*step.before, *step.after, *step.size, *step.stride, *step.padding, *step.dilation)
        if max(numbers) > LARGEST or max(step.before_size, step.after_size) > 2**30:
            raise UsageError(f"layer {step.name} is too large for C: {step.before} to {step.after}")
    weighted = [layer for layer in layers if not isinstance(layer, Pool | IntPool)]
    integers = [layer for layer in weighted if isinstance(layer, IntConv | IntLinear)]
    kind = np.int8 if width == 1 else np.float32
    return CNetwork(
        layers,
        steps,
        np.concatenate([np.zeros(0, kind), *(_in_order(layer) for layer in weighted)]),
        np.concatenate([np.zeros(0, np.int32 if width == 1 else np.float32), *(layer.bias for layer in weighted)]),
        np.concatenate([np.zeros(0, np.int32), *(layer.multipliers[0] for layer in integers)]),
        np.concatenate([np.zeros(0, np.int8), *(layer.multipliers[1].astype(np.int8) for layer in integers)]),
    )


def _step(layer: Layer | IntLayer, width: int) -> Step:
    if isinstance(layer, Pool | IntPool):
        kind: Kind = "max" if layer.kind == "max" else "average"
        return Step(layer.name, kind, layer.before, layer.after, layer.size, layer.stride, layer.padding, width=width)
    if isinstance(layer, Linear | IntLinear):
        whole = layer.before[1:]
        return Step(layer.name, "linear", layer.before, layer.after, whole, whole, width=width)
    size = (layer.weight.shape[2], layer.weight.shape[3])
    geometry = (size, layer.stride, layer.padding, layer.dilation, layer.groups, width)
    return Step(layer.name, "conv", layer.before, layer.after, *geometry)


def _in_order(layer: Conv | Linear | IntConv | IntLinear) -> Array:
    rows: Array
    if isinstance(layer, Conv | IntConv):
        rows = layer.weight.transpose(0, 2, 3, 1).reshape(layer.groups, len(layer.weight) // layer.groups, -1)
    else:  # as many parts as the input has rows
        image = layer.weight.reshape(-1, *layer.before).transpose(2, 0, 3, 1)  # [height, out, width, channels]
        rows = image.reshape(*image.shape[:2], -1)
    if rows.dtype == np.int8:
        return np.ravel(rows)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4)))
    blocks = [
        rows[:, begin : begin + BLOCK].transpose(0, 2, 1) for begin in range(0, rows.shape[1] // BLOCK * BLOCK, BLOCK)
    ]
    blocks.append(rows[:, rows.shape[1] // BLOCK * BLOCK :].transpose(0, 2, 1))
    return np.concatenate([block.reshape(len(rows), -1) for block in blocks], axis=1).ravel()
