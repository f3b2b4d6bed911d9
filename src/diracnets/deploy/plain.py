"""A chain with the few layers that converters of other packages know: pooling of a fixed size, or none at all."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy.graph import Pool, layers_of
from diracnets.errors import UsageError


def with_fixed_pooling(chain: nn.Module, card: ModelCard) -> nn.Sequential:
    """The chain with `AvgPool2d` of the whole map in place of `AdaptiveAvgPool2d`, for images of the card's size.

    Args:
        chain: of layers that `layers_of` knows.
        card: of the chain; it is that of the result too.

    Returns:
        A chain with the same names and values, in evaluation mode. It shares the other layers with `chain`.

    Raises:
        UsageError: not a chain, or one with other layers.

    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> with_fixed_pooling(chain, ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)))[2]
    AvgPool2d(kernel_size=(6, 6), stride=(6, 6), padding=0)
    """
    return _replaced(chain, card, {name: nn.AvgPool2d(pool.size) for name, pool in _adaptive(chain, card).items()})


def with_convolutions_for_pooling(chain: nn.Module, card: ModelCard) -> nn.Sequential:
    """The chain with a convolution in place of each average pooling, so that only Conv, ReLU and Linear are left.

    Verifiers such as Marabou 2.0 take no average pooling, and no groups of channels: each convolution has all filters,
    zero but for 1 / (height * width) from a channel to itself.

    Args:
        chain: of layers that `layers_of` knows, such as that of a network with `pool="average"`.
        card: of the chain; it is that of the result too.

    Returns:
        A chain with the same names and, up to rounding, values, in evaluation mode. It shares the other layers.

    Raises:
        UsageError: not a chain, one with other layers, or one with max pooling, which no convolution computes.

    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> with_convolutions_for_pooling(chain, ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)))[2]
    Conv2d(4, 4, kernel_size=(6, 6), stride=(6, 6))
    """
    convs: dict[str, nn.Module] = {}
    for name, pool in _pools(chain, card).items():
        if pool.kind != "average":
            raise UsageError(
                f"layer {name} takes the maximum, which no convolution computes: train a network with pool average"
            )
        channels = pool.before[0]
        conv = nn.Conv2d(channels, channels, pool.size, stride=pool.stride)
        weight = torch.zeros_like(conv.weight)  # [out, in, height, width]
        weight[range(channels), range(channels)] = 1 / (pool.size[0] * pool.size[1])
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        convs[name] = conv
    return _replaced(chain, card, convs)


def _pools(chain: nn.Module, card: ModelCard) -> dict[str, Pool]:
    return {layer.name: layer for layer in layers_of(chain, card) if isinstance(layer, Pool)}


def _adaptive(chain: nn.Module, card: ModelCard) -> dict[str, Pool]:
    pools = _pools(chain, card)
    return {name: pool for name, pool in pools.items() if isinstance(chain.get_submodule(name), nn.AdaptiveAvgPool2d)}


def _replaced(chain: nn.Module, card: ModelCard, layers: dict[str, nn.Module]) -> nn.Sequential:
    made = nn.Sequential(OrderedDict((name, layers.get(name, layer)) for name, layer in chain.named_children())).eval()
    attach_card(made, card)
    return made
