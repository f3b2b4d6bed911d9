"""The runs of a study in groups: those that differ in learning rate and random seed alone, and the rate chosen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diracnets.studies.grid import Study, rate_name
from diracnets.studies.records import Record

_APART = {"seed", "eval_every"}  # runs that differ in these are of one group


@dataclass(frozen=True)
class Group:
    """One line of the table, or one point of a figure."""

    row: str
    axes: dict[str, str | float]
    variant: dict[str, Any]
    """The settings in which rows of this study come in several variants, such as epochs, and their values here."""
    by_rate: dict[float, list[Record]]
    """Its runs by learning rate, the lowest first."""

    @property
    def rate(self) -> float:
        """The learning rate that is reported: the one with the highest mean accuracy, on the images held out to choose
        it where all runs have such, among those at which the smallest part of the runs has diverged."""
        held_out = self.selected_on == "selection_accuracy"
        return max(self.by_rate, key=lambda rate: _merit(self.by_rate[rate], held_out=held_out))

    @property
    def selected_on(self) -> str:
        """Which result the learning rate is chosen by."""
        runs = [run for runs in self.by_rate.values() for run in runs]
        held_out = all(run.result.get("selection_accuracy") is not None for run in runs if not diverged(run))
        return "selection_accuracy" if held_out else "accuracy"

    @property
    def runs(self) -> list[Record]:
        """The runs at the rate that is reported."""
        return self.by_rate[self.rate]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that its runs have in common, and the random seed of one."""
        return self.runs[0].settings


def diverged(run: Record) -> bool:
    """Whether the run ended in a loss that is infinite or NaN."""
    return run.result["accuracy"] is None


def percents(study: Study, runs: Sequence[Record]) -> list[float]:
    """What the study measures, in percent, of each run that did not diverge."""
    found = [run.result["accuracy"] for run in runs if not diverged(run)]
    return [100 * (1 - value) if study.measure == "error" else 100 * value for value in found]


def groups_of(study: Study, records: Sequence[Record]) -> list[Group]:
    """The groups of some records: those of the study's rows in their order, then those of other rows."""
    order = {row.name: index for index, row in enumerate(study.rows)}
    axes = {row.name: dict(row.axes) for row in study.rows}
    sorted_records = sorted(records, key=lambda run: order.get(run.row, len(order)))
    variants: dict[str, list[dict[str, Any]]] = {}
    for run in sorted_records:
        common = {n: value for n, value in run.settings.items() if n not in {*_APART, rate_name(run.settings)}}
        if common not in variants.setdefault(run.row, []):
            variants[run.row].append(common)
    vary = [
        name
        for name in (sorted_records[0].settings if sorted_records else ())
        if any(len({repr(common.get(name)) for common in row}) > 1 for row in variants.values())
    ]
    if "epochs" in vary and "milestones" in vary:  # which a budget moves along
        vary.remove("milestones")
    groups = []
    for row, commons in variants.items():
        for common in commons:
            by_rate: dict[float, list[Record]] = {}
            runs = [
                run
                for run in sorted_records
                if run.row == row and all(run.settings[name] == value for name, value in common.items())
            ]
            for run in runs:
                by_rate.setdefault(float(run.settings[rate_name(run.settings)]), []).append(run)
            variant = {name: common[name] for name in vary if name in common}
            groups.append(Group(row, axes.get(row, runs[0].axes), variant, dict(sorted(by_rate.items()))))
    return groups


def _merit(runs: Sequence[Record], *, held_out: bool) -> tuple[float, float]:
    """Part of the runs that finished, and their mean accuracy."""
    finished = [run for run in runs if not diverged(run)]
    key = "selection_accuracy" if held_out else "accuracy"
    return len(finished) / len(runs), statistics.fmean([run.result[key] for run in finished] or [0.0])
