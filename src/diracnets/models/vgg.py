"""VGG-16 and -19 with batch norm for images of CIFAR's size, which DiracNets are compared with.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556, with the
classifier that networks for CIFAR have: one linear layer after the last pooling, instead of three.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from diracnets.models.diracnet import DiracNet, cifar_stem
from diracnets.models.initializer import Initializer
from diracnets.models.network import Spec, pooling

WIDTHS = (64, 128, 256, 512, 512)  # channels of each group at width 1
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions of each group, the stem's among them


class VGG(DiracNet):
    """The chain of a plain network with VGG's widths: five groups of 3x3 convolutions, pooling after each.

    VGG-16 has 14,724,042 parameters for 10 classes, VGG-19 20,035,018. The paper's table says VGG-16 and 20M: no head
    on 13 convolutions that is usual for CIFAR has as many, VGG-19 has. Which of them was meant cannot be known.

    >>> from diracnets.models.build import build_model
    >>> sum(p.numel() for p in build_model("vgg-16").parameters())
    14724042
    """


def vgg(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> VGG:
    """VGG-16 or -19; the last of its five poolings leaves 1x1 of images of 32x32."""
    stem = cifar_stem(spec.input_size[0], widths[0], init)
    final = pooling(spec.pool)
    if spec.pool == "max":
        final = nn.Sequential(OrderedDict(pool=final, relu=nn.ReLU(inplace=False)))
    (_, *first), *others = ([width] * depth for width, depth in zip(widths, DEPTHS[depth], strict=True))
    return VGG(stem, widths[0], [first, *others], init, spec, min_image_size=32, final=final)
