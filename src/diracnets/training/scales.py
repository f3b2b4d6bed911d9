"""How much of each layer's filters is the identity: alpha and beta layer by layer, kept for every epoch of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from diracnets.errors import FileError
from diracnets.files import append_json, reading, short_number
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d
from diracnets.nn.effective_weight import EPS, identity_diagonal


@dataclass(frozen=True)
class LayerScales:
    """The scales of one Dirac convolution, over those of its filters that have an identity."""

    layer: str
    """Its name in the network."""
    alpha: float
    """Mean scale of the identity."""
    beta: float
    """Mean absolute scale of the normalized filters; its sign says nothing, for W can turn round too."""
    ratio: float
    """The root mean square of alpha over that of beta: how much longer the identity is than the normalized filter."""
    norm: float
    """Mean norm of W's filters: the longer they are, the less a step turns them."""
    identity: float
    """Mean part of an effective filter's squared norm that is its identity, 0 to 1; see `identity_share`."""

    @property
    def ratio_by_norm(self) -> float:
        """`ratio` over `norm`: alpha / (beta ||W||). As W is normalized, it says nothing of the effective filter."""
        return self.ratio / max(self.norm, EPS)


def identity_share(weight: Tensor, groups: int = 1) -> Tensor:
    """The part of each filter's squared norm that lies in the one element where the identity has its 1.

    A filter that turns its channel's sign counts as 0, and so does a filter of zeros.

    Args:
        weight: filters [out, in / groups, *kernel], of any convolution.
        groups: the groups of the convolution.

    Returns:
        [groups * min(out / groups, in / groups)], 0 to 1, one for each filter that has an identity.

    >>> identity_share(torch.tensor([[[0.0, 3.0, 4.0]], [[1.0, 1.0, 1.0]]]))
    tensor([0.3600])
    """
    diagonal = identity_diagonal(weight, groups)  # [groups, identities]
    squares = weight.flatten(1).square().sum(1).view(groups, -1)[:, : diagonal.shape[1]]
    return (diagonal.clamp(min=0).square() / squares.clamp(min=torch.finfo(weight.dtype).tiny)).flatten()


@torch.no_grad()
def layer_scales(net: nn.Module) -> list[LayerScales]:
    """The scales of all Dirac convolutions of a network, in its order; nothing where it has none.

    >>> from diracnets import create_model
    >>> first = layer_scales(create_model("diracnet-16-0.25"))[0]
    >>> first.layer, first.alpha, round(first.beta, 3), round(first.ratio, 3)
    ('groups.0.0.conv', 1.0, 0.1, 10.0)
    """
    named = [
        (name, module)
        for name, module in net.named_modules()
        if isinstance(module, DiracConv1d | DiracConv2d | DiracConv3d)
    ]
    if not named:
        return []
    numbers = torch.stack([_numbers(layer) for _, layer in named]).tolist()  # waits for the device once
    return [LayerScales(name, *values) for (name, _), values in zip(named, numbers, strict=True)]


def record_scales(path: Path, net: nn.Module, epoch: int) -> None:
    """Add a network's scales after an epoch to a run's `scales.jsonl`; where it has none, write nothing.

    Args:
        path: of the file.
        net: the network in training.
        epoch: the epochs done, 0 for the start.

    Raises:
        FileError: the file cannot be written.
    """
    scales = layer_scales(net)
    if not scales:
        return
    columns = {field.name: [getattr(layer, field.name) for layer in scales] for field in fields(LayerScales)}
    append_json(
        path,
        {
            "epoch": epoch,
            **{name: [short_number(value, digits=6) for value in column] for name, column in columns.items()},
        },
    )


def read_scales(path: str | Path) -> dict[int, list[LayerScales]]:
    """What `record_scales` wrote, by epoch; an epoch that was done again after an interruption counts once, the last.

    Raises:
        FileError: the file is missing or damaged.
    """
    names = [field.name for field in fields(LayerScales)]
    try:
        with reading(path):
            rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        by_epoch = {
            row["epoch"]: [LayerScales(*layer) for layer in zip(*(row[name] for name in names), strict=True)]
            for row in rows
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} is damaged: it does not hold the scales of a run's layers") from error
    return dict(sorted(by_epoch.items()))


def _numbers(layer: DiracConv1d | DiracConv2d | DiracConv3d) -> Tensor:
    """All of `LayerScales` but the name, float32 [5]."""
    identity = identity_share(layer.effective_weight().float(), layer.groups)
    count = len(identity) // layer.groups
    alpha, beta = (scale.float().view(layer.groups, -1)[:, :count] for scale in (layer.alpha, layer.beta))
    norms = layer.weight.float().flatten(1).norm(dim=1)
    ratio = (alpha.square().mean() / beta.square().mean().clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return torch.stack([alpha.mean(), beta.abs().mean(), ratio, norms.mean(), identity.mean()])
