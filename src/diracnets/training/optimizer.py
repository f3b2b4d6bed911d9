"""The optimizer of a recipe: SGD that decays the weights of convolutions and linear layers alone."""

from __future__ import annotations

import torch
from torch import nn

from diracnets.nn.parameters import parameter_groups
from diracnets.training.recipe import Recipe


def make_optimizer(recipe: Recipe, net: nn.Module, *, scaled: bool = False) -> torch.optim.SGD:
    """SGD by the recipe over the parameters of `net` that need a gradient; its rate is set anew each step.

    The update of all parameters is one fused operation on CPU and CUDA.

    Args:
        recipe: its momentum and decay.
        net: on its device.
        scaled: whether a loss scaler will leave steps out. The fused operation then starts from a momentum that nothing
            was written to, when the first step is left out (torch 2.13), so it is not used.

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
        fused=device in ("cpu", "cuda") and not scaled,
    )
