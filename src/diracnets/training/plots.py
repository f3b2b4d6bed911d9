"""The figure of a run: its learning curve. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diracnets.evaluation.plots import new_figure, save_figure
from diracnets.training.patience import score


def draw_curve(history: Sequence[dict[str, Any]], path: str | Path, *, label_smoothing: float = 0.0) -> None:
    """Draw loss and accuracy by epoch, the best epoch, and the learning rate, into a PNG.

    Args:
        history: the rows of `metrics.jsonl`.
        path: the file.
        label_smoothing: of the training loss. Where it lies above the validation loss, a caption says that this is why.

    Raises:
        MissingExtraError: matplotlib is not installed.
        FileError: the file cannot be written.
    """
    figure = new_figure(9, 3.6)
    losses, accuracies = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    evaluated = [row for row in history if "val_loss" in row]
    at = [row["epoch"] for row in evaluated]
    marker = "o" if len(history) < 3 else None
    losses.plot(epochs, [row["loss"] for row in history], label="training", marker=marker)
    losses.plot(at, [row["val_loss"] for row in evaluated], label="validation", marker=marker)
    losses.set_ylabel("loss")
    accuracies.plot(epochs, [100 * row["accuracy"] for row in history], label="training", marker=marker)
    accuracies.plot(at, [100 * row["val_accuracy"] for row in evaluated], label="validation", marker=marker)
    accuracies.set_ylabel("accuracy, %")
    if evaluated:
        best = max(evaluated, key=lambda row: (score(row) or 0.0, row["epoch"]))  # of equals the last, as is kept
        kind = "balanced validation" if "val_balanced_accuracy" in best else "validation"
        accuracies.set_title(f"best {kind} accuracy {score(best):.2%}, epoch {best['epoch']}", fontsize=10)
        for axes, value in ((losses, best["val_loss"]), (accuracies, 100 * best["val_accuracy"])):
            axes.axvline(best["epoch"], color="C1", linewidth=0.8, linestyle="--")
            axes.plot([best["epoch"]], [value], "*", color="C1", markersize=11, label="best epoch")
    rates = losses.twinx()
    rates.plot(epochs, [row["rate"] for row in history], color="gray", linewidth=0.8, linestyle=":")
    rates.set_ylabel("learning rate (dotted)", color="gray")
    rates.set_ylim(bottom=0)
    losses.set_zorder(rates.get_zorder() + 1)  # so that the legend covers the dots
    losses.patch.set_visible(False)
    for axes in (losses, accuracies):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    if label_smoothing and any(row["loss"] > row["val_loss"] for row in evaluated):
        caption = f"The training loss includes label smoothing ({label_smoothing:g}), the validation loss does not"
        figure.supxlabel(f"{caption}, and so is lower.", fontsize=8, color="gray")
    save_figure(figure, path)
