"""Sprint: a shallow, wide chain for CIFAR-size images, shaped to be trained as fast as can be."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from diracnets.models.diracnet import DiracNet
from diracnets.models.initializer import Initializer
from diracnets.models.network import Spec, stem_conv

WIDTHS = (24, 64, 64, 256, 256, 256, 256, 256)  # channels of the stem and of each block at width 1
DEPTHS = (1, 2, 2, 2)  # blocks of each group


class Sprint(DiracNet):
    """Seven blocks, most of their work done at a half and a quarter of the image's size.

    The widths are those of the network of cifar10-airbench (Jordan 2024), which is a chain too, with GELUs, a stem of
    the images' principal components that is not trained, and one block fewer: the last one here works on maps of 3x3
    and costs little. The stem is initialized to the cosine transform of 2x2 patches, which is near to those components
    for any photographs, and its negative; a recipe's `stem_lr` of 0 keeps it so. It does not pad: images of 32x32 give
    maps of 31, 15, 7 and 3. Where a group ends, pooling comes before the batch norm, which then costs a quarter; as the
    norm's weights are positive, the chain is the same. BatchNorm weights are not trained but stay at 1: `alpha` and
    `beta` scale each filter already, where the convolutions are Dirac ones, and biases alone learn at rates that
    weights would not stand.

    >>> from diracnets.models.build import build_model
    >>> sum(p.numel() for p in build_model("diracnet-sprint").parameters())
    2565978
    """


def sprint(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> Sprint:
    """The network with the channels of the stem and of each block; its depth is always the same."""
    init = replace(init, scale=1.0)
    stem_width, *blocks = widths
    conv = stem_conv(spec.input_size[0], stem_width, size=2, padding=0)
    if not conv.weight.is_meta:
        patterns = cosine_patterns(spec.input_size[0], size=2).to(conv.weight)
        signed = torch.stack([patterns, -patterns], dim=1).flatten(0, 1)[:stem_width]
        with torch.no_grad():
            conv.weight[: len(signed)] = signed  # a wider stem keeps what was drawn for the others
    stem = nn.Sequential(OrderedDict(conv=conv, bn=init.norm(stem_width)))
    taken = iter(blocks)
    groups = [[next(taken) for _ in range(count)] for count in DEPTHS]
    net = Sprint(stem, stem_width, groups, init, spec, min_image_size=9, pool_first=True)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
    return net


def cosine_patterns(channels: int, size: int) -> Tensor:
    """The orthonormal patterns of the discrete cosine transform of patches, the smoothest first.

    Args:
        channels: of the images; for colours the transform gives brightness and two differences.
        size: height and width of the patches.

    Returns:
        [channels * size * size, channels, size, size].

    >>> patterns = cosine_patterns(3, 2)
    >>> torch.allclose(patterns.flatten(1) @ patterns.flatten(1).T, torch.eye(12), atol=1e-6)
    True
    """
    waves = [_waves(count) for count in (channels, size, size)]  # [frequency, place]
    patterns = torch.einsum("ia,jb,kc->ijkabc", *waves)
    frequencies = torch.cartesian_prod(*(torch.arange(count) / count for count in (channels, size, size))).sum(dim=1)
    return patterns.flatten(0, 2)[frequencies.argsort(stable=True)]


def _waves(count: int) -> Tensor:
    """The orthonormal cosine transform of `count` numbers, [frequency, place]."""
    places, frequencies = torch.arange(count) + 0.5, torch.arange(count)
    return nn.functional.normalize(torch.cos(math.pi / count * frequencies[:, None] * places))
