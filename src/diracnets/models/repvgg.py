"""RepVGG's blocks in the shape of a DiracNet: another network that trains with branches and could run as a chain.

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", arXiv 2101.03697. It is here to compare what training
costs and how deep one can go; its branches are not merged by `fold`, which only takes the batch norms away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from diracnets.models.diracnet import cifar_stem
from diracnets.models.initializer import Initializer
from diracnets.models.network import Network, Spec


class RepBlock(nn.Module):
    """A ReLU, followed by the sum of a 3x3 convolution, a 1x1 convolution and the identity, each with a batch norm.

    [batch, in, height, width] -> [batch, out, height, width]. Where `channels_in` and `channels_out` differ there is no
    identity. The ReLU comes before the sum, as in a DiracNet's block, which makes the same chain of blocks.
    """

    def __init__(self, channels_in: int, channels_out: int, init: Initializer) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv3 = init.conv(channels_in, channels_out)
        self.bn3 = init.norm(channels_out)  # the one whose shift is that of the sum
        self.conv1 = init.conv(channels_in, channels_out, size=1)
        self.bn1 = init.norm(channels_out, shifted=False)
        self.identity = init.norm(channels_out, shifted=False) if channels_in == channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        x = self.relu(x)
        total = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        return total if self.identity is None else total + self.identity(x)  # type: ignore[no-any-return]


class RepVGG(Network):
    """A DiracNet with `RepBlock`s for its blocks.

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
    final = nn.ReLU(inplace=False)
    return RepVGG(stem, groups, nn.MaxPool2d(2), final, widths[-1], spec, min_image_size=8)
