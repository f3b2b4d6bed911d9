"""Test-time augmentation: a network's answer to an image, averaged over several views of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Views = Literal["one", "mirror", "mirror-shift"]


def averaged_logits(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    """The mean of a network's logits over views of each image.

    Args:
        model: from [batch, channels, height, width] to logits [batch, K].
        images: normalized, [batch, channels, height, width].
        views: "one", the image as it is; "mirror", also its mirror image; "mirror-shift", also both of them moved by
            one pixel, up and left, and down and right, each of these with half the weight (as Jordan 2024 does). Pixels
            from beyond the border are reflected.

    Returns:
        float32 [batch, K].

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> image = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    >>> both = (model(image) + model(image.flip(3))) / 2
    >>> averaged_logits(model, image, "mirror").allclose(both)
    True
    """
    logits = torch.stack([weight * model(view).float() for weight, view in _views(images, views)])
    return logits.sum(0)


def _views(images: Tensor, views: Views) -> Iterator[tuple[float, Tensor]]:
    """Weights, which are 1 in sum, and images."""
    shifted = []
    if views == "mirror-shift":
        height, width = images.shape[2:]
        padded = pad(images, [1] * 4, mode="reflect")
        shifted = [padded[:, :, first : first + height, first : first + width] for first in (2, 0)]
    for weight, view in ((0.5 if shifted else 1.0, images), *((0.25, each) for each in shifted)):
        if views == "one":
            yield weight, view
        else:
            yield weight / 2, view
            yield weight / 2, view.flip(3)
