"""Classes of unequal sizes: how much an image of each counts in the loss, and when to say that they are unequal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNEQUAL = 4  # times as many images in the largest class as in the smallest, from which on it is said


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """How much an image of each class counts, so that all classes count alike: inversely to their images.

    Divided so that the mean over the images is 1: a learning rate means what it meant.

    Args:
        labels: of the images to train on, int64 [N].
        num_classes: K.

    Returns:
        float32 [K]; 0 for a class without images.

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 3).tolist()
    [0.6666666865348816, 2.0, 0.0]
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    present = counts > 0
    weights = torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)
    return weights.float()


def unequal_classes(labels: Tensor, classes: Sequence[str]) -> str | None:
    """What to say where the classes are very unequal and count as they come, else None; those without images are not
    among them.

    >>> unequal_classes(torch.tensor([0] * 90 + [1] * 9), ["cat", "dog"])
    'the classes are very unequal (90 images of cat, 9 of dog): --class-weights balanced makes them count alike'
    """
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    most, least = max(counts), min(filter(None, counts))
    if most < UNEQUAL * least:
        return None
    named = f"{most:,} images of {classes[counts.index(most)]}, {least:,} of {classes[counts.index(least)]}"
    return f"the classes are very unequal ({named}): --class-weights balanced makes them count alike"
