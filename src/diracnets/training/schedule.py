"""The learning rate of every step, as a pure function of the recipe: a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

from diracnets.training.recipe import Recipe


def rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate `lr` of one step, see `factor`.

    >>> paper = Recipe.load("paper-cifar")
    >>> [round(rate(paper, (epoch - 1) * 391, 391), 6) for epoch in (1, 59, 60, 120, 160, 200)]
    [0.1, 0.1, 0.02, 0.004, 0.0008, 0.0008]
    """
    return recipe.lr * factor(recipe, step, steps_per_epoch)


def factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """What one step's rates are of those at the height of the schedule, over 0 and up to 1.

    Args:
        recipe: its `schedule`, `warmup`, `drops`, `drop_factor` and `epochs` decide.
        step: steps done before this one, in the whole run.
        steps_per_epoch: batches an epoch.

    Returns:
        The factor. It is never zero: a warm-up ends at the full rate, a fall ends one step above zero.

    >>> factor(Recipe(schedule="one-cycle", warmup=0.5, epochs=2), step=15, steps_per_epoch=10)
    0.5
    """
    total = recipe.epochs * steps_per_epoch
    rising = round(recipe.warmup * total)
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / (total - rising)  # 1 after the warm-up, 1 / steps in the last step
    match recipe.schedule:
        case "step":
            epoch = step // steps_per_epoch + 1
            return recipe.drop_factor ** sum(drop <= epoch for drop in recipe.drops)
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case "one-cycle":
            return left
        case "constant":
            return 1.0


def momentum_restarts(recipe: Recipe, step: int, steps_per_epoch: int) -> bool:
    """Whether the optimizer forgets its momentum before this step: the first of an epoch in which the rate drops.

    >>> momentum_restarts(Recipe.load("paper-cifar"), step=59 * 391, steps_per_epoch=391)
    True
    """
    epoch, batch = divmod(step, steps_per_epoch)
    return recipe.restart_momentum and batch == 0 and epoch + 1 in recipe.drops
