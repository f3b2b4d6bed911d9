"""Which network a set of tensors belongs to, told by their sizes, and the chain that it folds to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from diracnets.models.diracnet import CIFAR_WIDTHS, IMAGENET_DEPTHS, IMAGENET_WIDTHS
from diracnets.models.network import Network


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


def chain_layers(net: Network) -> nn.Sequential:
    """The layers of the chain that `fold` makes of a DiracNet, in its order, on the meta device.

    >>> from diracnets.models.build import on_meta
    >>> [type(layer).__name__ for layer in chain_layers(on_meta({"name": "diracnet-10-1"}))][:4]
    ['Conv2d', 'ReLU', 'Conv2d', 'ReLU']
    """
    layers = list(net.stem.children())
    for index, group in enumerate(net.groups.children()):
        if index:
            layers.append(net.between)
        for block in group.children():
            layers += [block.get_submodule("relu"), block.get_submodule("conv")]
            layers += [pool for name, pool in block.named_children() if name == "pool"]
    layers += [net.final, net.average, net.flatten, net.fc]
    gone = (nn.BatchNorm2d, nn.Identity)  # batch norms become the convolutions' biases
    kept = [layer for layer in layers if not isinstance(layer, gone)]
    return nn.Sequential(
        *(_ordinary(layer) if isinstance(layer, nn.Conv2d) else copy.deepcopy(layer) for layer in kept)
    )


def _ordinary(conv: nn.Conv2d) -> nn.Conv2d:
    sizes = (conv.kernel_size, conv.stride, conv.padding)
    return nn.Conv2d(conv.in_channels, conv.out_channels, *sizes, device="meta")  # type: ignore[arg-type]


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
