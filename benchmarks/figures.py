"""Draw the figure of docs/depth.md from results/depth.jsonl.

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
DIRAC, PLAIN, RESIDUAL = "#0b6fb8", "#d1495b", "#66a182"
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


def main() -> None:
    groups = found(STUDY)
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2)
    by_depth(left, groups)
    by_rate(right, groups)
    save_figure(figure, ROOT / "docs" / "depth.png")


if __name__ == "__main__":
    main()
