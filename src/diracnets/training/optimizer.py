"""The optimizer of a recipe: SGD that decays the weights of convolutions and linear layers alone, or Muon with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv, parameter_groups
from diracnets.training.muon import Muon
from diracnets.training.settings import OptimizationSettings

STEM = "stem"  # the module of a network whose convolutions are no blocks'
CLASSIFIER = "fc"  # and its last layer


def make_optimizer(
    optimization: OptimizationSettings, net: nn.Module, *, scaled: bool = False, shard: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters of `net` that need a gradient.

    A group's learning rate is its peak value. SGD's update of all parameters is one fused operation on CPU
    and CUDA.

    Args:
        optimization: its optimizer, learning rates, momenta and weight decay.
        net: on its device. With Muon, its `filters_of` keep their norms.
        scaled: whether a loss scaler will leave steps out. The fused operation then starts from a momentum that nothing
            was written to, when the first step is left out (torch 2.13), so it is not used.
        shard: whether the network is divided among processes, see `diracnets.training.sharding`. torch has no fused
            operation for that; it computes all parameters together, operation by operation.

    Raises:
        UsageError: `scale_lr`, `stem_lr` or `classifier_lr` for what the network does not have, or Muon without a
            convolution to turn.

    >>> optimizer = make_optimizer(OptimizationSettings(), nn.Linear(2, 2))
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0005, 0.0]
    """
    groups = [{"lr": optimization.lr, **group} for group in parameter_groups(net, optimization.weight_decay)]
    if optimization.scale_lr is not None:
        dirac = [layer for layer in net.modules() if isinstance(layer, DiracConv)]
        if not dirac:
            raise UsageError(
                "scale_lr is the learning rate of alpha and beta, but the network has no Dirac convolutions: leave it "
                "out, or take it from the recipe with --scale-lr None"
            )
        groups = _at_rate(
            optimization.scale_lr, [scale for layer in dirac for scale in (layer.alpha, layer.beta)], groups
        )
    for name, lr, part in (
        ("stem_lr", optimization.stem_lr, STEM),
        ("classifier_lr", optimization.classifier_lr, CLASSIFIER),
    ):
        if lr is not None:
            module = dict(net.named_children()).get(part)
            if module is None:
                raise UsageError(f"{name} is the learning rate of the network's {part!r}, but it has none")
            groups = _at_rate(lr, list(module.parameters()), groups)
    common = {"momentum": optimization.momentum, "nesterov": optimization.nesterov}
    if optimization.optimizer == "muon":
        filters = filters_of(net)
        if not filters:
            raise UsageError("muon turns the filters of blocks, but the network has none; take optimizer sgd")
        turned = {
            "params": filters,
            "filters": True,
            "lr": optimization.muon_lr,
            "momentum": optimization.muon_momentum,
        }
        return _muon(shard)([turned, *({**common, **group} for group in _without(groups, filters))])
    fused = next(net.parameters()).device.type in ("cpu", "cuda") and not scaled and not shard
    return torch.optim.SGD(
        groups,
        lr=optimization.lr,
        momentum=optimization.momentum,
        nesterov=optimization.nesterov,
        fused=fused,
        foreach=shard or None,
    )


def _muon(shard: bool) -> type[Muon]:
    if not shard:
        return Muon
    from diracnets.training.sharding import ShardedMuon  # takes seconds

    return ShardedMuon


def filters_of(net: nn.Module) -> list[Tensor]:
    """The filters that Muon turns: those of all convolutions with a kernel larger than 1, but for the stem's.

    >>> from diracnets.models.build import build_model
    >>> len(filters_of(build_model("diracnet-16-1")))
    12
    """
    found = {
        id(layer.weight): layer.weight  # once, also where layers share it
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and max(layer.kernel_size) > 1
        and name.split(".")[0] != STEM
    }
    return [weight for weight in found.values() if weight.requires_grad]


def _at_rate(lr: float, parameters: Sequence[Tensor], groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, with those of some parameters that they hold in groups of their own, of another rate."""
    taken = {id(parameter) for parameter in parameters}
    apart = [{**group, "params": [each for each in group["params"] if id(each) in taken], "lr": lr} for group in groups]
    return [*_without(groups, parameters), *(group for group in apart if group["params"])]


def _without(groups: list[dict[str, Any]], parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The groups, with what is left in them without some parameters."""
    taken = {id(parameter) for parameter in parameters}
    return [{**group, "params": [each for each in group["params"] if id(each) not in taken]} for group in groups]
