"""The optimizer of a recipe: SGD that decays the weights of convolutions and linear layers alone."""

from __future__ import annotations

import torch
from torch import nn

from diracnets.nn.parameters import parameter_groups
from diracnets.training.recipe import Recipe


def make_optimizer(recipe: Recipe, net: nn.Module) -> torch.optim.SGD:
    """SGD by the recipe over the parameters of `net` that need a gradient; its rate is set anew each step.

    The update of all parameters is one fused operation on CPU and CUDA.

    >>> optimizer = make_optimizer(Recipe(), nn.Linear(2, 2))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0005, 0.0]
    """
    device = next(net.parameters()).device.type
    return torch.optim.SGD(
        parameter_groups(net, recipe.weight_decay),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=device in ("cpu", "cuda"),
    )
