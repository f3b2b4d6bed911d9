"""What a run's checkpoints and its model file say about its network: the model card."""

from __future__ import annotations

from typing import Any

import torch

from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.data.images import ImageData
from diracnets.models.network import Network
from diracnets.runtime.environment import device_name, versions
from diracnets.runtime.precision import Precision
from diracnets.training.recipe import Recipe


def card_of_run(
    net: Network,
    recipe: Recipe,
    data: ImageData,
    history: list[dict[str, Any]],
    device: torch.device,
    precision: Precision,
    start: str | None,
) -> ModelCard:
    """The card of the network of a run, as the run stands."""
    return ModelCard(
        data.input_size,
        tuple(data.mean),
        tuple(data.std),
        tuple(data.classes),
        architecture=net.config,
        data=TrainedOn(data.name, len(data.train), len(data.val)),
        recipe=recipe.table(),
        provenance={
            **({"validated_on": f"{len(data.val):,} held-out training images"} if data.test is not None else {}),
            "epoch": history[-1]["epoch"] if history else 0,
            "accuracy": history[-1].get("val_accuracy") if history else None,
            "seed": recipe.runtime.seed,
            "versions": versions(),
            "device": device_name(device),
            "precision": precision.name,
            "start": start,
        },
    )
