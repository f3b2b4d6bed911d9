"""Draw the figures of README.md and docs/depth.md, the curves from results/depth.jsonl.

python benchmarks/figures.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pages import DEPTH_BUDGET, ROOT, found, the_group

from diracnets.evaluation.plots import new_figure, save_figure
from diracnets.studies.depth import depth_study
from diracnets.studies.groups import Group, percents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STUDY = depth_study()
DEPTHS = (28, 52, 100, 196, 400, 1000)
RATE = 0.2
DIRAC, PLAIN, RESIDUAL, GREY = "#0b6fb8", "#d1495b", "#66a182", "#8a8f98"
DIRAC_ROW, PLAIN_ROW, RESIDUAL_ROW = "diracnet-{}-0.5-deep", "plain-{}-0.5-identity", "wrn-{}-0.5"


def group(groups: Sequence[Group], row: str, depth: int) -> Group | None:
    return the_group(groups, f"cifar10-{row.format(depth)}", **DEPTH_BUDGET)


def by_depth(axes: Axes, groups: Sequence[Group]) -> None:
    """Accuracy against depth; a vertical bar is a standard deviation over random seeds."""
    lines = (
        (DIRAC_ROW, RATE, {"color": DIRAC, "label": f"Dirac, learning rate {RATE} at every depth"}),
        (RESIDUAL_ROW, None, {"color": RESIDUAL, "label": "residual, best learning rate of each depth"}),
        (PLAIN_ROW, None, {"color": PLAIN, "linestyle": "--", "label": "plain*, best learning rate of each depth"}),
        (PLAIN_ROW, RATE, {"color": PLAIN, "label": f"plain*, learning rate {RATE}"}),
    )
    for row, rate, look in lines:
        of_depth = [(depth, group(groups, row, depth)) for depth in DEPTHS]
        runs = [(depth, each.runs if rate is None else each.by_rate.get(rate)) for depth, each in of_depth if each]
        values = [(depth, percents(STUDY, of_rate)) for depth, of_rate in runs if of_rate]
        spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for _, each in values]
        means = [statistics.fmean(each) for _, each in values]
        axes.errorbar([depth for depth, _ in values], means, spreads, marker="o", markersize=4, capsize=3, **look)
    axes.set_xscale("log")
    axes.set_xticks(DEPTHS, [f"{depth:,}" for depth in DEPTHS])
    axes.set_xlabel("layers")
    of_accuracy(axes)


def by_rate(axes: Axes, groups: Sequence[Group]) -> None:
    """Accuracy against learning rate at three depths."""
    for row, color, kind in ((DIRAC_ROW, DIRAC, "Dirac"), (PLAIN_ROW, PLAIN, "plain*")):
        for depth, style in ((28, "-"), (100, "--"), (400, ":")):
            each = group(groups, row, depth)
            if each is None:
                continue
            means = [statistics.fmean(percents(STUDY, runs)) for runs in each.by_rate.values()]
            look: dict[str, Any] = {"color": color, "linestyle": style, "marker": "o", "markersize": 4}
            axes.plot(list(each.by_rate), means, label=f"{kind}, {depth} layers", **look)
    axes.set_xscale("log")
    ticks = (0.0015, 0.006, 0.025, 0.1, 0.4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("learning rate")
    of_accuracy(axes)


def of_accuracy(axes: Axes) -> None:
    axes.minorticks_off()
    axes.set_ylabel("accuracy on CIFAR-10, %")
    axes.set_ylim(0, 70)
    axes.grid(alpha=0.3)
    axes.set_title("4 epochs on 8,000 images, width 0.5", fontsize=9)
    axes.legend(fontsize=8, loc="lower left", title="* same initial filters as Dirac", title_fontsize=8)


def what_it_does(axes: Axes) -> None:
    """A block in training, and what folding makes of it."""
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    axes.text(0, 9.5, "Training", fontsize=12, weight="bold")
    chain(axes, 7.4, (("Dirac conv", 2.6, DIRAC), ("BatchNorm", 2.3, GREY), ("ReLU", 1.5, "white")))
    axes.text(0.1, 6.3, r"filters:  $\alpha I + \beta\,W / \|W\|$", fontsize=11, color=DIRAC)
    arrow = {"arrowstyle": "-|>", "linewidth": 2, "color": "black", "mutation_scale": 18}
    axes.annotate("", xy=(3.2, 3.9), xytext=(3.2, 5.4), arrowprops=arrow)
    axes.text(3.6, 4.45, "diracnets.fold(net): exact, checked on the spot", fontsize=10, family="monospace")
    axes.texts[-1].set_family("sans-serif")
    axes.text(0, 3.2, "Inference", fontsize=12, weight="bold")
    chain(axes, 1.2, (("conv", 1.6, DIRAC), ("ReLU", 1.5, "white"), ("conv", 1.6, DIRAC), ("ReLU", 1.5, "white")))


def chain(axes: Axes, y: float, boxes: Sequence[tuple[str, float, str]]) -> None:
    """Boxes from left to right with arrows between them."""
    from matplotlib.patches import FancyBboxPatch

    x, gap = 0.1, 0.45
    for text, width, color in boxes:
        style = {"boxstyle": "round,pad=0,rounding_size=0.15", "linewidth": 1.2}
        edge = "black" if color == "white" else color
        axes.add_patch(FancyBboxPatch((x, y), width, 1.3, facecolor=color, edgecolor=edge, **style))
        ink = "black" if color == "white" else "white"
        axes.text(x + width / 2, y + 0.62, text, ha="center", va="center", fontsize=10, color=ink)
        x += width
        axes.annotate("", xy=(x + gap, y + 0.65), xytext=(x, y + 0.65), arrowprops={"arrowstyle": "->"})
        x += gap
    axes.text(x + 0.05, y + 0.62, "...", va="center", fontsize=14)


def main() -> None:
    groups = found(STUDY)
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    what_it_does(left)
    by_depth(right, groups)
    save_figure(figure, ROOT / "docs" / "diracnets.png")
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2)
    by_depth(left, groups)
    by_rate(right, groups)
    save_figure(figure, ROOT / "docs" / "depth.png")


if __name__ == "__main__":
    main()
