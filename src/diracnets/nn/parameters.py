"""Which parameters an optimizer decays."""

from __future__ import annotations

from typing import Any

from torch import nn

_DECAYED = (nn.modules.conv._ConvNd, nn.Linear)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: the decayed weights, and what must not be decayed.

    Decayed are the `weight`s of convolutions (Dirac ones too) and of linear layers. Not decayed are `alpha` and `beta`,
    biases, and all parameters of norms and other layers. A parameter that several layers share is listed once, and
    decayed if one of them is a convolution or linear layer; parameters that need no gradient are left out.

    Args:
        model: any module.
        weight_decay: of the first group, as the optimizer means it.

    Returns:
        `[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]`, in model order.

    Source: Zagoruyko & Komodakis 2017, section 3: the scales are not decayed.

    >>> from diracnets.nn.dirac import DiracConv2d
    >>> groups = parameter_groups(nn.Sequential(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)), weight_decay=5e-4)
    >>> [len(group["params"]) for group in groups]
    [1, 5]
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, _DECAYED)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) in decayed], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) not in decayed], "weight_decay": 0.0},
    ]
