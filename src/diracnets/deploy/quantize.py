"""`quantize`: a chain in int8 that computes nearly the same, from a few real images and without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diracnets.artifacts.card import ModelCard, attach_card, card_of
from diracnets.artifacts.chain import to_chain
from diracnets.artifacts.load import load_as_stored
from diracnets.data.images import ImageData
from diracnets.deploy.equalize import equalize
from diracnets.deploy.graph import Array, Conv, Layer, Linear, Pool, layers_of
from diracnets.deploy.integer import Weights, apply, check_images, integer_chain, pixel_range
from diracnets.deploy.rounding import extents, pairings, reconstructed
from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntegerChain
from diracnets.models.network import Network

_ROWS = 2**15  # inputs of a layer that its weights are rounded by
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)  # parts of the range of activations that are tried


@dataclass(frozen=True)
class LayerQuality:
    """How well a layer's integers stand for it.

    Args:
        name: of the layer.
        filter: signal to noise in dB of its weights without those on the diagonal (all, where it has none).
        zeros: which part of these weights, if not zero before, is zero now.
        output: signal to noise in dB of its output on the calibration images, with all errors of the layers before it.
    """

    name: str
    filter: float
    zeros: float
    output: float


@dataclass(frozen=True)
class Quantized:
    """What `quantize` gives.

    Args:
        chain: in integers, with its `card`.
        layers: how well each is represented.
        images: on how many images it was calibrated.
        agreement: on which part of these the quantized and the float chain have the same likeliest class.
    """

    chain: IntegerChain
    layers: tuple[LayerQuality, ...]
    images: int
    agreement: float

    def __repr__(self) -> str:
        return (
            f"<Quantized chain of {len(self.layers)} layers: {self.agreement:.2%} of {self.images:,} predictions are "
            "those of the float chain>"
        )


@torch.no_grad()
def quantize(
    model: nn.Module | str | Path,
    data: ImageData | Tensor,
    *,
    images: int = 256,
    bits: int = 8,
    per_channel: bool = True,
    saturation_safe: bool = True,
    card: ModelCard | None = None,
    on_layer: Callable[[LayerQuality], None] | None = None,
) -> Quantized:
    """Turn a chain into integers: int8 activations, weights of `bits` bits, int32 sums and biases.

    Channels are scaled between layers (`equalize`). Then, from the first layer to the last, weights are rounded so that
    the layer's output changes least on the inputs that the quantized layers before it give (`reconstructed`), the bias
    makes up for what is left in the mean, and the range of the output is the one with the least squared error.

    Args:
        model: a chain, or a file or name that `load` reads, which is folded first.
        data: what it was trained on; the images come from the training part, not augmented. Or images themselves,
            normalized, float32 [N, channels, height, width].
        images: how many to calibrate on.
        bits: of the weights, 2 to 8. They are kept as int8 in any case.
        per_channel: a scale for each output channel of a convolution; otherwise one for the layer. A fully connected
            layer has one in any case, as many kernels have it.
        saturation_safe: choose integers for which no kernel that adds two products in 16 bits saturates, as those of
            ONNX Runtime and OpenVINO do on x86 processors without VNNI: see `pairings`.
        card: of a chain that has no `card` itself.
        on_layer: called after each layer.

    Returns:
        The integer chain and a report.

    Raises:
        UsageError: a network with branches or a layer that is not known, named; no card; no images or of another size;
            an impossible number.
        FileError: a file that cannot be read.

    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> images = torch.rand(64, 1, 8, 8) * 2 - 1
    >>> quantized = quantize(chain, images, card=ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)))
    >>> bool((quantized.chain(images) - chain(images)).abs().max() < 0.05)
    True
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"bits is {bits}; it must be from 2 to 8")
    if images < 1:
        raise UsageError(f"images is {images}; it must be at least 1")
    chain, card = _chain(model, card)
    layers = equalize(layers_of(chain, card))
    x = data[:images].float().cpu() if isinstance(data, Tensor) else _images(data, images)
    check_images(x, card)

    steps = [Quantization.of_range(*pixel_range(card))]
    y = steps[0].real(steps[0].integers(x))  # what the quantized layers make of x, where x is what the float layers do
    weights: list[Weights | None] = []
    made: list[Layer] = []
    qualities: list[LayerQuality] = []
    for layer in layers:
        if isinstance(layer, Pool):
            x, y = apply(layer, x), apply(layer, y)
            y = steps[-1].real(steps[-1].integers(y))
            made.append(layer)
            weights.append(None)
            steps.append(steps[-1])
            continue
        integers, scales = _rounded(layer, y, bits, per_channel, saturation_safe)
        real = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))
        wanted = apply(replace(layer, relu=False), x)
        found = apply(replace(layer, relu=False, weight=real), y)
        shift = (wanted - found).mean((0, 2, 3))
        mended = replace(layer, weight=real, bias=layer.bias + shift.numpy())
        found += shift[:, None, None]
        quality = LayerQuality(layer.name, *_filter_quality(layer, real), _decibels(wanted, found - wanted))
        x, y = (each.relu_() if layer.relu else each for each in (wanted, found))
        steps.append(best_range(x))
        y = steps[-1].real(steps[-1].integers(y))
        made.append(mended)
        weights.append((integers, scales))
        qualities.append(quality)
        if on_layer is not None:
            on_layer(quality)
    result = integer_chain(made, weights, steps)
    attach_card(result, _card(card, bits, per_channel, len(x)))
    same = x.flatten(1).argmax(1) == y.flatten(1).argmax(1)
    return Quantized(result, tuple(qualities), len(x), float(same.double().mean()))


def best_range(x: Tensor) -> Quantization:
    """The quantization of activations with the least squared error: the ends may be cut off.

    >>> x = torch.cat([torch.linspace(0, 1, 100_000), torch.tensor([2.0])])
    >>> best_range(x).scale < 2 / 255
    True
    """
    low, high = float(x.min()), float(x.max())
    some = x.flatten()[:: max(1, x.numel() // 2**20)]
    tried = [Quantization.of_range(clip * low, clip * high) for clip in _CLIPS]
    errors = [float((each.real(each.integers(some)) - some).square().mean()) for each in tried]
    return tried[int(np.argmin(errors))]


def _chain(model: nn.Module | str | Path, card: ModelCard | None) -> tuple[nn.Module, ModelCard]:
    given = load_as_stored(model) if isinstance(model, str | Path) else model
    if isinstance(given, IntegerChain):
        raise UsageError("this chain is in int8 already: quantize the float one")
    if isinstance(given, Network):
        if not given.is_chain:
            name = given.config["name"]
            raise UsageError(f"{name} has branches, and only chains can be quantized: those of a {name} do not fold")
        given = to_chain(given)
    card = card or card_of(given)
    if card is None:
        raise UsageError("the model has no card, which says what images it takes: give card=ModelCard(...)")
    return given, card


def _images(data: ImageData, count: int) -> Tensor:
    """The first images of the training part, normalized."""
    few = data.train.select(range(min(count, len(data.train))))
    batches = [batch.cpu() for batch, _, _ in few.batches(256)]
    return torch.cat(batches).float() if batches else torch.empty(0, *data.input_size)


def _card(card: ModelCard, bits: int, per_channel: bool, images: int) -> ModelCard:
    before = dict(card.provenance)
    told = {"weight_bits": bits, "per_channel": per_channel, "calibration_images": images}
    if "accuracy" in before:
        told["accuracy_in_float32"] = before.pop("accuracy")
    return replace(card, provenance={**before, "quantization": told})


def _rounded(layer: Conv | Linear, y: Tensor, bits: int, per_channel: bool, safe: bool) -> Weights:
    """Each group's weights, rounded by the inputs that they get."""
    groups = layer.groups if isinstance(layer, Conv) else 1
    shared = not per_channel or isinstance(layer, Linear)
    weight = torch.from_numpy(layer.weight).double().flatten(1)
    factors = {} if groups == 1 or not shared else {"factors": (1.0,)}  # one scale for all groups
    partners = pairings(layer.weight.shape[1:]) if safe and bits == 8 else None  # fewer bits cannot saturate
    parts = []
    for rows, inputs in zip(weight.chunk(groups), y.chunk(groups, 1), strict=True):
        patches = _patches(layer, inputs)
        moments = (patches.T @ patches).double() / len(patches)
        largest = extents(weight, partners).max() if shared else None
        parts.append(reconstructed(rows, moments, bits, largest=largest, partners=partners, **factors))
    integers = torch.cat([part for part, _ in parts]).to(torch.int8).reshape(layer.weight.shape)
    scales = parts[0][1] if shared else torch.cat([part for _, part in parts])
    return integers.numpy(), scales.numpy()


def _patches(layer: Conv | Linear, y: Tensor) -> Tensor:
    """[patches, in * height * width]: what single outputs see, evenly chosen where there are too many."""
    if isinstance(layer, Linear):
        return y.flatten(1)
    every = max(1, round((len(y) * layer.after[1] * layer.after[2] / _ROWS) ** 0.5))
    stride = (layer.stride[0] * every, layer.stride[1] * every)
    columns = functional.unfold(y, layer.weight.shape[2:], layer.dilation, layer.padding, stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _filter_quality(layer: Conv | Linear, real: Array) -> tuple[float, float]:
    before, after = (torch.from_numpy(each).double() for each in (layer.weight, real))
    small = torch.ones_like(before, dtype=torch.bool)
    if isinstance(layer, Conv) and layer.groups == 1 and before.shape[0] == before.shape[1]:
        small[:, :, before.shape[2] // 2, before.shape[3] // 2].fill_diagonal_(False)
    before, after = before[small], after[small]
    lost = ((after == 0) & (before != 0)).sum() / (before != 0).sum().clamp(min=1)
    return _decibels(before, after - before, centered=False), float(lost)


def _decibels(signal: Tensor, noise: Tensor, centered: bool = True) -> float:
    if centered:
        signal = signal - signal.mean((0, 2, 3), keepdim=True)
    ratio = signal.double().square().sum() / noise.double().square().sum().clamp(min=1e-30)
    return float(10 * ratio.clamp(min=1e-30).log10())
