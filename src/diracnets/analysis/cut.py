"""Shorter chains: a layer close to the identity is removed, and a linear approximation of it joins the layer before."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diracnets.errors import UsageError
from diracnets.folding.chain import CARRIED

MOST_SCALE = 10.0  # largest factor for a channel: one that hardly varies is mostly rounding errors


@dataclass(frozen=True)
class Candidate:
    """A layer (ReLU and convolution) that can be removed from a chain, and the linear function that replaces it."""

    layer: str
    """The name of its convolution."""
    explained: float
    """Share of its output's variance that the linear function explains, over all channels; 1 for an identity."""
    before: str
    """The name of the convolution before it, which takes in the linear function."""
    relu: str
    """The name of its ReLU."""
    slope: Tensor
    """[channels], not negative."""
    intercept: Tensor
    """[channels]."""


@torch.no_grad()
def candidates(chain: nn.Sequential, images: Tensor) -> list[Candidate]:
    """The layers that can be removed from a chain, the closest to the identity first.

    A layer can be removed if its output has the size of its input, and if only max-pooling lies between its ReLU and
    the convolution before. How close it is to the identity is measured on images: for each channel, its output is
    approximated by a linear function of its ReLU's input.

    Args:
        chain: as `fold` makes it, on the device of `images`.
        images: normalized, [batch, channels, height, width].

    Raises:
        UsageError: `chain` is not a chain.

    >>> chain = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    >>> _ = nn.init.dirac_(chain[2].weight)
    >>> found, = candidates(chain, torch.randn(8, 1, 5, 5))
    >>> found.layer, found.before, 0.5 < found.explained < 1
    ('2', '0', True)
    """
    if not isinstance(chain, nn.Sequential):
        raise UsageError(f"a {type(chain).__name__} is not a chain, so no layer can be removed from it: fold it first")
    found: list[Candidate] = []
    before: str | None = None  # the last convolution, while nothing but pooling has followed it
    relu: tuple[str, str, Tensor] | None = None  # the last layer's name, the convolution before it, and its input
    x = images
    for name, layer in chain.named_children():
        came = x.clone() if isinstance(layer, nn.ReLU) and layer.inplace else x
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            if relu is not None and relu[2].shape == y.shape:
                found.append(_fitted(name, relu[0], relu[1], relu[2], y))
            before, relu = name, None
        elif isinstance(layer, nn.ReLU) and before is not None:
            relu = (name, before, came)
            before = None
        elif not isinstance(layer, nn.MaxPool2d):
            before, relu = None, None
        else:
            relu = None
        x = y
    return sorted(found, key=lambda candidate: -candidate.explained)


def without(chain: nn.Sequential, candidate: Candidate) -> nn.Sequential:
    """A copy of a chain without one layer, whose linear function becomes part of the convolution before.

    It computes the same if the layer was exactly that function of its ReLU's input.

    Args:
        chain: the one that was given to `candidates`.
        candidate: one of those that it found.

    Raises:
        UsageError: it is another chain.
    """
    layers = OrderedDict(
        (name, copy.deepcopy(layer))
        for name, layer in chain.named_children()
        if name not in (candidate.layer, candidate.relu)
    )
    layers[candidate.before] = _with_line(layers.get(candidate.before), candidate.slope, candidate.intercept)
    shorter = nn.Sequential(layers)
    for name in CARRIED:
        if name in chain.__dict__:
            shorter.__dict__[name] = chain.__dict__[name]
    return shorter.train(chain.training)


Statistics = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def output_statistics(chain: nn.Sequential, images: Tensor) -> Statistics:
    """Mean and standard deviation, [channels] each, of every convolution's output, after any max-pooling."""
    found: Statistics = {}

    def keep(name: str, conv: nn.Conv2d, y: Tensor) -> Tensor:
        found[name] = (y.mean((0, 2, 3)), y.std((0, 2, 3)))
        return y

    _walk(chain, images, keep)
    return found


@torch.no_grad()
def settle(chain: nn.Sequential, images: Tensor, wanted: Statistics) -> None:
    """Scale and shift the channels of all convolutions in place, so that their outputs have the given statistics.

    This does for a chain what recalibrating BatchNorm does for a network.

    Args:
        chain: from which layers were removed.
        images: on which the statistics were measured.
        wanted: the statistics, by the names of the convolutions.
    """

    def adjust(name: str, conv: nn.Conv2d, y: Tensor) -> Tensor:
        (mean, std), (own_mean, own_std) = wanted[name], (y.mean((0, 2, 3)), y.std((0, 2, 3)))
        alive = own_std > torch.finfo(torch.float32).eps * std
        slope = torch.where(alive, std / own_std, 1.0).clamp(1 / MOST_SCALE, MOST_SCALE)
        intercept = mean - slope * own_mean
        _with_line(conv, slope, intercept)
        return slope[:, None, None] * y + intercept[:, None, None]

    _walk(chain, images, adjust)


def _walk(chain: nn.Sequential, images: Tensor, at: Callable[[str, nn.Conv2d, Tensor], Tensor]) -> None:
    """Run a chain; `at` is given each convolution and its output, after any pooling, and returns the output to use."""
    x, last = images, None
    for name, layer in (*chain.named_children(), ("", nn.Identity())):
        if last is not None and not isinstance(layer, nn.MaxPool2d):
            x, last = at(*last, x), None
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            last = (name, layer)


@torch.no_grad()
def _with_line(conv: nn.Module | None, slope: Tensor, intercept: Tensor) -> nn.Module:
    """A convolution, changed in place to give slope y + intercept where it gave y."""
    if not isinstance(conv, nn.Conv2d):
        raise UsageError("this is not the chain in which the layer was found")
    slope, intercept = slope.to(conv.weight), intercept.to(conv.weight)
    conv.weight.mul_(slope[:, None, None, None])
    bias = intercept if conv.bias is None else intercept + slope * conv.bias
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    return conv


def _fitted(name: str, relu: str, before: str, x: Tensor, y: Tensor) -> Candidate:
    """For each channel, the least-squares fit y = slope x + intercept, with a slope of at least 0."""
    x, y = (side.transpose(0, 1).flatten(1).double() for side in (x, y))  # [channels, values]
    x_mean, y_mean = x.mean(1), y.mean(1)
    x, y = x - x_mean[:, None], y - y_mean[:, None]
    tiny = torch.finfo(torch.float32).tiny
    slope = ((x * y).sum(1) / x.square().sum(1).clamp(min=tiny)).clamp(min=0)
    missed = (y - slope[:, None] * x).square().sum() / y.square().sum().clamp(min=tiny)
    return Candidate(name, 1 - float(missed), before, relu, slope, y_mean - slope * x_mean)
