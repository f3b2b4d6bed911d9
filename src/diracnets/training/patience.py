"""Early stopping: a run ends where its validation accuracy has not risen for long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diracnets.training.settings import OptimizationSettings


def score(row: Mapping[str, Any]) -> float | None:
    """What the epochs of a run are compared by: the validation accuracy, balanced where the class weights are.

    Of unequal classes, a network that answers with the largest one whatever it sees may have the highest plain one.

    Args:
        row: of `metrics.jsonl`; None is returned for an epoch without evaluation.
    """
    found = row.get("val_balanced_accuracy", row.get("val_accuracy"))
    return None if found is None else float(found)


def waited(optimization: OptimizationSettings, history: Sequence[Mapping[str, Any]]) -> int:
    """For how many epochs the validation accuracy has not risen, up to the last one that was evaluated.

    The epochs of a warm-up do not count. It follows from the rows alone, so that a resumed run stops where the whole
    one does, and every process at the same epoch.

    Args:
        optimization: its `warmup` and `epochs` decide.
        history: the rows of `metrics.jsonl`.

    >>> rows = [{"epoch": epoch, "val_accuracy": found} for epoch, found in enumerate([0.5, 0.7, 0.7, 0.6], start=1)]
    >>> waited(OptimizationSettings(epochs=10), rows), waited(OptimizationSettings(epochs=10, warmup=0.3), rows)
    (2, 1)
    """
    found = [(accuracy, row["epoch"]) for row in history if (accuracy := score(row)) is not None]
    if not found:
        return 0
    highest = max(accuracy for accuracy, _ in found)
    first = next(epoch for accuracy, epoch in found if accuracy == highest)
    return max(0, int(found[-1][1] - max(first, round(optimization.warmup * optimization.epochs))))


def out_of_patience(optimization: OptimizationSettings, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the validation accuracy has not risen for `patience` epochs."""
    return optimization.patience is not None and waited(optimization, history) >= optimization.patience


def schedule_cut_short(optimization: OptimizationSettings) -> str | None:
    """What to say where stopping early leaves out the lowest learning rates, else None."""
    if optimization.patience is None or optimization.schedule in ("constant", "step"):
        return None
    return (
        f"patience {optimization.patience} may stop the run before the {optimization.schedule} schedule has brought "
        "the learning rate down, which is what raises accuracy most: constant and step are the schedules for it"
    )
