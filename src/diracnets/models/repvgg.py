"""RepVGG, another network that trains with branches and runs as a chain: RepVGG-A0 and -B0, and in DiracNet's shape.

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", arXiv 2101.03697. It is here to compare with. `fold`
takes only its batch norms away; `merged` makes one convolution of the branches of each block, so that `fold` then gives
a chain.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diracnets.errors import UsageError
from diracnets.folding.fuse import scale_and_shift, with_tensors
from diracnets.models.diracnet import cifar_stem
from diracnets.models.initializer import Initializer
from diracnets.models.network import Network, Spec, pooling, stem_conv
from diracnets.models.resnet import subsampling

SIZES = {  # of A0 and B0, by the number of their blocks: the blocks and channels of each group, and those of the stem
    22: ((2, 4, 14, 1), (48, 96, 192, 1280), 48),
    28: ((4, 6, 16, 1), (64, 128, 256, 1280), 64),
}


class RepBlock(nn.Module):
    """A ReLU, followed by the sum of a 3x3 convolution, a 1x1 convolution and the identity, each with a batch norm.

    [batch, in, height, width] -> [batch, out, height / stride, width / stride], rounded up. Where the shape changes
    there is no identity. The ReLU comes before the sum, as in a DiracNet's block, which makes the same chain of blocks.

    Args:
        channels_in, channels_out: of the sum.
        init: makes its layers.
        stride: of the convolutions.
        stem: whether it is the network's first block, which has no ReLU before it and no identity.
    """

    def __init__(
        self, channels_in: int, channels_out: int, init: Initializer, stride: int = 1, stem: bool = False
    ) -> None:
        super().__init__()
        conv = stem_conv if stem else init.conv
        self.relu = nn.Identity() if stem else nn.ReLU(inplace=False)
        self.conv3 = conv(channels_in, channels_out, stride=stride)
        self.bn3 = init.norm(channels_out)  # the one whose shift is that of the sum
        self.subsample = None if stride == 1 else subsampling(stride)
        self.conv1 = conv(channels_in, channels_out, size=1)
        self.bn1 = init.norm(channels_out, shifted=False)
        same = channels_in == channels_out and stride == 1 and not stem
        self.identity = init.norm(channels_out, shifted=False) if same else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        x = self.relu(x)
        kept = x if self.subsample is None else self.subsample(x)
        total = self.bn3(self.conv3(x)) + self.bn1(self.conv1(kept))
        return total if self.identity is None else total + self.identity(x)  # type: ignore[no-any-return]

    def merged(self) -> nn.Sequential:
        """The ReLU and one 3x3 convolution that computes the sum of the branches, in evaluation mode."""
        scale, bias = scale_and_shift(self.bn3)
        weight = self.conv3.weight.double() * scale.double().view(-1, 1, 1, 1)  # [out, in, 3, 3]
        scale, shift = scale_and_shift(self.bn1)
        weight = weight + F.pad(self.conv1.weight * scale.double().view(-1, 1, 1, 1), (1, 1, 1, 1))
        bias = bias.double() + shift
        if self.identity is not None:
            scale, shift = scale_and_shift(self.identity)
            weight[:, :, 1, 1] += torch.diag(scale)
            bias = bias + shift
        dtype = self.conv3.weight.dtype
        return nn.Sequential(self.relu, with_tensors(self.conv3, weight.to(dtype), bias.to(dtype))).eval()


class RepVGG(Network):
    """Groups of `RepBlock`s.

    Made by `build_model`, which knows the sizes.

    >>> from diracnets.models.build import build_model
    >>> sum(p.numel() for p in build_model("repvgg-16-1").parameters())
    193050
    """


def cifar_repvgg(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> RepVGG:
    """RepVGG of the depth and widths of DiracNet-N-k, `depth` N = 6n + 4."""
    stem = cifar_stem(spec.input_size[0], widths[0], init)
    count = (depth - 4) // 3
    channels = [widths[0], *(width for width in widths for _ in range(count))]  # before each block, and after the last
    inits = [init] * (len(channels) - 2) + [init.before_classifier(widths[-1])]
    blocks = [RepBlock(*sizes, init) for sizes, init in zip(pairwise(channels), inits, strict=True)]
    groups = [blocks[first : first + count] for first in range(0, len(blocks), count)]
    if spec.pool == "average":  # which comes after a ReLU
        for group in groups[1:]:
            group[0].relu = nn.Identity()
    final = nn.ReLU(inplace=False)
    return RepVGG(stem, groups, pooling(spec.pool), final, widths[-1], spec, min_image_size=8)


def imagenet_repvgg(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> RepVGG:
    """RepVGG-A0 or -B0, by the number of its blocks; the first block of each group halves height and width."""
    counts, _, stem_width = SIZES[depth]
    before = min(stem_width, widths[0])
    stem = RepBlock(spec.input_size[0], before, init, stride=2, stem=True)
    groups: list[list[RepBlock]] = []
    for count, width in zip(counts, widths, strict=True):
        last = init.before_classifier(width) if len(groups) == len(counts) - 1 else init
        groups.append(
            [RepBlock(before, width, last, stride=2), *(RepBlock(width, width, last) for _ in range(count - 1))]
        )
        before = width
    return RepVGG(stem, groups, nn.Identity(), nn.ReLU(inplace=False), before, spec, min_image_size=32)


def merged(net: RepVGG) -> RepVGG:
    """A copy of a RepVGG in which each block is a ReLU and one convolution, so that `fold` makes a chain of it.

    Raises:
        UsageError: the network is in training mode, where batch norms depend on the batch.

    >>> from diracnets import fold
    >>> from diracnets.models.build import build_model
    >>> fold(merged(build_model("repvgg-10-0.25").eval())).fold_report.chain
    True
    """
    if net.training:
        raise UsageError("a RepVGG in training mode cannot be merged: call .eval() first")
    net = copy.deepcopy(net)
    for name, block in list(net.named_modules()):
        if isinstance(block, RepBlock):
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, block.merged())
    return net
