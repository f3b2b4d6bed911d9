"""How many parameters a row's network has: counted on the network, without memory for its weights."""

from __future__ import annotations

from functools import cache

from diracnets.data.cifar import CIFAR10, CIFAR100
from diracnets.models.build import on_meta

_CLASSES = {data.name: data.classes for data in (CIFAR10, CIFAR100)}


@cache
def parameter_count(model: str, width: float, data: str) -> int:
    """The parameters of a recipe's network, as it is trained.

    Args:
        model, width, data: of the recipe; the data is cifar10 or cifar100.

    Raises:
        UsageError: no such network.

    >>> parameter_count("diracnet-28-10", 1.0, "cifar10")
    36450090
    """
    net = on_meta({"name": model, "width": width, "num_classes": _CLASSES[data]})
    return sum(parameter.numel() for parameter in net.parameters())
