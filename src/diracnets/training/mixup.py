"""Mixup: training on sums of two images, with the loss shared between their labels (Zhang et al. 2018)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diracnets.training.recipe import Recipe


def mixup_share(recipe: Recipe, epoch: int, batch: int) -> float:
    """The share of each image in its sum, 0.5 to 1: what a batch draws depends on (seed, epoch, its number) alone.

    Args:
        recipe: its `mixup` and `seed`.
        epoch: counted from 1.
        batch: counted from 0 in the epoch.

    >>> 0.5 <= mixup_share(Recipe(mixup=0.2), epoch=1, batch=0) <= 1
    True
    """
    share = float(np.random.default_rng([recipe.seed, epoch, batch]).beta(recipe.mixup, recipe.mixup))
    return max(share, 1 - share)  # the larger one is each image's own; who is added to whom is as random as before


def mixed(images: Tensor, share: float) -> Tensor:
    """Each image of a batch [batch, ...], in its share, plus the one before it in the rest.

    >>> mixed(torch.tensor([[0.0], [1.0]]), 0.75).flatten().tolist()
    [0.25, 0.75]
    """
    return torch.lerp(mixed_in(images), images, share)


def mixed_in(batch: Tensor) -> Tensor:
    """What of a batch is mixed into each of its images: what belongs to the one before it.

    >>> mixed_in(torch.tensor([3, 4, 5])).tolist()
    [5, 3, 4]
    """
    return batch.roll(1, 0)
