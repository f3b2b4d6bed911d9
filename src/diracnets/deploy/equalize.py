"""Cross-layer equalization: channels are scaled between layers so that one step of quantization suits all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from diracnets.deploy.graph import Array, Conv, Layer, Linear, Pool


def equalize(layers: Sequence[Layer], sweeps: int = 40) -> tuple[Layer, ...]:
    """Layers that compute the same, each channel with equally large weights before and after it.

    A channel that is multiplied by a positive number passes ReLU and pooling unchanged but for that number, so that the
    next layer can divide by it. Nagel et al. 2019 (arXiv:1906.04721), eq. 11. Channels between layers without ReLU are
    scaled too; those of grouped convolutions are left alone.

    Args:
        layers: of `layers_of`.
        sweeps: how often all layers are gone through; what one changes the others see in the next.

    >>> weight, one, two = np.float32([[[[8]]], [[[2]]]]), (1, 1, 1), (2, 1, 1)
    >>> first = Conv("a", weight, np.float32([8, 2]), (1, 1), (0, 0), (1, 1), 1, True, one, two)
    >>> second = Linear("b", np.float32([[2, 2]]), np.float32([0]), False, two, one)
    >>> [layer.weight.ravel().tolist() for layer in equalize([first, second])]
    [[4.0, 2.0], [4.0, 2.0]]
    """
    made = list(layers)
    weighted = [index for index, layer in enumerate(made) if not isinstance(layer, Pool)]
    pairs = [(one, two) for one, two in pairwise(weighted) if _scales(made[one], made[two])]
    for _ in range(sweeps):
        for one, two in pairs:
            first, second = made[one], made[two]
            assert not isinstance(first, Pool)
            assert not isinstance(second, Pool)
            out = np.abs(first.weight).reshape(len(first.weight), -1).max(1)
            into = np.abs(_by_input(second)).max((1, 2))
            with np.errstate(divide="ignore", invalid="ignore"):
                by = np.sqrt(into / out)
            by = np.where(np.isfinite(by) & (by > 0), by, 1).astype(np.float32)  # of a channel that is all zero
            made[one] = replace(
                first, weight=first.weight * by.reshape(-1, *[1] * (first.weight.ndim - 1)), bias=first.bias * by
            )
            made[two] = replace(
                second, weight=(_by_input(second) / by[:, None, None]).swapaxes(0, 1).reshape(second.weight.shape)
            )
    return tuple(made)


def _scales(first: Layer, second: Layer) -> bool:
    return not (isinstance(second, Conv) and second.groups > 1) and not isinstance(first, Pool)


def _by_input(layer: Conv | Linear) -> Array:
    """[in, out, the rest] of the weights; those of a Linear by channel of the image that it flattens."""
    return layer.weight.reshape(len(layer.weight), layer.before[0], -1).swapaxes(0, 1)
