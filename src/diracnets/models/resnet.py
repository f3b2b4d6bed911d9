"""Residual networks, which DiracNets are compared with: pre-activation and wide ones for CIFAR, ResNet-18 and -34.

He et al., "Identity Mappings in Deep Residual Networks", arXiv 1603.05027; Zagoruyko & Komodakis, "Wide Residual
Networks", arXiv 1605.07146; He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from diracnets.models.diracnet import imagenet_stem
from diracnets.models.initializer import Initializer
from diracnets.models.network import Network, Spec, stem_conv

BOTTLENECK = 4  # times as many channels come out of a bottleneck as its 3x3 convolution has
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks of each group of ResNet-18 and -34
BlockMaker = Callable[[int, int, int], nn.Module]  # from input channels, output channels and stride


def subsampling(stride: int) -> nn.AvgPool2d:
    """Every `stride`-th row and column of a map; before a 1x1 convolution, what a stride of the convolution does.

    Exactly, and with the same gradients. It is a step of its own because on processors without AVX-512 the gradients of
    a strided 1x1 convolution of few channels corrupt memory (see `docs/kernels.md`).

    >>> import torch
    >>> subsampling(2)(torch.arange(16.0).view(1, 4, 4))
    tensor([[[ 0.,  2.],
             [ 8., 10.]]])
    """
    return nn.AvgPool2d(1, stride)


class PreActivation(nn.Module):
    """A residual block of `batch norm -> ReLU -> convolution`, once for each convolution.

    [batch, in, height, width] -> [batch, out, height / stride, width / stride], rounded up. Where the shape changes, a
    1x1 convolution brings the shortcut into it, from what the first ReLU gives.

    Args:
        channels: before the first convolution and after each.
        sizes: of each convolution's filters.
        stride: of the first 3x3 convolution.
        init: makes the layers.
    """

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], stride: int, init: Initializer) -> None:
        super().__init__()
        strided = sizes.index(3)
        steps: list[nn.Module] = []
        for index, size in enumerate(sizes):
            steps += [init.norm(channels[index]), nn.ReLU(inplace=False)]
            steps.append(init.conv(channels[index], channels[index + 1], size, stride if index == strided else 1))
        self.before = nn.Sequential(OrderedDict(bn=steps[0], relu=steps[1]))
        self.branch = nn.Sequential(*steps[2:])
        same = stride == 1 and channels[0] == channels[-1]
        self.subsample = None if stride == 1 else subsampling(stride)
        self.shortcut = None if same else init.conv(channels[0], channels[-1], size=1)

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output and the shortcut's, added."""
        activated = self.before(x)
        kept = activated if self.subsample is None else self.subsample(activated)
        shortcut = x if self.shortcut is None else self.shortcut(kept)
        return self.branch(activated) + shortcut  # type: ignore[no-any-return]


class PostActivation(nn.Module):
    """A residual block of ResNet-18 and -34: two 3x3 convolutions with batch norms, the last ReLU after the sum.

    [batch, in, height, width] -> [batch, out, height / stride, width / stride], rounded up.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, init: Initializer) -> None:
        super().__init__()
        self.conv1 = init.conv(channels_in, channels_out, stride=stride)
        self.bn1 = init.norm(channels_out)
        self.relu1 = nn.ReLU(inplace=False)
        self.conv2 = init.conv(channels_out, channels_out)
        self.bn2 = init.norm(channels_out, shifted=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = init.conv(channels_in, channels_out, size=1)
            norm = init.norm(channels_out, shifted=False)
            first = {} if stride == 1 else {"subsample": subsampling(stride)}
            self.shortcut = nn.Sequential(OrderedDict(**first, conv=projection, bn=norm))
        self.relu2 = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        """The ReLU of the branch's output and the shortcut's, added."""
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(branch + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(Network):
    """A stem, groups of residual blocks, global average pooling and a linear classifier.

    The first block of each group but the first halves height and width. Made by `build_model`, which knows the sizes.

    >>> from diracnets.models.build import build_model
    >>> sum(p.numel() for p in build_model("wrn-16-1").parameters())
    175066
    """


def cifar_resnet(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> ResNet:
    """Pre-activation ResNet: basic blocks where `depth` is 6n + 2 below 164, bottlenecks where it is 9n + 2 from there.

    Args:
        depth: of the network, its weight layers without those on shortcuts.
        widths: channels of each group's 3x3 convolutions; bottlenecks give four times as many.
        init, spec: see `Network`.
    """
    if depth < 164:
        return _pre_activation_net(widths[0], widths, (depth - 2) // 6, _basic(init), init, spec)

    def bottleneck(before: int, after: int, stride: int) -> nn.Module:
        narrow = after // BOTTLENECK
        return PreActivation((before, narrow, narrow, after), (1, 3, 1), stride, init)

    wide = [BOTTLENECK * width for width in widths]
    return _pre_activation_net(widths[0], wide, (depth - 2) // 9, bottleneck, init, spec)


def wide_resnet(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> ResNet:
    """Wide ResNet-N-k with `depth` N = 6n + 4: pre-activation, basic blocks, no dropout, a stem of 16 channels.

    Where k is below 1 the stem is no wider than the first group.
    """
    return _pre_activation_net(min(16, widths[0]), widths, (depth - 4) // 6, _basic(init), init, spec)


def imagenet_resnet(depth: int, widths: Sequence[int], init: Initializer, spec: Spec) -> ResNet:
    """ResNet-18 or -34 for images of ImageNet's size, with a ReLU after each sum."""
    stem = imagenet_stem(spec.input_size[0], widths[0], init)
    stem.append(nn.ReLU(inplace=False))  # commutes with the max-pooling before it
    groups = _groups(widths[0], widths, DEPTHS[depth], partial(PostActivation, init=init))
    return ResNet(stem, groups, nn.Identity(), nn.Identity(), widths[-1], spec, min_image_size=32)


def _pre_activation_net(
    stem_width: int, widths: Sequence[int], depth: int, block: BlockMaker, init: Initializer, spec: Spec
) -> ResNet:
    stem = nn.Sequential(OrderedDict(conv=stem_conv(spec.input_size[0], stem_width)))
    groups = _groups(stem_width, widths, [depth] * len(widths), block)
    norm = init.before_classifier(widths[-1]).norm(widths[-1])
    final = nn.Sequential(OrderedDict(bn=norm, relu=nn.ReLU(inplace=False)))
    return ResNet(stem, groups, nn.Identity(), final, widths[-1], spec, min_image_size=4)


def _basic(init: Initializer) -> BlockMaker:
    return lambda before, after, stride: PreActivation((before, after, after), (3, 3), stride, init)


def _groups(channels: int, widths: Sequence[int], depths: Sequence[int], block: BlockMaker) -> list[list[nn.Module]]:
    """The blocks of each group; the first of each but the first group's has stride 2."""
    groups: list[list[nn.Module]] = []
    for width, depth in zip(widths, depths, strict=True):
        first = block(channels, width, 2 if groups else 1)
        groups.append([first, *(block(width, width, 1) for _ in range(depth - 1))])
        channels = width
    return groups
