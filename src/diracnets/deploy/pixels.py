"""Normalization as the first layer of a network, so that it takes pixels."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard
from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain


def with_normalization(model: nn.Module, card: ModelCard) -> nn.Sequential:
    """The network after a 1x1 convolution that normalizes pixels 0..255, given as floats.

    The convolution cannot be merged into the first one of the network: that pads the normalized image with zeros, which
    are pixels of the mean.

    Args:
        model: a chain, whose layers keep their names; or any network.
        card: with the mean and standard deviation of each channel.

    >>> chain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> with_normalization(chain, ModelCard((1, 2, 2), mean=(0.5,), std=(0.25,)))(torch.full((1, 1, 2, 2), 255.0))
    tensor([[2.]])
    """
    channels = card.input_size[0]
    mean, std = torch.tensor(card.mean, dtype=torch.float64), torch.tensor(card.std, dtype=torch.float64)
    layer = nn.Conv2d(channels, channels, 1, groups=channels)
    layer.weight = nn.Parameter((1 / (255 * std)).float().reshape(channels, 1, 1, 1), requires_grad=False)
    layer.bias = nn.Parameter((-mean / std).float(), requires_grad=False)
    layers = OrderedDict(model.named_children()) if isinstance(model, nn.Sequential) else OrderedDict(model=model)
    return nn.Sequential(OrderedDict(normalize=layer, **layers)).eval()


class FromBytes(nn.Module):
    """A network of float pixels that takes them as bytes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [batch, channels, height, width] -> [batch, classes]."""
        return self.network(pixels.float())  # type: ignore[no-any-return]


def taking_pixels(model: nn.Module, card: ModelCard) -> nn.Module:
    """The network with what turns bytes into its input before it, as a module that can be traced.

    >>> chain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> card = ModelCard((1, 2, 2), mean=(0.5,), std=(0.25,))
    >>> taking_pixels(chain, card)(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    tensor([[2.]])
    """
    return FromBytes(with_normalization(model, card)).eval()


def integers_of_pixels(chain: IntegerChain, card: ModelCard) -> IntegerChain:
    """An integer chain after a 1x1 convolution that normalizes pixels, given as int8: pixel - 128.

    The chain's input is then the same as for the normalized image, but where that lies within about 0.01 steps of a tie
    between two integers.

    >>> from diracnets.models.integer import IntPool
    >>> card = ModelCard((1, 2, 2), mean=(0.5,), std=(0.25,))
    >>> step = Quantization(0.02, 0)
    >>> chain = IntegerChain([IntPool("0", "average", (2, 2), (2, 2), (0, 0), step, (1, 2, 2), (1, 1, 1))])
    >>> integers_of_pixels(chain, card).integers(torch.full((1, 1, 2, 2), 255 - 128, dtype=torch.int8))
    tensor([[100]], dtype=torch.int8)
    """
    pixels = Quantization(1 / 255, -128)
    # (pixel - mean) / std = scale * (weight * pixel + bias): of the weights, the one whose bias is the nearest to whole
    mean, std = 255 * np.array(card.mean, np.float64)[:, None], np.array(card.std, np.float64)
    weights = np.arange(64, 128)
    best = np.abs(np.rint(mean * weights) / weights - mean).argmin(1)
    weight, bias = weights[best], -np.rint(mean[:, 0] * weights[best])
    if np.abs(bias).max() >= 2**31:
        raise UsageError(f"a mean of {max(card.mean, key=abs)} is too large for int8 pixels")
    shape, one = chain.input_size, (1, 1)
    layer = IntConv(
        name="normalize",
        weight=weight.astype(np.int8).reshape(-1, 1, 1, 1),
        scales=(1 / (std * weight)).astype(np.float32),
        bias=bias.astype(np.int32),
        input=pixels,
        output=chain.input,
        relu=False,
        before=shape,
        after=shape,
        stride=one,
        padding=(0, 0),
        dilation=one,
        groups=len(weight),
    )
    return IntegerChain([layer, *chain.layers])
