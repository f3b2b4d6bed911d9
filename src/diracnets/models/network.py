"""What all networks have in common: a stem, groups of blocks, global average pooling and a linear classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from diracnets.errors import UsageError
from diracnets.models.names import Pool
from diracnets.nn.dirac import draw_filters


@dataclass(frozen=True)
class Spec:
    """What a network is made for.

    Args:
        num_classes: outputs of the classifier, or 0 for none.
        input_size: (channels, height, width) of the images.
        config: the arguments of `build_model` that make this network again.
        pool: the pooling between its groups.
    """

    num_classes: int
    input_size: tuple[int, int, int]
    config: dict[str, Any]
    pool: Pool = "max"


class Network(nn.Module):
    """A stem, groups of blocks, what follows them, global average pooling and a linear classifier.

    Made by `build_model`, which knows the sizes. Its classes differ in their blocks.

    Args:
        stem: from images to the first group's input.
        groups: the blocks of each group.
        between: from each group's output to the next group's input.
        final: from the last group's output to the input of the average pooling.
        num_features: channels of the last group's output.
        spec: what the network is made for.
        min_image_size: the least height and width that all the pooling leaves something of.

    Attributes:
        is_chain: whether its data flow is one straight line, so that `fold` makes a chain of it.

    Raises:
        UsageError: images smaller than `min_image_size`, or a negative number of classes.

    >>> import torch
    >>> from diracnets.models.build import build_model
    >>> net = build_model("plain-10-0.25", num_classes=5)
    >>> net(torch.randn(2, 3, 32, 32)).shape, net.num_classes, net.is_chain
    (torch.Size([2, 5]), 5, True)
    >>> net.reset_classifier(0)
    >>> net(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 16])
    """

    is_chain: ClassVar[bool] = False

    def __init__(
        self,
        stem: nn.Module,
        groups: Iterable[Iterable[nn.Module]],
        between: nn.Module,
        final: nn.Module,
        num_features: int,
        spec: Spec,
        min_image_size: int,
    ) -> None:
        super().__init__()
        if min(spec.input_size[1:]) < min_image_size:
            raise UsageError(
                f"images of {spec.input_size[1]}x{spec.input_size[2]} are too small for {spec.config['name']}: "
                f"it needs at least {min_image_size}x{min_image_size}"
            )
        self.config = spec.config
        self.input_size = spec.input_size
        self.min_image_size = min_image_size
        self.num_features = num_features
        self.stem = stem
        self.groups = nn.ModuleList(nn.Sequential(*blocks) for blocks in groups)
        self.between = between
        self.final = final
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = self._classifier(spec.num_classes)
        self.register_state_dict_post_hook(_keep_config)  # type: ignore[no-untyped-call]

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier; 0 if there is no classifier."""
        return self.fc.out_features if isinstance(self.fc, nn.Linear) else 0

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The output of each group, [batch, channels, height, width], as the next group and `final` get it."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for group in self.groups:
            maps.append(group(self.between(maps[-1]) if maps else x))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] images -> [batch, num_features, h, w], the input of the average pooling."""
        return self.final(self.feature_maps(x)[-1])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, height, width] normalized images -> [batch, num_classes] logits, or pooled features."""
        return self.fc(self.flatten(self.average(self.forward_features(x))))  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one for `num_classes`; with 0 the network gives its pooled features."""
        weight = next(self.parameters())
        self.fc = self._classifier(num_classes).to(weight.device, weight.dtype)
        self.config = {**self.config, "num_classes": num_classes}

    def _classifier(self, num_classes: int) -> nn.Linear | nn.Identity:
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
            raise UsageError(f"num_classes is {num_classes!r}; it must be a positive number, or 0 for no classifier")
        if num_classes == 0:
            return nn.Identity()
        classifier = nn.Linear(self.num_features, num_classes)
        nn.init.kaiming_normal_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return classifier


def _keep_config(module: nn.Module, state: Any, prefix: str, metadata: dict[str, Any]) -> None:  # noqa: ANN401
    """Let a saved state dict say which network it is of, in the metadata that torch keeps with it."""
    metadata["config"] = dict(module.config)  # type: ignore[arg-type]


def config_of(state: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """What all names in a state dict begin with, and the arguments of `build_model`, if it is one of a `Network`.

    >>> from diracnets.models.build import build_model
    >>> prefix, config = config_of(nn.DataParallel(build_model("plain-10-0.25")).state_dict())
    >>> prefix, config["name"]
    ('module.', 'plain-10-0.25')
    """
    for place, metadata in getattr(state, "_metadata", {}).items():
        prefix = f"{place}." if place else ""
        config = metadata.get("config")
        if isinstance(config, dict) and all(name.startswith(prefix) for name in state):
            return prefix, config
    return "", None


def pooling(pool: Pool) -> nn.Module:
    """2x2 pooling between groups of blocks: a maximum, or a ReLU and the average after it.

    A ReLU can be exchanged with a maximum, so that the one of the next block will do. With an average it cannot:
    what is averaged is what the ReLU lets through, and the next block has none.
    """
    return nn.MaxPool2d(2) if pool == "max" else nn.Sequential(nn.ReLU(inplace=False), nn.AvgPool2d(2))


def stem_conv(
    channels_in: int, channels_out: int, size: int = 3, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A network's first convolution, an ordinary one in any network: Kaiming normal, without bias.

    Its `padding` is by default half its size, so that a stride of 1 keeps the size of the images.
    """
    padding = size // 2 if padding is None else padding
    conv = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=padding, bias=False)
    draw_filters(conv.weight, "kaiming")
    return conv
