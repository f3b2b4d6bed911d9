"""What this project means to reach, as data, and what the records of the studies say about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diracnets.studies.depth import FAMILIES
from diracnets.studies.rates import FIELDS
from diracnets.studies.records import Asked, Results
from diracnets.studies.report import mean_and_spread
from diracnets.studies.side_by_side import SideBySide, Verdict, race, step_ratio
from diracnets.studies.study import settings
from diracnets.studies.table import mean_minutes, percents

_ROUNDING = 1e-9  # of floating point, in points
Place = Mapping[str, str | float | tuple[str, ...]]  # values of a row's place; a tuple allows any of its members


_OF_A_ROW = frozenset({"model", "start", "init", "alpha", "beta", "bias", "scale_lr", "seed"})  # in which rivals differ


@dataclass(frozen=True)
class Target:
    """A row, by any recipe and at any budget that is not named, is to be that good."""

    goal: str
    study: str
    place: Place
    limit: float
    """In the study's measure, percent: an error at most, an accuracy at least."""
    minutes: float | None = None
    """Of training, at most."""

    def judge(self, results: Results | None) -> Verdict:
        """Compare with the row that comes nearest."""
        found = _tried(results, self.place)
        if results is None or not found:
            return Verdict("not measured")
        within = [row for row in found if self.minutes is None or mean_minutes(results.of_row(row)) <= self.minutes]
        row = _best(results, within or found)
        reached = bool(within) and _gain(results, _mean(results, row), self.limit) >= -_ROUNDING
        return Verdict("reached" if reached else "not reached", _told(results, row))


@dataclass(frozen=True)
class Lead:
    """A row is to be better than another of the same recipe and budget, by a margin.

    One whose trainings all diverged is worse than any number."""

    goal: str
    study: str
    place: Place
    than: Place
    """Of several rows that match, the best counts; those that a tuple names and that are missing are told."""
    margin: float = 0.0
    """Percent points; below zero, by how much it may be worse."""

    def judge(self, results: Results | None) -> Verdict:
        """Compare where both were trained alike, with the largest budget."""
        pairs = []
        for row in _tried(results, self.place):
            others = [other for other in _tried(results, self.than) if self._alike(row, other)]
            if others and results is not None:
                pairs.append((row, others))
        if results is None or not pairs:
            return Verdict("not measured")
        largest = max(_budget(row) for row, _ in pairs)
        row = _best(results, [row for row, _ in pairs if _budget(row) == largest])
        others = next(others for each, others in pairs if each is row)
        other = _best(results, others)
        reached = _gain(results, _mean(results, row), _mean(results, other)) >= self.margin - _ROUNDING
        told = f"{_told(results, row)}, against {_told(results, other)}"
        if absent := self._absent(others):
            told += f"; not trained beside it: {'; '.join(absent)}"
        return Verdict("reached" if reached else "not reached", told)

    def _alike(self, row: Asked, other: Asked) -> bool:
        """Whether all is the same but what the target names, the start, of which each network has its own, and the rate
        where several were tried of the other one."""
        named = {*self.place, *self.than, "start"}
        own = _OF_A_ROW if other.rate is None else _OF_A_ROW | {*FIELDS.values()}
        places, recipes = (
            [{name: value for name, value in table.items() if name not in left_out} for table in tables]
            for tables, left_out in (
                ((row.place, other.place), named),
                ((settings(row.recipe), settings(other.recipe)), own),
            )
        )
        return places[0] == places[1] and recipes[0] == recipes[1]

    def _absent(self, others: Sequence[Asked]) -> list[str]:
        tuples = {name: values for name, values in self.than.items() if isinstance(values, tuple)}
        return [
            value
            for name, values in tuples.items()
            for value in values
            if all(other.place.get(name) != value for other in others)
        ]


@dataclass(frozen=True)
class Unmeasured:
    """A goal for which no study has records yet."""

    goal: str
    study: str = ""

    def judge(self, results: Results | None) -> Verdict:
        """Nothing is known."""
        return Verdict("not measured")


def _cifar(data: str, network: str, **more: str) -> Place:
    return {"data": data, "network": network, **more}


_PLAIN, _DIRAC = (
    tuple(title for name, (title, _) in FAMILIES.items() if name.startswith(kind)) for kind in ("plain", "diracnet")
)
TARGETS: Sequence[Target | Lead | SideBySide | Unmeasured] = (
    Target(
        "DiracNet-28-1 on CIFAR-10: at most 8.5% error (91.5% right) by fast-cifar, in at most 60 minutes",
        "cifar",
        _cifar("cifar10", "diracnet-28-1", recipe="fast-cifar"),
        8.5,
        minutes=60,
    ),
    Lead(
        "DiracNet-28-1 on CIFAR-10 is at least as good as the plain network, both by fast-cifar",
        "cifar",
        _cifar("cifar10", "diracnet-28-1", recipe="fast-cifar"),
        than=_cifar("cifar10", "plain-28-1", recipe="fast-cifar"),
    ),
    Target(
        "DiracNet-28-5 on CIFAR-10: at most 5.16% error, the paper's", "cifar", _cifar("cifar10", "diracnet-28-5"), 5.16
    ),
    Target(
        "DiracNet-28-10 on CIFAR-10: at most 4.75% error, the paper's",
        "cifar",
        _cifar("cifar10", "diracnet-28-10"),
        4.75,
    ),
    Target(
        "DiracNet-28-10 on CIFAR-10: at most 4.00% error, Wide ResNet-28-10's",
        "cifar",
        _cifar("cifar10", "diracnet-28-10"),
        4.00,
    ),
    Target(
        "DiracNet-28-10 on CIFAR-100: at most 21.54% error, the paper's",
        "cifar",
        _cifar("cifar100", "diracnet-28-10"),
        21.54,
    ),
    Target(
        "DiracNet-28-10 on CIFAR-100: at most 19.25% error, Wide ResNet-28-10's",
        "cifar",
        _cifar("cifar100", "diracnet-28-10"),
        19.25,
    ),
    Lead(
        "At 400 layers on CIFAR-10, a Dirac network is at least 20 points above the plain one with every advantage",
        "depth",
        {"data": "cifar10", "network": _DIRAC, "depth": 400},
        than={"data": "cifar10", "network": _PLAIN, "depth": 400},
        margin=20,
    ),
    Lead(
        "At 1000 layers on CIFAR-10, a Dirac network is at most 2 points below the one of 28 layers",
        "depth",
        {"data": "cifar10", "network": _DIRAC, "depth": 1000},
        than={"data": "cifar10", "network": _DIRAC, "depth": 28},
        margin=-2,
    ),
    SideBySide(
        "The fastest chain to 94.0% on CIFAR-10 takes less time than cifar10-airbench's, in one run, on two cores",
        "airbench",
        race,
    ),
    Unmeasured("94%, 95.25% and 96% on CIFAR-10 by a chain without skips, in less time than airbench's, on one GPU"),
    SideBySide(
        "A training step costs at most 1.02 times the plain network's, 1.01 compiled, for 28-10 and 34-2, on a GPU",
        "cost",
        step_ratio,
    ),
    Unmeasured("DiracNet-18 and 34 on ImageNet: 30.37% and 27.79% top-1 error, the paper's"),
)


def _tried(results: Results | None, place: Place) -> list[Asked]:
    """The rows at a place of which a seed has been trained to its end, or has diverged."""
    if results is None:
        return []
    return [row for row in results.rows if _matches(row, place) and results.of_row(row)]


def _matches(row: Asked, place: Place) -> bool:
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in place.items()}
    return all(row.place.get(name) in allowed for name, allowed in values.items())


def _budget(row: Asked) -> tuple[int, float]:
    return row.recipe["epochs"], row.recipe.get("images") or math.inf


def _mean(results: Results, row: Asked) -> float:
    values = percents(results, results.of_row(row))
    if values:
        return statistics.fmean(values)
    return math.inf if results.measure == "error" else -math.inf


def _gain(results: Results, value: float, over: float) -> float:
    """By how many points a value is better than another."""
    return over - value if results.measure == "error" else value - over


def _best(results: Results, rows: Sequence[Asked]) -> Asked:
    return max(rows, key=lambda row: _gain(results, _mean(results, row), 0.0))


def _told(results: Results, row: Asked) -> str:
    """A row's result with what it cost: the reader is to see a small budget."""
    records = results.of_row(row)
    values = percents(results, records)
    count, epochs, images = len(values), row.recipe["epochs"], row.recipe.get("images")
    if not values:
        return f"diverged ({row.row}: {len(records)} seed{'s' * (len(records) != 1)}, {epochs} epochs)"
    some = f", {images:,} training images" if images else ""
    seeds = f"{count} seed{'s' * (count != 1)}"
    if len(records) > count:
        seeds += f" and {len(records) - count} that diverged"
    return (
        f"{mean_and_spread(values)}% {results.measure} ({row.row}: {seeds}, {epochs} epochs{some}, "
        f"{mean_minutes(records):.0f} minutes each)"
    )
