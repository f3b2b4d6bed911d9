"""The picture of a study of trainings: lines over a number, or a dot for each row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diracnets.studies.picture import save_picture
from diracnets.studies.rates import Told, rate_of, told_rows
from diracnets.studies.records import Asked, Record, Results
from diracnets.studies.study import Lines
from diracnets.studies.table import percents, published_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 3  # panels beside each other


def draw(results: Results, path: Path, say: Callable[[str], None]) -> None:
    """Draw the trained rows into a PNG; nothing where none is trained yet.

    Args:
        results: all that is known.
        path: the file.
        say: is told where matplotlib is not installed.

    Raises:
        FileError: the file cannot be written.
    """
    lines = [line for line in told_rows(results) if results.of_row(line.row)]
    if not lines:
        return
    rows = [(line.row, results.of_row(line.row)) for line in lines]
    if results.picture is None:
        save_picture(path, lambda figure: _dots(figure, results, rows), 9, 1.5 + 0.3 * len(rows), say)
        return
    points = _points(results, lines, results.picture)
    panels = list(dict.fromkeys(point.panel for point in points))
    across = min(len(panels), ACROSS)
    below = 0.2 * len({point.name for point in points}) / across  # for the legend
    height = 4.5 * math.ceil(len(panels) / ACROSS) + below
    save_picture(path, lambda figure: _lines(figure, results, points, panels), 2 + 5 * across, height, say)


@dataclass(frozen=True)
class _Point:
    """What a row's trainings gave, at its place in the picture."""

    panel: str
    x_name: str
    x: float
    name: str
    """Of its line."""
    records: list[Record]


def _points(results: Results, lines: Sequence[Told], shape: Lines) -> list[_Point]:
    """Each row's best, and behind those a panel over the rates for each place where a row was trained with several."""
    several = Lines("rate", shape.series, (*shape.panels, shape.x))
    names = series_names([line.row for line in lines], shape)
    shown = {_panel(line.row, several) for line in lines if len(line.tried) > 1}
    best = [
        _Point(_panel(line.row, shape), shape.x, float(line.row.place[shape.x]), name, results.of_row(line.row))
        for name, line in zip(names, lines, strict=True)
    ]
    each = [
        _Point(_panel(row, several), "rate", rate_of(row), name, results.of_row(row))
        for name, line in zip(names, lines, strict=True)
        for row in line.tried
        if _panel(row, several) in shown
    ]
    return best + each


def _panel(row: Asked, shape: Lines) -> str:
    values = [(name, row.place[name]) for name in shape.panels]
    return ", ".join(value if isinstance(value, str) else f"{name} {value:g}" for name, value in values)


def series_names(rows: Sequence[Asked], shape: Lines) -> list[str]:
    """To which line each row belongs: its series, and whatever else tells a panel's rows apart, such as a budget."""
    told = [
        [str(value) for name, value in row.place.items() if name not in (shape.x, shape.series, *shape.panels)]
        + [f"{row.recipe['epochs']} epochs", f"{row.recipe.get('images') or 'all'} images", row.recipe["precision"]]
        for row in rows
    ]
    beside: dict[str, list[list[str]]] = {}
    for row, texts in zip(rows, told, strict=True):
        beside.setdefault(_panel(row, shape), []).append(texts)
    vary = {panel: [len(set(texts)) > 1 for texts in zip(*rows, strict=True)] for panel, rows in beside.items()}
    return [
        ", ".join([str(row.place[shape.series]), *compress(texts, vary[_panel(row, shape)])])
        for row, texts in zip(rows, told, strict=True)
    ]


def _lines(figure: Figure, results: Results, points: Sequence[_Point], panels: Sequence[str]) -> None:
    """One line a series; crosses at the bottom where every seed diverged, white dots for the folded chain."""
    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(point.name for point in points))}
    handles: dict[str, Any] = {}
    across = min(len(panels), ACROSS)
    grid = figure.subplots(math.ceil(len(panels) / ACROSS), across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        mine = sorted((point for point in points if point.panel == panel), key=lambda point: point.x)
        for name in dict.fromkeys(point.name for point in points if point.panel == panel):
            line = [(point.x, point.records) for point in mine if point.name == name]
            _line(axes, results, line, colors[name], label=name)
            _line(axes, results, line, colors[name], chain=True)
            if lost := [x for x, records in line if not percents(results, records)]:  # an empty line spoils it
                axes.plot(lost, [0] * len(lost), "x", color=colors[name], clip_on=False)
        values = sorted({point.x for point in mine})
        if values[0] > 0:
            axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel(mine[0].x_name)
        axes.set_ylabel(f"{results.measure}, % (crosses: diverged)")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        lines, labels = axes.get_legend_handles_labels()
        handles |= zip(labels, lines, strict=True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, fontsize=8)


def _line(
    axes: Any,  # noqa: ANN401
    results: Results,
    points: list[tuple[float, list[Record]]],
    color: str,
    *,
    label: str | None = None,
    chain: bool = False,
) -> None:
    found = [(x, values) for x, records in points if (values := percents(results, records, chain=chain))]
    means = [statistics.fmean(values) for _, values in found]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in found]
    if chain:  # on top of its network's line, from which it should not differ
        axes.plot([x for x, _ in found], means, ":", color="white", linewidth=1, zorder=3)
    else:
        axes.errorbar(
            [x for x, _ in found], means, spreads, color=color, label=label, marker="o", markersize=4, capsize=3
        )


def _dots(figure: Figure, results: Results, rows: list[tuple[Asked, list[Record]]]) -> None:
    """A dot for each training, and a line where the published number lies."""
    axes = figure.subplots()
    for height, (row, records) in enumerate(rows):
        values = percents(results, records)
        axes.plot(
            values, [height] * len(values), "o", color="C0", alpha=0.7, label=None if height else "ours, each seed"
        )
        if row.published:
            at = published_value(row.published, results.measure)
            axes.plot([at], [height], "|", color="C1", markersize=16, markeredgewidth=2)
    if any(row.published for row, _ in rows):
        axes.plot([], [], "|", color="C1", markersize=10, markeredgewidth=2, label="published")
    axes.set_yticks(range(len(rows)), [_name(row) for row, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{results.measure}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _name(row: Asked) -> str:
    return f"{row.row}, {row.recipe['epochs']} epochs"
