"""Goals that compare times of one machine: what the measurements of `study cost` and of benchmarks/airbench.py say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diracnets.studies.report import machine_name

STEP_LIMITS = {False: 1.02, True: 1.01}  # times the plain network's step, by whether both are compiled
STEP_NETWORKS = ("28-10", "34-2")
RACE_ACCURACY = 0.94


@dataclass(frozen=True)
class Verdict:
    """What is known about a target."""

    state: Literal["reached", "not reached", "not measured"]
    told: str = ""
    """The numbers."""


@dataclass(frozen=True)
class SideBySide:
    """A goal of which one file of side-by-side measurements decides."""

    goal: str
    study: str
    """The file's name, without its ending."""
    decide: Callable[[Mapping[str, Any]], Verdict]

    def judge(self, content: Mapping[str, Any] | None) -> Verdict:
        """What the file's content says; None where there is no file."""
        return Verdict("not measured") if content is None else self.decide(content)


def step_ratio(content: Mapping[str, Any]) -> Verdict:
    """Whether Dirac steps are within `STEP_LIMITS` on a GPU, bfloat16, batch 128; reached if all of them are measured.

    Args:
        content: of cost.json.
    """
    told, within, places = [], [], set()
    for measurement in content["measured"]:
        row = next((row for row in measurement["rows"] if row["variant"] == "dirac"), None)
        place = row and (row["network"] in STEP_NETWORKS, row["batch"], row["precision"])
        if row is None or place != (True, 128, "bfloat16") or _on_processor(measurement):
            continue
        compiled = measurement["compiled"]
        places.add((row["network"], compiled))
        within.append(row["step_ratio"] <= STEP_LIMITS[compiled])
        how = "compiled" if compiled else "eager"
        told.append(f"{row['network']} {how} {row['step_ratio']:.3f} on {machine_name(measurement['circumstances'])}")
    if not told:
        return Verdict("not measured")
    if not all(within):
        return Verdict("not reached", "; ".join(told))
    whole = len(places) == len(STEP_NETWORKS) * len(STEP_LIMITS)
    return Verdict("reached" if whole else "not measured", "; ".join(told))


def race(content: Mapping[str, Any]) -> Verdict:
    """Whether ours reaches `RACE_ACCURACY` on a processor in less time than cifar10-airbench's takes for its training.

    Args:
        content: of airbench.json. Both accuracies are those averaged over views.
    """
    theirs = [row for row in content["measured"] if row["network"].startswith("cifar10-airbench")]
    ours = [row for row in content["measured"] if row not in theirs]
    if not ours or not theirs or not _on_processor(content):
        return Verdict("not measured")
    accuracies, seconds = (
        [statistics.fmean(row[name] for row in rows) for rows in (ours, theirs)]
        for name in ("accuracy_views", "seconds")
    )
    told = ", against ".join(
        f"{accuracy:.2%} in {duration / 60:.1f} minutes ({rows[0]['network']}, seeds: {len(rows)})"
        for accuracy, duration, rows in zip(accuracies, seconds, (ours, theirs), strict=True)
    )
    reached = accuracies[0] >= RACE_ACCURACY and seconds[0] < seconds[1]
    return Verdict("reached" if reached else "not reached", f"{told}; {machine_name(content['circumstances'])}")


def _on_processor(measurement: Mapping[str, Any]) -> bool:
    circumstances = measurement["circumstances"]
    return bool(circumstances["device"] == circumstances["processor"])
