"""Sprint: a shallow, wide chain for CIFAR-size images, shaped to be trained as fast as can be."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from diracnets.models.diracnet import DiracNet
from diracnets.models.network import Spec, stem_conv
from diracnets.models.start import Start

STEM_WIDTH = 24
WIDTHS = (64, 64, 256, 256, 256, 256)  # channels of each block at width 1
DEPTHS = (1, 2, 2, 1)  # blocks of each group


class Sprint(DiracNet):
    """Six blocks, most of their work done at half and a quarter of the image's size, and global max-pooling.

    The widths are those of the network of cifar10-airbench (Jordan 2024), which has GELUs, filters of the images'
    statistics that are not trained as its stem, and pooling between convolution and batch norm; here all is trained,
    and the chain is one of convolutions and ReLUs. The stem does not pad: images of 32x32 give maps of 30, 15, 7 and 3.

    >>> from diracnets.models.registry import create_model
    >>> sum(p.numel() for p in create_model("diracnet-sprint").parameters())
    1975490
    """


def sprint(depth: int, widths: Sequence[int], start: Start, spec: Spec) -> Sprint:
    """The network with the channels of the stem and of each block; its depth is always the same."""
    stem_width, *blocks = widths
    conv = stem_conv(spec.input_size[0], stem_width, padding=0)
    stem = nn.Sequential(OrderedDict(conv=conv, bn=start.norm(stem_width)))
    taken = iter(blocks)
    groups = [[next(taken) for _ in range(depth)] for depth in DEPTHS]
    final = nn.Sequential(OrderedDict(relu=nn.ReLU(inplace=False), pool=nn.AdaptiveMaxPool2d(1)))
    return Sprint(stem, stem_width, groups, start, spec, min_image_size=10, final=final)
