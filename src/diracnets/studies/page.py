"""The page of a study: its question, a table of its groups of runs, and one of all learning rates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diracnets.analysis.report import machine_name, markdown_table, mean_and_spread
from diracnets.studies.grid import Study
from diracnets.studies.groups import Group, diverged, groups_of, percents
from diracnets.studies.records import Record


def page(study: Study, records: Sequence[Record], picture: str | None) -> str:
    """The results as Markdown.

    Args:
        study: what they are of.
        records: all runs.
        picture: the file of the figure, in the folder of the page.
    """
    groups = groups_of(study, records)
    parts = [f"# {study.title}", study.question, *_notes(study, groups)]
    if picture:
        parts.append(f"![{study.title}]({picture})")
    parts.append(_table(study, groups))
    if several := [group for group in groups if len(group.by_rate) > 1]:
        parts += [f"## {study.measure.capitalize()} at each learning rate, %", _by_rate(study, several)]
    parts.append(f"Every run, with its recipe and environment: [{study.name}.jsonl]({study.name}.jsonl).")
    return "\n\n".join(parts)


def _notes(study: Study, groups: Sequence[Group]) -> list[str]:
    notes = [
        f"{study.measure.capitalize()} is that after the last epoch, on all test images: mean and standard deviation "
        "over the random seeds that did not diverge. Minutes are those of training one of them, without evaluation."
    ]
    chosen = {group.selected_on for group in groups if len(group.by_rate) > 1}
    if "accuracy" in chosen:
        notes.append(
            "Some rows were trained at several learning rates, and the best one was **chosen on the test images** that "
            "are reported, so that a little of it may be luck."
        )
    if "selection_accuracy" in chosen:
        notes.append(
            "Learning rates *chosen on held-out images* were chosen on images held out of the training set; the test "
            "images had no part in the choice."
        )
    return notes


def _table(study: Study, groups: Sequence[Group]) -> str:
    """The table, without the columns in which all rows agree, which are listed above it."""
    lines = [_line(study, group) for group in groups]
    names = list(dict.fromkeys(name for line in lines for name in line))
    same = [name for name in _same(lines, names) if name != f"{study.measure}, %"]
    shown = [name for name in names if name not in same]
    common = "; ".join(f"{name} {lines[0][name]}" for name in same if lines[0].get(name))
    table = markdown_table(shown, [[line.get(name, "") for name in shown] for line in lines])
    return f"Of all rows: {common}.\n\n{table}" if common else table


def _line(study: Study, group: Group) -> dict[str, str]:
    runs, settings = group.runs, group.settings
    values, lost = percents(study, runs), sum(map(diverged, runs))
    finished = [run for run in runs if not diverged(run)] or runs
    speeds = [run.result["images_per_second"] for run in runs if run.result["images_per_second"] is not None]
    epochs, full = settings["epochs"], max(run.full_epochs for run in runs)
    return {
        **_place(group),
        **{name: column(settings) for name, column in study.columns.items()},
        "learning rate": f"{group.rate:g}",
        "rates tried": ", ".join(f"{rate:g}" for rate in group.by_rate) if len(group.by_rate) > 1 else "",
        "chosen on": {"accuracy": "test images", "selection_accuracy": "held-out images"}[group.selected_on]
        if len(group.by_rate) > 1
        else "",
        f"{study.measure}, %": mean_and_spread(values) or "diverged",
        "seeds": str(len(runs)),
        "diverged": f"{lost} of {len(runs)}" if lost else "",
        "epochs": f"{epochs} of {full}" if epochs < full else str(epochs),
        "minutes": f"{statistics.fmean(run.result['seconds'] for run in finished) / 60:.1f}",
        "images per second": f"{statistics.median(speeds):,.0f}" if speeds else "",
        "on": "; ".join(dict.fromkeys(_machine(run.environment) for run in runs)),
    }


def _by_rate(study: Study, groups: Sequence[Group]) -> str:
    rates = sorted({rate for group in groups for rate in group.by_rate})
    places = [_place(group) for group in groups]
    names = list(dict.fromkeys(name for place in places for name in place))
    same = _same(places, names)
    names = [name for name in names if name not in same]
    rows = [
        [*(place.get(name, "") for name in names), *(_at_rate(study, group.by_rate.get(rate, [])) for rate in rates)]
        for group, place in zip(groups, places, strict=True)
    ]
    return markdown_table([*names, *(f"{rate:g}" for rate in rates)], rows)


def _same(lines: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[str]:
    """The columns in which several lines agree."""
    return [name for name in names if len(lines) > 1 and len({line.get(name, "") for line in lines}) == 1]


def _at_rate(study: Study, runs: Sequence[Record]) -> str:
    values, lost = percents(study, runs), sum(map(diverged, runs))
    return ", ".join([mean_and_spread(values)] * bool(values) + [f"{lost} of {len(runs)} diverged"] * bool(lost))


def _place(group: Group) -> dict[str, str]:
    """Where a group stands: its axes and its variant."""
    place = {**group.axes, **{name: value for name, value in group.variant.items() if name != "epochs"}}
    return {name: _cell(value) for name, value in place.items()}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _machine(environment: Mapping[str, Any]) -> str:
    jobs = environment["jobs"]
    return f"{machine_name(environment)}, {environment['precision']}" + (f", {jobs} runs at once" if jobs > 1 else "")
