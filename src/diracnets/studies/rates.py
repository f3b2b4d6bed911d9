"""Several learning rates for each row of a study: it is trained with all of them, and told by the best."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diracnets.errors import UsageError
from diracnets.studies.records import Asked, Results
from diracnets.studies.study import Row, settings

FIELDS = {"sgd": "lr", "muon": "filter_lr"}  # the rate at which filters learn, by the recipe's optimizer


@dataclass(frozen=True)
class Told:
    """A row that a table or picture tells."""

    row: Asked
    """With the best of its rates, where several were tried."""
    tried: tuple[Asked, ...] = ()
    """The row with each rate of which something has been trained, the lowest first; none where no several were asked
    for."""


def at_rates(row: Row, rates: Sequence[float]) -> list[Row]:
    """A row once with each rate, all of one name; the row itself where there are no rates.

    A single rate makes an ordinary row.

    Raises:
        UsageError: a rate that is given twice, or is not above 0.

    >>> from diracnets.training.recipe import Recipe
    >>> row = Row("small", {}, Recipe(optimizer="muon"))
    >>> [(each.rate, each.recipe.filter_lr, each.recipe.lr) for each in at_rates(row, (0.1, 0.2))]
    [(0.1, 0.1, 0.1), (0.2, 0.2, 0.1)]
    """
    if len(set(rates)) < len(rates):
        raise UsageError(f"rates are {', '.join(f'{rate:g}' for rate in rates)}; give each of them once")
    made = []
    for rate in rates:
        change: dict[str, Any] = {FIELDS[row.recipe.optimizer]: rate}
        several = rate if len(rates) > 1 else None
        made.append(replace(row, recipe=replace(row.recipe, **change), rate=several))
    return made or [row]


def rate_of(row: Asked) -> float:
    """The rate at which its filters learn."""
    return float(row.recipe[FIELDS[row.recipe["optimizer"]]])


def called(row: Asked) -> str:
    """What a row is called to a user: its name, with its rate where several are tried."""
    return row.row if row.rate is None else f"{row.row} at rate {row.rate:g}"


def told_rows(results: Results) -> list[Told]:
    """The rows of a study, those that were asked for with several rates once, with the best of them.

    The best is the one with the highest mean accuracy, among those of which the smallest part of the trainings has
    diverged.
    """
    groups: dict[tuple[str, str], list[Asked]] = {}
    for row in results.rows:
        group = row.key if row.rate is None else _but_for_rate(row.recipe)
        groups.setdefault((row.row, group), []).append(row)
    return [
        Told(
            max(rows, key=lambda row: _merit(results, row)),
            tuple(sorted((row for row in rows if row.rate is not None and results.of_row(row)), key=rate_of)),
        )
        for rows in groups.values()
    ]


def _but_for_rate(recipe: Mapping[str, Any]) -> str:
    """What recipes have in common that differ in seed and rate alone."""
    apart = ("seed", FIELDS[recipe["optimizer"]])
    common = {name: value for name, value in recipe.items() if name not in apart}
    return json.dumps(settings(common), sort_keys=True)


def _merit(results: Results, row: Asked) -> tuple[float, float]:
    """What is compared: part of the trainings that came to their end, and their mean accuracy."""
    records = results.of_row(row)
    accuracies = [record.accuracy for record in records if record.accuracy is not None]
    if not accuracies:
        return (0.0 if records else -1.0), 0.0
    return len(accuracies) / len(records), statistics.fmean(accuracies)
