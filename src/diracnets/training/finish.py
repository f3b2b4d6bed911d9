"""The end of a run: the network is folded, and its chain becomes the model file."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diracnets.artifacts.card import ModelFacts
from diracnets.artifacts.model_file import save
from diracnets.data.images import ImageData
from diracnets.errors import FoldError
from diracnets.folding.fold import FoldReport, fold
from diracnets.models.network import Network
from diracnets.runtime.environment import device_name, versions
from diracnets.runtime.precision import Precision
from diracnets.training.recipe import Recipe


def facts_of_run(
    recipe: Recipe,
    data: ImageData,
    history: list[dict[str, Any]],
    device: torch.device,
    precision: Precision,
    start: str | None,
) -> ModelFacts:
    """What a checkpoint or model file of this run says about its network."""
    provenance = {
        "recipe": recipe.table(),
        **({"validated_on": f"{len(data.val):,} held-out training images"} if data.test is not None else {}),
        "data": {"name": data.name, "train": len(data.train), "val": len(data.val)},
        "epoch": history[-1]["epoch"] if history else 0,
        "accuracy": history[-1].get("val_accuracy") if history else None,
        "seed": recipe.runtime.seed,
        "versions": versions(),
        "device": device_name(device),
        "precision": precision.name,
        "start": start,
    }
    return ModelFacts(data.input_size, tuple(data.mean), tuple(data.std), tuple(data.classes), provenance)


def write_model_file(net: Network, facts: ModelFacts, path: Path) -> nn.Module:
    """Fold a network, write the chain to a model file, and give the chain, on the CPU.

    Raises:
        FoldError: the network has branches, or the chain does not compute the same.
        FileError: the file cannot be written.
    """
    if not net.is_chain:
        raise FoldError(
            f"{net.config['name']} has branches, so that it folds to no chain, which is what a model file holds; "
            "keep the checkpoint, which eval and predict read too"
        )
    chain = fold(deepcopy(net).cpu().eval())
    report = cast(FoldReport, chain.fold_report)
    numbers = ("max_abs", "max_rel", "max_abs_float64", "max_rel_float64", "parameters_before", "parameters_after")
    save(chain, path, facts=replace(facts, fold={name: getattr(report, name) for name in numbers}))
    return chain
