"""The figure of a study: lines over a number, or a dot for each run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diracnets.analysis.report import Say, draw_png, machine_name
from diracnets.evaluation.plots import wrapped
from diracnets.studies.grid import Lines, Study
from diracnets.studies.groups import Group, groups_of, percents
from diracnets.studies.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3  # panels next to each other


def draw(study: Study, records: Sequence[Record], path: Path, say: Say) -> bool:
    """Draw the runs into a PNG, if there are any.

    Returns:
        Whether the figure was drawn.

    Raises:
        FileError: the file cannot be written.
    """
    groups = groups_of(study, records)
    if not groups:
        return False
    if study.figure is None:
        rows = len(groups) + len(study.published)
        return draw_png(path, lambda figure: _dots(figure, study, groups), 9, 1.7 + 0.3 * rows, say)
    usual = _usual(groups)
    points = _points(study.figure, groups, usual)
    panels = list(dict.fromkeys(point.panel for point in points))
    across = min(len(panels), ACROSS)
    legend = 0.2 * len({point.line for point in points}) / across
    height = 4.5 * math.ceil(len(panels) / ACROSS) + legend + 0.3
    unless = ", ".join(f"{name} {value}" for name, value in usual.items() if value is not None)
    caption = (f"Unless a line says otherwise: {unless}. " if unless else "") + _machines(groups)
    return draw_png(path, lambda figure: _lines(figure, study, points, panels, caption), 2 + 5 * across, height, say)


def _usual(groups: Sequence[Group]) -> Mapping[str, Any]:
    """The settings in which groups differ, as most of them have them."""
    variants = [group.variant for group in groups]
    return max(variants, key=variants.count)


@dataclass(frozen=True)
class _Point:
    panel: str
    x_name: str
    x: float
    line: str
    runs: list[Record]


def _points(shape: Lines, groups: Sequence[Group], usual: Mapping[str, Any]) -> list[_Point]:
    """Each group at its best learning rate, and further panels over the rates where rows were trained at several."""
    over_rates = (*shape.panels, shape.x)
    several = {_panel(group, over_rates) for group in groups if len(group.by_rate) > 1}
    best, rates = [], []
    for group in groups:
        panel, line = _panel(group, shape.panels), str(group.axes[shape.series])
        other = [f"{name} {_word(value)}" for name, value in group.variant.items() if value != usual.get(name)]
        line = ", ".join([line, *other])
        best.append(_Point(panel, shape.x, float(group.axes[shape.x]), line, group.runs))
        if _panel(group, over_rates) in several:
            at = _panel(group, over_rates)
            rates += [_Point(at, "learning rate", rate, line, runs) for rate, runs in group.by_rate.items()]
    return best + rates


def _word(value: object) -> object:
    return "not set" if value is None else value


def _panel(group: Group, names: Sequence[str]) -> str:
    values = [(name, group.axes[name]) for name in names]
    return ", ".join(value if isinstance(value, str) else f"{name} {value:g}" for name, value in values)


def _lines(figure: Figure, study: Study, points: Sequence[_Point], panels: Sequence[str], caption: str) -> None:
    """Means with standard deviations; crosses at the bottom where all runs diverged."""
    colors = {line: f"C{number}" for number, line in enumerate(dict.fromkeys(point.line for point in points))}
    handles: dict[str, Any] = {}
    across = min(len(panels), ACROSS)
    grid = figure.subplots(math.ceil(len(panels) / ACROSS), across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        mine = sorted((point for point in points if point.panel == panel), key=lambda point: point.x)
        for line in dict.fromkeys(point.line for point in points if point.panel == panel):
            of_line = [(point.x, percents(study, point.runs)) for point in mine if point.line == line]
            found = [(x, values) for x, values in of_line if values]
            means = [statistics.fmean(values) for _, values in found]
            spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in found]
            look = {"color": colors[line], "marker": "o", "markersize": 4, "capsize": 3, "label": line}
            axes.errorbar([x for x, _ in found], means, spreads, **look)
            if lost := [x for x, values in of_line if not values]:
                axes.plot(lost, [0] * len(lost), "x", color=colors[line], clip_on=False)
        ticks = sorted({point.x for point in mine})
        if ticks[0] > 0:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 6 else 0)
        axes.minorticks_off()
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(mine[0].x_name)
        axes.set_ylabel(f"{study.measure}, % (crosses: diverged)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        lines, labels = axes.get_legend_handles_labels()
        handles |= zip(labels, lines, strict=True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, fontsize=8)
    figure.suptitle(wrapped(figure, caption, fontsize=8), fontsize=8, color="gray")


def _dots(figure: Figure, study: Study, groups: Sequence[Group]) -> None:
    """A dot for each run at the best learning rate of its row, and a diamond for each published value."""
    axes = figure.subplots()
    for height, group in enumerate(groups):
        values = percents(study, group.runs)
        axes.plot(values, [height] * len(values), "o", color="C0", alpha=0.7)
    names = [f"{group.row}, {group.settings['epochs']} epochs" for group in groups]
    heights = range(len(names), len(names) + len(study.published))
    axes.plot(list(study.published.values()), heights, "D", color="C1", markerfacecolor="white")
    axes.set_yticks(range(len(names) + len(heights)), [*names, *study.published], fontsize=8)
    axes.invert_yaxis()
    others = ", a diamond for each published value" if study.published else ""
    axes.set_xlabel(f"{study.measure}, %, a dot for each run{others}")
    axes.grid(alpha=0.3)
    figure.supxlabel(wrapped(figure, _machines(groups), fontsize=8), fontsize=8, color="gray")


def _machines(groups: Sequence[Group]) -> str:
    """What trained the runs: one sentence for all, since lines and rows differ in networks, not in machines."""
    runs = [run for group in groups for runs in group.by_rate.values() for run in runs]
    machines = dict.fromkeys(f"{machine_name(run.environment)}, {run.environment['precision']}" for run in runs)
    return "Trained on: " + "; ".join(machines)
