"""DiracNet, and the plain network that it is without the parameterization.

Zagoruyko & Komodakis, arXiv 1706.00388: a chain of `ReLU -> convolution -> batch norm` blocks, all of them 3x3 with
stride 1, in groups of growing width with max-pooling between, and no branch anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv2d, effective_weights


class Block(nn.Module):
    """`ReLU -> 3x3 convolution -> batch norm`, on [batch, in, height, width]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.conv = conv
        self.bn = batch_norm(conv.out_channels)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Apply the block; `weight` is the effective weight of a Dirac convolution where it was computed already."""
        x = self.relu(x)
        return self.bn(self.conv(x) if weight is None else self.conv(x, weight))  # type: ignore[no-any-return]


class DiracNet(nn.Module):
    """A stem, groups of blocks with 2x2 max-pooling between them, ReLU, global average pooling and a linear classifier.

    Made by `create_model`, which knows the sizes.

    Args:
        stem: from images to the first group's input.
        widths: channels of each group.
        depths: blocks of each group.
        conv: makes a block's convolution from its input and output channels; `DiracConv2d` or `nn.Conv2d`.
        num_classes: outputs of the classifier, or 0 for none.
        input_size: (channels, height, width) of the images.
        min_image_size: the least height and width that all the pooling leaves something of.
        config: the arguments of `create_model` that make this network again.

    Raises:
        UsageError: images smaller than `min_image_size`.

    >>> import torch
    >>> from diracnets.models.registry import create_model
    >>> net = create_model("diracnet-16-0.25", num_classes=10)
    >>> net(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> [list(features.shape) for features in net.feature_maps(torch.randn(2, 3, 32, 32))]
    [[2, 4, 32, 32], [2, 8, 16, 16], [2, 16, 8, 8]]
    """

    def __init__(
        self,
        stem: nn.Module,
        stem_width: int,
        widths: Sequence[int],
        depths: Sequence[int],
        conv: Callable[[int, int], nn.Conv2d],
        num_classes: int,
        input_size: tuple[int, int, int],
        min_image_size: int,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        if min(input_size[1:]) < min_image_size:
            raise UsageError(
                f"images of {input_size[1]}x{input_size[2]} are too small for {config['name']}: "
                f"it needs at least {min_image_size}x{min_image_size}"
            )
        self.config = config
        self.input_size = input_size
        self.min_image_size = min_image_size
        self.num_features = widths[-1]
        self.stem = stem
        self.groups = nn.ModuleList()
        channels = stem_width
        for width, depth in zip(widths, depths, strict=True):
            blocks = [Block(conv(channels if index == 0 else width, width)) for index in range(depth)]
            self.groups.append(nn.Sequential(*blocks))
            channels = width
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=False)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = self._classifier(num_classes)

    @property
    def num_classes(self) -> int:
        """How many classes the classifier tells apart; 0 where there is none."""
        return self.fc.out_features if isinstance(self.fc, nn.Linear) else 0

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The output of each group, [batch, width, height, width / 2^i], before the pooling and ReLU behind it."""
        layers = [module for module in self.groups.modules() if isinstance(module, DiracConv2d)]
        weights = iter(effective_weights(layers))
        x = self.stem(x)
        maps: list[Tensor] = []
        for group in self.groups:
            x = self.pool(maps[-1]) if maps else x
            for block in cast(nn.Sequential, group):
                x = block(x, next(weights)) if isinstance(block.conv, DiracConv2d) else block(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] images -> [batch, num_features, h, w], the input of the average pooling."""
        return self.relu(self.feature_maps(x)[-1])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] normalized images -> [batch, num_classes] logits, or pooled features."""
        return self.fc(self.flatten(self.average(self.forward_features(x))))  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one for `num_classes`; with 0 the network gives its pooled features."""
        weight = next(self.parameters())
        self.fc = self._classifier(num_classes).to(weight.device, weight.dtype)
        self.config = {**self.config, "num_classes": num_classes}

    def _classifier(self, num_classes: int) -> nn.Linear | nn.Identity:
        if num_classes < 0:
            raise UsageError(f"num_classes is {num_classes}; it must be a positive number, or 0 for no classifier")
        if num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.num_features, num_classes)
        nn.init.kaiming_normal_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return classifier


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm as the authors start theirs: scales from U(0, 1), shifts 0."""
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight)
    return norm
