"""DiracNet, and the plain network that it is without the parameterization.

Zagoruyko & Komodakis, arXiv 1706.00388: a chain of `ReLU -> convolution -> batch norm` blocks, all of them 3x3 with
stride 1, in groups of growing width with pooling between, and no branch anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain, islice, pairwise
from typing import ClassVar, cast

from torch import Tensor, nn

from diracnets.models.initializer import Initializer
from diracnets.models.names import Pool
from diracnets.models.network import Network, Spec, pooling, stem_conv
from diracnets.nn.dirac import DiracConv2d, effective_weights, in_several_processes, is_as_made
from diracnets.nn.effective_weight import is_traced

IMAGENET_DEPTHS = {18: (4, 4, 4, 4), 34: (6, 8, 12, 6)}  # blocks of each group
CIFAR_WIDTHS, IMAGENET_WIDTHS = (16, 32, 64), (64, 128, 256, 512)  # channels of each group at width 1


class Block(nn.Module):
    """`ReLU -> 3x3 convolution -> batch norm`, on [batch, in, height, width].

    Args:
        channels_in, channels_out: of its convolution.
        init: makes its layers.
        pool: whether 2x2 max-pooling comes before the batch norm, which then normalizes a quarter of the numbers.
        relu: whether there is a ReLU; not where the input has passed one before it was averaged.
    """

    def __init__(
        self, channels_in: int, channels_out: int, init: Initializer, pool: bool = False, relu: bool = True
    ) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False) if relu else nn.Identity()
        self.conv = init.conv(channels_in, channels_out)
        self.pool = nn.MaxPool2d(2) if pool else None
        self.bn = init.norm(channels_out)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Apply the block; `weight` is the effective weight of a Dirac convolution where it was computed already."""
        x = self.relu(x)
        x = self.conv(x) if weight is None else self.conv(x, weight)
        return self.bn(x if self.pool is None else self.pool(x))  # type: ignore[no-any-return]


class DiracNet(Network):
    """A stem, groups of blocks with 2x2 pooling between them, ReLU, global average pooling and a linear classifier.

    Made by `build_model`, which knows the sizes.

    Args:
        stem: from images to the first group's input.
        stem_width: channels of the stem's output.
        widths: channels of each block of each group.
        init: makes the layers of the blocks; it decides whether they have Dirac convolutions.
        spec: what the network is made for.
        min_image_size: the least height and width that all the pooling leaves something of.
        final: from the last group's output to the input of the average pooling; a ReLU by default.
        pool_first: pool before the last batch norm of each group but the last one, not after it; they then fold only
            if no scale of theirs is negative.
        stem_averages: whether the stem ends in a ReLU and average pooling.

    Raises:
        UsageError: images smaller than `min_image_size`, or a negative number of classes.

    >>> import torch
    >>> from diracnets.models.build import build_model
    >>> net = build_model("diracnet-16-0.25", num_classes=10)
    >>> net(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> [list(features.shape) for features in net.feature_maps(torch.randn(2, 3, 32, 32))]
    [[2, 4, 32, 32], [2, 8, 16, 16], [2, 16, 8, 8]]
    """

    is_chain: ClassVar[bool] = True

    def __init__(
        self,
        stem: nn.Module,
        stem_width: int,
        widths: Sequence[Sequence[int]],
        init: Initializer,
        spec: Spec,
        min_image_size: int,
        final: nn.Module | None = None,
        pool_first: bool = False,
        stem_averages: bool = False,
    ) -> None:
        before = [stem_width, *chain.from_iterable(widths)]  # channels that come into each block
        pooled = [pool_first and place == len(group) for group in widths for place in range(1, len(group) + 1)]
        pooled[-1] = False
        relus = [spec.pool == "max" or place > 0 for group in widths for place in range(len(group))]
        relus[0] = not stem_averages
        inits = [init] * (len(pooled) - 1) + [init.before_classifier(before[-1])]
        sizes = zip(pairwise(before), inits, pooled, relus, strict=True)
        blocks = (Block(*channels, init, pool, relu) for channels, init, pool, relu in sizes)
        super().__init__(
            stem=stem,
            groups=[list(islice(blocks, len(group))) for group in widths],
            between=nn.Identity() if pool_first else pooling(spec.pool),
            final=nn.ReLU(inplace=False) if final is None else final,
            num_features=widths[-1][-1],
            spec=spec,
            min_image_size=min_image_size,
        )

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The output of each group, [batch, channels, height, width], before the ReLU and the pooling after it."""
        blocks = self._blocks_together(x)
        if not blocks:
            return super().feature_maps(x)
        weights = iter(effective_weights([cast(DiracConv2d, block.conv) for block in blocks]))
        x = self.stem(x)
        maps: list[Tensor] = []
        for group in self.groups:
            x = self.between(maps[-1]) if maps else x
            for block in cast(nn.Sequential, group):
                x = block(x, next(weights))
            maps.append(x)
        return maps

    def _blocks_together(self, x: Tensor) -> list[Block]:
        """All blocks, where computing their filters at once is the same as each computing its own; else none.

        Not where something follows the operations (`torch.compile`, `torch.fx`, ...), nor where several processes
        share the gradients and send those of the last layers early, nor where anything was done to a group, a block or
        a convolution: `fully_shard`, checkpointing, hooks, pruning, parametrizations, other layers in their places.
        """
        if not isinstance(x, Tensor) or is_traced() or in_several_processes():
            return []
        if not all(is_as_made(group, nn.Sequential) for group in self.groups):
            return []
        blocks = [cast(Block, block) for group in self.groups for block in cast(nn.Sequential, group)]
        as_made = all(is_as_made(block, Block) and is_as_made(block.conv, DiracConv2d) for block in blocks)
        return blocks if as_made else []


def cifar_stem(channels: int, width: int, init: Initializer) -> nn.Sequential:
    """A 3x3 convolution and a batch norm, for images of CIFAR's size."""
    return nn.Sequential(OrderedDict(conv=stem_conv(channels, width), bn=init.norm(width)))


def imagenet_stem(channels: int, width: int, init: Initializer, pool: Pool = "max") -> nn.Sequential:
    """A 7x7 convolution of stride 2, a batch norm and 3x3 max-pooling of stride 2, for images of ImageNet's size.

    Or, for `pool` "average", a ReLU and 2x2 average pooling in the place of the max-pooling.
    """
    conv = stem_conv(channels, width, size=7, stride=2)
    last = nn.MaxPool2d(3, stride=2, padding=1) if pool == "max" else pooling(pool)
    return nn.Sequential(OrderedDict(conv=conv, bn=init.norm(width), pool=last))


def cifar_diracnet(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> DiracNet:
    """DiracNet-N-k with `depth` N = 6n + 4, three groups of 2n blocks; 26 weight layers where it is called 28."""
    stem = cifar_stem(spec.input_size[0], widths[0], init)
    return DiracNet(stem, widths[0], [[width] * ((depth - 4) // 3) for width in widths], init, spec, min_image_size=8)


def imagenet_diracnet(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> DiracNet:
    """DiracNet-18 or -34."""
    stem = imagenet_stem(spec.input_size[0], widths[0], init, spec.pool)
    groups = [[width] * blocks for width, blocks in zip(widths, IMAGENET_DEPTHS[depth], strict=True)]
    averages = spec.pool == "average"
    return DiracNet(stem, widths[0], groups, init, spec, min_image_size=32, stem_averages=averages)
