"""Normalization as the first layer of a network, so that it takes pixels."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard


def with_normalization(model: nn.Module, card: ModelCard) -> nn.Sequential:
    """The network behind a 1x1 convolution that normalizes pixels 0..255, given as floats.

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
