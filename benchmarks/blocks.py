"""Other blocks that train with more than they need and could run as one 3x3 convolution, to compare what they cost.

All have the shape of a DiracNet's block, [batch, in, height, width] -> [batch, out, height, width], a ReLU first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diracnets.errors import UsageError
from diracnets.models.build import build_model
from diracnets.models.diracnet import Block
from diracnets.models.initializer import paper
from diracnets.models.network import Network, Spec
from diracnets.nn.dirac import DiracConv2d
from diracnets.nn.effective_weight import EPS


class ComposedDiracConv2d(DiracConv2d):
    """A Dirac convolution whose effective weight is computed as the formula is written, with a dense identity."""

    identity: Tensor

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)
        self.register_buffer("identity", nn.init.dirac_(torch.empty_like(self.weight)))

    def effective_weight(self) -> Tensor:
        """The same as `DiracConv2d.effective_weight`, in the elementwise operations that autograd differentiates."""
        alpha, beta = (scale[:, None, None, None] for scale in (self.alpha, self.beta))
        return alpha * self.identity + beta * F.normalize(self.weight.flatten(1), eps=EPS).view_as(self.weight)


class NormAndPad(nn.BatchNorm2d):
    """A batch norm, and a border of one pixel of what it makes of zeros, so that a 3x3 filter after it can be merged.

    The border is made by the running statistics, in training too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, channels, height + 2, width + 2]."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:
            raise UsageError("the border is made by running statistics, which this batch norm does not keep")
        of_zero = self.bias - mean * self.weight / (variance + self.eps).sqrt()
        inside = super().forward(input)
        batch, channels, height, width = inside.shape
        padded = of_zero.to(inside.dtype)[:, None, None].expand(batch, channels, height + 2, width + 2).clone()
        padded[:, :, 1:-1, 1:-1] = inside
        return padded


class DiverseBlock(nn.Module):
    """A diverse branch block: the sum of four branches, all of them linear.

    They are a 3x3 convolution, a 1x1 convolution, a 1x1 followed by a 3x3 one, and a 1x1 one with average
    pooling after it, each with its batch norms.

    Source: Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", arXiv 2103.13425.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()

        def conv(inside: int, outside: int, size: int, padding: int = 0) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, size, padding=padding, bias=False)

        self.relu = nn.ReLU(inplace=False)
        self.branches = nn.ModuleDict(
            {
                "full": nn.Sequential(conv(channels_in, channels_out, 3, 1), nn.BatchNorm2d(channels_out)),
                "point": nn.Sequential(conv(channels_in, channels_out, 1), nn.BatchNorm2d(channels_out)),
                "point_full": nn.Sequential(
                    conv(channels_in, channels_in, 1),
                    NormAndPad(channels_in),
                    conv(channels_in, channels_out, 3),
                    nn.BatchNorm2d(channels_out),
                ),
                "point_average": nn.Sequential(
                    conv(channels_in, channels_out, 1),
                    NormAndPad(channels_out),
                    nn.AvgPool2d(3, stride=1),
                    nn.BatchNorm2d(channels_out),
                ),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches."""
        x = self.relu(x)
        first, *others = (branch(x) for branch in self.branches.values())
        total: Tensor = sum(others, first)
        return total


class PairedBlock(nn.Module):
    """Two convolutions with a ReLU between that fades to the identity in training, after which the two are one.

    VanillaNet pairs 1x1 convolutions; here the first is 3x3, so that the pair becomes a DiracNet's 3x3 convolution.

    Source: Chen et al., "VanillaNet: the Power of Minimalism in Deep Learning", arXiv 2305.12972.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.first = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.slope = 0.0
        """Of the activation between for what is negative: 0 is a ReLU, 1, at the end of a training, the identity."""
        self.second = nn.Sequential(nn.Conv2d(channels_out, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Both convolutions."""
        return self.second(F.leaky_relu(self.first(self.relu(x)), self.slope))  # type: ignore[no-any-return]


def network_of(block: Callable[[int, int], nn.Module], size: str) -> Network:
    """A network of other blocks in the shape of a DiracNet.

    Args:
        block: makes one from its input and output channels.
        size: "N-k", such as "28-1", or "18" or "34" for images of ImageNet's size.

    Raises:
        UsageError: no DiracNet has this size.

    >>> network_of(PairedBlock, "16-0.25")(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    shape = build_model(f"plain-{size}")
    groups = [
        [block(each.conv.in_channels, each.conv.out_channels) for each in group if isinstance(each, Block)]
        for group in shape.groups
        if isinstance(group, nn.Sequential)
    ]
    spec = Spec(shape.num_classes, shape.input_size, {**shape.config, "name": f"{block.__name__}-{size}"})
    return Network(
        shape.stem, groups, shape.between, shape.final, shape.num_features, spec, min_image_size=shape.min_image_size
    )


def dirac_block(channels_in: int, channels_out: int) -> Block:
    """A DiracNet's block, which computes its own effective weight when no network does it for all blocks together."""
    return Block(channels_in, channels_out, paper(dirac=True))


def composed_block(channels_in: int, channels_out: int) -> Block:
    """A DiracNet's block with the formula as it is written."""
    block = dirac_block(channels_in, channels_out)
    block.conv = ComposedDiracConv2d(channels_in, channels_out)
    return block
