"""What a finished training left in its folder, as a record."""

from __future__ import annotations

import json
import re
import statistics
from typing import Any

from diracnets.errors import FileError, TrainingError
from diracnets.studies.records import Record
from diracnets.studies.runner import Job

_FACTS = ("device", "processor", "instructions", "threads", "precision", "versions", "commit", "started")


def record_of(job: Job, code: int, jobs: int) -> Record | None:
    """The record of a job that has ended; None where it failed, so that there is nothing to keep.

    Args:
        job: the job.
        code: exit code of its last command.
        jobs: how many ran beside each other.

    Raises:
        FileError: the run folder lacks a file, or holds a damaged one.
    """
    if code not in (0, TrainingError.exit_code):
        return None
    try:
        history = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        environment = json.loads((job.folder / "environment.json").read_text(encoding="utf-8"))[-1]
        chain = json.loads(job.chain.read_text(encoding="utf-8")) if code == 0 and job.chain.exists() else None
        machine = {**{name: environment[name] for name in _FACTS}, "jobs": jobs}
        return _record(job, history, machine, chain["top1"] if chain else None, diverged=code != 0)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise FileError(f"the run in {job.folder} is damaged ({error}): delete it to have it trained again") from error


def _record(
    job: Job, history: list[dict[str, Any]], machine: dict[str, Any], chain: float | None, *, diverged: bool
) -> Record:
    rates = [row["images_per_second"] for row in history]
    return Record(
        row=job.row,
        key=job.key,
        seed=job.recipe.seed,
        outcome="diverged" if diverged else "trained",
        accuracy=None if diverged else history[-1]["val_accuracy"],
        chain_accuracy=chain,
        loss=None if diverged else history[-1]["val_loss"],
        epochs=len(history),
        seconds=round(sum(row["seconds"] for row in history), 1),
        images_per_second=round(statistics.median(rates), 1) if rates else None,
        machine=machine,
        message=reason(job).partition(": ")[0] if diverged else "",
    )


def reason(job: Job) -> str:
    """The last sentence that the program said in a job's log, if it said one."""
    text = job.log.read_text(encoding="utf-8", errors="replace") if job.log.exists() else ""
    said = re.findall(r"^diracnets: (.+)$", text, re.MULTILINE)
    return str(said[-1]) if said else "it said nothing"
