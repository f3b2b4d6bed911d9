"""Progressive resizing: a run's first part trains on smaller images, which cost less, and its last on whole ones."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from diracnets.errors import UsageError
from diracnets.training.recipe import Recipe


def require_smaller(recipe: Recipe, input_size: tuple[int, int, int], least: int) -> None:
    """Refuse a `first_size` that is no smaller than the images, or too small for the network.

    Args:
        recipe: its `first_size`, where it has one.
        input_size: (channels, height, width) of the images.
        least: the smallest side that the network takes.

    Raises:
        UsageError: such a `first_size`.

    >>> require_smaller(Recipe(first_size=24), (3, 32, 32), least=8)
    """
    if recipe.first_size is not None and not least <= recipe.first_size < min(input_size[1:]):
        raise UsageError(
            f"first_size is {recipe.first_size}, but {recipe.model} takes images from {least}x{least} on, and these "
            f"are of {input_size[1]}x{input_size[2]}: give a side between, or none (--first-size None)"
        )


def resized(images: Tensor, recipe: Recipe, step: int, steps_per_epoch: int) -> Tensor:
    """The images of a step as the recipe has them there: scaled to `first_size` in its `first_part`, then as they are.

    Args:
        images: [batch, channels, height, width].
        recipe: its `first_size`, `first_part` and `epochs` decide.
        step: steps done before this one, in the whole run.
        steps_per_epoch: batches an epoch.

    Returns:
        [batch, channels, h, w], the smaller side of it `first_size`, of the same proportions and interpolated with
        antialiasing, or `images` themselves.

    Source: progressive resizing as in Howard 2018 (fast.ai's entry to DAWNBench).

    >>> import torch
    >>> recipe = Recipe(first_size=24, first_part=0.25, epochs=2)
    >>> [resized(torch.rand(1, 3, 32, 32), recipe, step, steps_per_epoch=10).shape[-1] for step in (0, 4, 5)]
    [24, 24, 32]
    """
    if recipe.first_size is None or step >= recipe.first_part * recipe.epochs * steps_per_epoch:
        return images
    scale = recipe.first_size / min(images.shape[2:])
    return interpolate(images, [round(side * scale) for side in images.shape[2:]], mode="bilinear", antialias=True)
