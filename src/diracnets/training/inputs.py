"""What a step does to its batch besides augmentation: progressive resizing, and mixup."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diracnets.errors import UsageError
from diracnets.training.settings import DataSettings


def check_progressive_size(data: DataSettings, input_size: tuple[int, int, int], least: int) -> None:
    """Refuse a `progressive_size` that is no smaller than the images, or too small for the network.

    Args:
        data: its `progressive_size`, where it has one.
        input_size: (channels, height, width) of the images.
        least: the smallest side that the network takes.

    Raises:
        UsageError: such a `progressive_size`.

    >>> check_progressive_size(DataSettings(progressive_size=24), (3, 32, 32), least=8)
    """
    size = data.progressive_size
    if size is not None and not least <= size < min(input_size[1:]):
        raise UsageError(
            f"progressive_size is {size}, but the network takes images from {least}x{least} on, and these are of "
            f"{input_size[1]}x{input_size[2]}: give a side between, or none (--progressive-size None)"
        )


def progressively_resized(images: Tensor, data: DataSettings, step: int, steps: int) -> Tensor:
    """The images of a step: scaled to `progressive_size` in the first part of the run, then as they are.

    Args:
        images: [batch, channels, height, width].
        data: its `progressive_size` and `progressive_fraction` decide.
        step: steps done before this one, in the whole run.
        steps: of the whole run.

    Returns:
        [batch, channels, h, w], the shorter side of it `progressive_size`, with the same aspect ratio and interpolated
        with antialiasing, or `images` themselves.

    Source: progressive resizing as in Howard 2018 (fast.ai's entry to DAWNBench).

    >>> data = DataSettings(progressive_size=24, progressive_fraction=0.25)
    >>> [progressively_resized(torch.rand(1, 3, 32, 32), data, step, steps=20).shape[-1] for step in (0, 4, 5)]
    [24, 24, 32]
    """
    if data.progressive_size is None or step >= data.progressive_fraction * steps:
        return images
    scale = data.progressive_size / min(images.shape[2:])
    return interpolate(images, [round(side * scale) for side in images.shape[2:]], mode="bilinear", antialias=True)


def mixup_share(alpha: float, seed: int, epoch: int, batch: int) -> float:
    """The share of each image in its mixture, 0.5 to 1: what a batch draws depends on (seed, epoch, its number) alone.

    Args:
        alpha: of the distribution Beta(alpha, alpha).
        seed: the random seed of the run.
        epoch: counted from 1.
        batch: counted from 0 in the epoch.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization".

    >>> 0.5 <= mixup_share(0.2, seed=0, epoch=1, batch=0) <= 1
    True
    """
    share = float(np.random.default_rng([seed, epoch, batch]).beta(alpha, alpha))
    return max(share, 1 - share)  # the larger one is each image's own; who is added to whom is as random as before


def mixed(images: Tensor, share: float, ring: bool = True) -> Tensor:
    """Each image of a batch, in its share, plus the one before it in the rest; see `with_mixed_in`.

    >>> mixed(torch.tensor([[0.0], [1.0]]), 0.75).flatten().tolist()
    [0.25, 0.75]
    """
    own, others = with_mixed_in(images, ring)
    return torch.lerp(others, own, share)


def with_mixed_in(batch: Tensor, ring: bool = True) -> tuple[Tensor, Tensor]:
    """What belongs to each image of a batch [B, ...], and what is mixed into it: what belongs to the one before it.

    Args:
        batch: of the images, or of what belongs to them.
        ring: whether this is all of a batch, so that its last image is before its first. Else it is a part of one,
            with the image before that part in front.

    >>> [part.tolist() for part in with_mixed_in(torch.tensor([3, 4, 5]))]
    [[3, 4, 5], [5, 3, 4]]
    >>> [part.tolist() for part in with_mixed_in(torch.tensor([3, 4, 5]), ring=False)]
    [[4, 5], [3, 4]]
    """
    return (batch, batch.roll(1, 0)) if ring else (batch[1:], batch[:-1])
