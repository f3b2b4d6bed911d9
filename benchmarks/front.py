"""Draw the picture of README.md, for light and for dark pages: what fold does, and accuracy against depth.

python benchmarks/front.py

Its letters are so large that they can be read on a phone, where the picture is about 360 points wide.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from figures import DEPTHS, DIRAC_ROW, PLAIN_ROW, RATE, RESIDUAL_ROW, STUDY, group
from pages import ROOT, found

from diracnets.evaluation.plots import new_figure, save_figure
from diracnets.studies.groups import Group, percents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, SMALL = 21, 18  # of letters, in points of a picture 9.3 inches wide


@dataclass(frozen=True)
class Look:
    """Colours; each has a contrast of at least 4.5 to the ground that it stands on."""

    ground: str
    ink: str
    faint: str
    dirac: str
    residual: str
    plain: str


LOOKS = {
    "diracnets.png": Look("#ffffff", "#1f2328", "#d0d7de", "#0969da", "#1a7f37", "#cf222e"),
    "diracnets-dark.png": Look("#0d1117", "#e6edf3", "#3d444d", "#58a6ff", "#56d364", "#ff7b72"),
}
LINES = {  # colour: row of the study, learning rate (None: the best one of each depth), label, and where it stands
    "dirac": (DIRAC_ROW, RATE, f"DiracNet, one learning rate ({RATE})", (28, 64.5)),
    "residual": (RESIDUAL_ROW, None, "residual, best\nlearning rate\nof each depth", (218, 38.0)),
    "plain": (PLAIN_ROW, RATE, f"plain, same initial\nfilters, rate {RATE}", (28, 12.5)),
}


def values(groups: Sequence[Group], row: str, rate: float | None) -> dict[int, float]:
    """Mean accuracy in percent by depth, where it was measured."""
    of_depth = {depth: group(groups, row, depth) for depth in DEPTHS}
    runs = {depth: each.runs if rate is None else each.by_rate.get(rate) for depth, each in of_depth.items() if each}
    return {depth: statistics.fmean(percents(STUDY, of_rate)) for depth, of_rate in runs.items() if of_rate}


def by_depth(axes: Axes, groups: Sequence[Group], look: Look) -> None:
    """Three lines, each with its name beside it."""
    for name, (row, rate, label, place) in LINES.items():
        color, found_values = getattr(look, name), values(groups, row, rate)
        axes.plot(list(found_values), list(found_values.values()), color=color, marker="o", markersize=9, linewidth=3.5)
        axes.text(*place, label, color=color, fontsize=SIZE, weight="bold", va="bottom", linespacing=1.15)
        axes.texts[-1].set_bbox({"facecolor": look.ground, "edgecolor": "none", "pad": 2})
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(DEPTHS, [f"{depth:,}" for depth in DEPTHS])
    axes.set_yticks(range(0, 80, 20), [f"{value}%" for value in range(0, 80, 20)])
    axes.set_ylim(0, 74)
    axes.grid(axis="y", color=look.faint)
    axes.set_axisbelow(True)
    axes.set_facecolor(look.ground)
    axes.tick_params(colors=look.ink, labelsize=SMALL, length=0, pad=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(look.faint)
    axes.set_title("Accuracy on CIFAR-10 by number of layers", loc="left", color=look.ink, fontsize=SIZE, pad=14)


def what_it_does(axes: Axes, look: Look) -> None:
    """A block in training, and what folding makes of it."""
    axes.set_axis_off()
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 58)
    trained = (("Dirac conv", 28, look.dirac), ("BatchNorm", 27, look.ink), ("ReLU", 15, look.ink))
    chain(axes, "Train", 40, trained, look)
    axes.annotate("", xy=(35, 20), xytext=(35, 37), arrowprops={"arrowstyle": "-|>", "lw": 4, "color": look.dirac})
    axes.texts[-1].arrow_patch.set_mutation_scale(32)
    axes.text(39, 28.5, "fold: exact, and checked", color=look.dirac, fontsize=SIZE, weight="bold", va="center")
    folded = (("conv", 16, look.dirac), ("ReLU", 15, look.ink), ("conv", 16, look.dirac), ("ReLU", 15, look.ink))
    chain(axes, "Run", 3, folded, look)


def chain(axes: Axes, title: str, y: float, boxes: Sequence[tuple[str, float, str]], look: Look) -> None:
    """Boxes from left to right with arrows between them."""
    from matplotlib.patches import FancyBboxPatch

    high, gap, x = 14, 4.5, 13.0
    axes.text(0, y + high / 2, title, fontsize=SIZE, weight="bold", va="center", color=look.ink)
    for text, width, color in boxes:
        style = {"boxstyle": "round,pad=0,rounding_size=2", "linewidth": 2.5, "facecolor": look.ground}
        axes.add_patch(FancyBboxPatch((x, y), width, high, edgecolor=color, **style))
        axes.text(x + width / 2, y + high / 2, text, ha="center", va="center", fontsize=SMALL, color=color)
        x += width
        arrow = {"arrowstyle": "->", "color": look.ink, "linewidth": 2}
        axes.annotate("", xy=(x + gap, y + high / 2), xytext=(x, y + high / 2), arrowprops=arrow)
        x += gap
    axes.text(x + 0.5, y + high / 2, "…", va="center", fontsize=SIZE, color=look.ink)


def main() -> None:
    groups = found(STUDY)
    for name, look in LOOKS.items():
        figure = new_figure(9.3, 8.6)
        figure.set_facecolor(look.ground)
        upper, lower = figure.subplots(2, 1, height_ratios=[1, 1.75])
        what_it_does(upper, look)
        by_depth(lower, groups, look)
        save_figure(figure, ROOT / "docs" / name)


if __name__ == "__main__":
    main()
