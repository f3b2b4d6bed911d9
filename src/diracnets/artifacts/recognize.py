"""Which DiracNet has layers of given sizes: for files of the paper's authors, and chains that have no card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from diracnets.models.diracnet import CIFAR_WIDTHS, IMAGENET_DEPTHS, IMAGENET_WIDTHS


def recognize(stem: Sequence[int], widths: Sequence[int], depths: Sequence[int], num_classes: int) -> dict[str, Any]:
    """The arguments of `build_model` for the DiracNet of these sizes.

    Args:
        stem: shape of the stem's filters, [out, in, kernel, kernel].
        widths: channels of each group.
        depths: blocks of each group.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: no DiracNet has these sizes.

    >>> recognize((10, 3, 3, 3), widths=(10, 19, 38), depths=(4, 4, 4), num_classes=10)["name"]
    'diracnet-16-0.6'
    """
    if len(stem) != 4 or not widths or stem[0] != widths[0]:
        raise ValueError(f"its first convolution has filters {list(stem)}, which no DiracNet begins with")
    arguments: dict[str, Any] = {"in_channels": stem[1], "num_classes": num_classes}
    if len(widths) == 3 and len(set(depths)) == 1 and depths[0] % 2 == 0:
        factor = _factor(widths, CIFAR_WIDTHS)
        return {"name": f"diracnet-{3 * depths[0] + 4}-{_decimal(factor)}", **arguments}
    for depth, known in IMAGENET_DEPTHS.items():
        if tuple(depths) == known:
            return {"name": f"diracnet-{depth}", **arguments, "width": _factor(widths, IMAGENET_WIDTHS)}
    raise ValueError(f"it has groups of {', '.join(map(str, depths))} blocks, which no DiracNet has")


def recognize_chain(chain: nn.Sequential, input_size: Sequence[int] | None) -> dict[str, Any]:
    """The arguments of `build_model` for the DiracNet that a chain without a card was folded from.

    Args:
        chain: by whose convolutions and poolings it is told.
        input_size: (channels, height, width) of its images, where it is known.

    Raises:
        ValueError: no DiracNet has these sizes.
    """
    groups: list[list[nn.Conv2d]] = [[]]
    for layer in list(chain)[1:]:
        if isinstance(layer, nn.MaxPool2d) and groups[-1]:
            groups.append([])
        elif isinstance(layer, nn.Conv2d):
            groups[-1].append(layer)
    if not all(groups) or not isinstance(chain[0], nn.Conv2d) or not isinstance(chain[-1], nn.Linear):
        raise ValueError("it does not consist of groups of convolutions with a linear layer after them")
    widths, depths = [group[0].out_channels for group in groups], list(map(len, groups))
    arguments = recognize(chain[0].weight.shape, widths, depths, chain[-1].out_features)
    return arguments if input_size is None else {**arguments, "image_size": list(input_size[1:])}


def _factor(widths: Sequence[int], bases: Sequence[int]) -> float:
    """The factor of fewest decimals that the widths come from."""
    low = max((width - 0.5) / base for width, base in zip(widths, bases, strict=True))
    high = min((width + 0.5) / base for width, base in zip(widths, bases, strict=True))
    for decimals in range(9):
        factor = round((low + high) / 2, decimals)
        if [round(base * factor) for base in bases] == list(widths):
            return factor
    raise ValueError(f"its groups have {', '.join(map(str, widths))} channels, which are no DiracNet's")


def _decimal(factor: float) -> str:
    return f"{factor:.8f}".rstrip("0").rstrip(".")
