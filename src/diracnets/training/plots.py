"""Figures of a run: its learning curve and the confusion matrix. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diracnets.errors import MissingExtraError
from diracnets.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 30  # classes whose names and counts are still legible
PAIRS = 20  # confusions listed where they are not


def draw_curve(history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw loss and accuracy by epoch, and the learning rate, into a PNG.

    Args:
        history: the rows of `metrics.jsonl`.
        path: the file.

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
        accuracies.set_title(f"validation accuracy {evaluated[-1]['val_accuracy']:.2%}", fontsize=10)
    rates = losses.twinx()
    rates.plot(epochs, [row["rate"] for row in history], color="gray", linewidth=0.8, linestyle=":")
    rates.set_ylabel("learning rate (dotted)", color="gray")
    rates.set_ylim(bottom=0)
    for axes in (losses, accuracies):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix into a PNG: with names and counts up to 30 classes, else with a list of confusions.

    Args:
        confusion: int64 [K, K], rows are true classes, columns predicted ones.
        classes: the K names.
        path: the file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        FileError: the file cannot be written.
    """
    count = len(classes)
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)  # of each true class
    if count <= NAMED:
        side = max(4.0, 0.45 * count)
        figure = new_figure(side + 1.5, side)
        axes = figure.subplots()
        names = [_short(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for true, predicted in confusion.nonzero().tolist():
            number, color = str(int(confusion[true, predicted])), "white" if shares[true, predicted] > 0.3 else "black"
            axes.text(predicted, true, number, ha="center", va="center", fontsize=8, color=color)
    else:
        figure = new_figure(11.5, 7)
        axes, side = figure.subplots(1, 2, width_ratios=[3, 1.1])
        side.set_axis_off()
        side.text(0, 1, _likeliest(confusion, classes), va="top", fontsize=9)
    image = axes.imshow(shares.sqrt().numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]  # in square roots, so that rare confusions can be seen
    bar = figure.colorbar(image, ax=axes, fraction=0.046, label="part of the true class")
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    save_figure(figure, path)


def _likeliest(confusion: Tensor, classes: Sequence[str]) -> str:
    """The confusions that happen most, as lines of text."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    most = torch.sort(wrong, descending=True, stable=True).indices[:PAIRS].tolist()
    pairs = [(int(wrong[i]), *divmod(i, len(classes))) for i in most if wrong[i] > 0]
    lines = [
        f"{times} x {_short(classes[true])} taken for {_short(classes[predicted])}" for times, true, predicted in pairs
    ]
    return "\n".join(["Most frequent confusions", "", *lines])


def _short(name: str, most: int = 18) -> str:
    name = name.replace("$", r"\$")  # matplotlib would read mathematics into it
    return name if len(name) <= most else name[: most - 1] + "…"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without any global state of pyplot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'diracnets[plot]'") from error
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure into a PNG, whole or not at all."""
    with written_whole(path) as part:
        figure.savefig(part, dpi=130, format="png")
