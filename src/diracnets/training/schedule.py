"""The learning rate of every step, as a pure function of the recipe: a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

from diracnets.training.settings import OptimizationSettings


def learning_rate(optimization: OptimizationSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate `lr` of one step, see `factor`.

    >>> from diracnets import Recipe
    >>> paper = Recipe.load("paper-cifar").optimization
    >>> [round(learning_rate(paper, (epoch - 1) * 391, 391), 6) for epoch in (1, 59, 60, 120, 160, 200)]
    [0.1, 0.1, 0.02, 0.004, 0.0008, 0.0008]
    """
    return optimization.lr * factor(optimization, step, steps_per_epoch)


def factor(optimization: OptimizationSettings, step: int, steps_per_epoch: int) -> float:
    """What one step's learning rates are of their peak values, over 0 and up to 1.

    Args:
        optimization: its `schedule`, `warmup`, `milestones`, `gamma` and `epochs` decide.
        step: steps done before this one, in the whole run.
        steps_per_epoch: batches per epoch.

    Returns:
        The factor. It is never zero: a warm-up ends at the peak, a fall ends one step above zero.

    >>> factor(OptimizationSettings(schedule="one-cycle", warmup=0.5, epochs=2), step=15, steps_per_epoch=10)
    0.5
    """
    total = optimization.epochs * steps_per_epoch
    rising = round(optimization.warmup * total)
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / (total - rising)  # 1 after the warm-up, 1 / steps in the last step
    match optimization.schedule:
        case "step":
            epoch = step // steps_per_epoch + 1
            return optimization.gamma ** sum(milestone <= epoch for milestone in optimization.milestones)
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case "one-cycle":
            return left
        case "constant":
            return 1.0


def momentum_restarts(optimization: OptimizationSettings, step: int, steps_per_epoch: int) -> bool:
    """Whether the momentum is set to zero before this step: the first of an epoch that is a milestone.

    >>> from diracnets import Recipe
    >>> momentum_restarts(Recipe.load("paper-cifar").optimization, step=59 * 391, steps_per_epoch=391)
    True
    """
    epoch, batch = divmod(step, steps_per_epoch)
    return optimization.restart_momentum and batch == 0 and epoch + 1 in optimization.milestones
