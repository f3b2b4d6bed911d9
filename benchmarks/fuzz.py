"""Files of strangers: many damaged and hostile ones are read, and none may do harm.

    python benchmarks/fuzz.py --inputs 100000 --out results/fuzz.json
    python benchmarks/fuzz.py --inputs 3000 --targets images shards --found /tmp/found

Each file must be read, or be refused by an error of diracnets with a message of one line. Anything else is a finding:
another exception, a crash, more than the allowed processor time or memory, a file opened for writing, removed or
renamed outside the folder meant for it, a program, a connection, or code in text that is run.

Hypothesis makes the files, out of good ones, and simplifies those that do harm, which are kept. The seed decides them.
They come in rounds, and a call with an `--out` that is there goes on after the last round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import hypothesis
import hypothesis.configuration
import hypothesis.errors
import tyro
from fuzz_mutate import files
from fuzz_process import SECONDS, Isolated, Verdict
from fuzz_targets import TARGETS
from hypothesis.strategies import SearchStrategy

from diracnets.errors import first_line
from diracnets.files import written_whole
from diracnets.runtime.environment import circumstances

ROUND = 500  # files, made one after the other by what came of those before


class Harm(Exception):
    """A file did what it must not."""


@cache
def _harm(kind: str) -> type[Harm]:
    """One for each kind of fault, by which hypothesis tells them apart."""
    return type(kind, (Harm,), {})


def one_round(
    made: SearchStrategy[bytes], read: Callable[[bytes], Verdict], seed: str
) -> dict[str, tuple[bytes, Verdict]]:
    """Have files made and read, and those that do harm simplified.

    Args:
        made: the files.
        read: reads one.
        seed: of this round.

    Returns:
        For each kind of fault the simplest file that has it.
    """
    found: dict[str, tuple[bytes, Verdict]] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(made)
    def reads(data: bytes) -> None:
        verdict = read(data)
        if verdict.kind:
            found[verdict.kind] = data, verdict
            raise _harm(verdict.kind)(verdict.wrong)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hypothesis.errors.HypothesisWarning)  # of large files
            reads()
    except Exception:  # one fault, a group of them, or one that does not come again
        if not found:
            raise
    return found


class Counted:
    """Reads each file once, and counts what came of it."""

    def __init__(self, read: Callable[[bytes], Verdict], row: dict[str, Any]) -> None:
        self._read, self._row = read, row
        self._known: dict[bytes, Verdict] = {}

    def read(self, data: bytes) -> Verdict:
        name = hashlib.sha256(data).digest()
        if name not in self._known:
            verdict = self._known[name] = self._read(data)
            self._row["inputs"] += 1
            self._row["harmful" if verdict.kind else "accepted" if verdict.accepted else "refused"] += 1
            for key, value in (("longest_seconds", verdict.seconds), ("largest_MiB", verdict.mib)):
                self._row[key] = max(self._row[key], round(value, 2))
        return self._known[name]


@dataclass
class Fuzz:
    inputs: int = 5000
    """Files to read, of all kinds together. Rounds are read whole, so that it becomes a few more."""
    targets: tuple[str, ...] = ()
    """Kinds of files; by default all."""
    seed: int = 0
    """Of the changes."""
    found: Path = Path("fuzz-findings")
    """Folder for the files of findings."""
    only: Path | None = None
    """Read this one file as the first target does, and show what comes of it."""
    out: Path | None = None
    """JSON file for the counts."""

    def run(self) -> int:
        names = self.targets or tuple(TARGETS)
        if wrong := [name for name in names if name not in TARGETS]:
            sys.exit(f"there is no kind of files {wrong[0]!r}: there are {', '.join(TARGETS)}")
        if self.only is not None:
            with _process(names[0]) as (process, _):
                print(process.read(self.only.read_bytes()))
            return 0
        report = json.loads(self.out.read_text()) if self.out is not None and self.out.exists() else {}
        if report.setdefault("seed", self.seed) != self.seed:
            sys.exit(f"{self.out} has inputs of seed {report['seed']}: give another file for those of seed {self.seed}")
        call = circumstances("cpu")
        call["versions"]["hypothesis"] = hypothesis.__version__
        report.setdefault("calls", []).append(call)
        whole = sum(TARGETS[name].share for name in names)
        for name in names:
            self._target(name, self.inputs * TARGETS[name].share / whole, report)
            print(name, json.dumps(report["targets"][name]), flush=True)
        return int(any(report["targets"][name]["findings"] for name in names))

    def _target(self, name: str, inputs: float, report: dict[str, Any]) -> None:
        """Rounds of a target, until so many of its inputs were read."""
        with _process(name) as (process, seeds):
            digest = hashlib.sha256(b"".join(hashlib.sha256(seed).digest() for seed in seeds)).hexdigest()
            row = report.setdefault("targets", {}).setdefault(
                name,
                {
                    "seed_files": len(seeds),
                    "seed_bytes": sum(map(len, seeds)),
                    "seeds_sha256": digest,
                    "allowed_seconds": SECONDS,
                    "allowed_MiB": TARGETS[name].memory,
                    "rounds": 0,
                    **dict.fromkeys(("inputs", "accepted", "refused", "harmful"), 0),
                    **dict.fromkeys(("longest_seconds", "largest_MiB", "wall_seconds"), 0.0),
                    "findings": [],
                },
            )
            if row["seeds_sha256"] != digest:
                sys.exit(f"{self.out} has inputs made of other {name}: give another file")
            counted, made = Counted(process.read, row), files(seeds, TARGETS[name].aware)
            while row["inputs"] < inputs:
                begun = time.monotonic()
                found = one_round(made, counted.read, f"{self.seed} {name} {row['rounds']}")
                for kind, (data, verdict) in found.items():
                    row["findings"].append(self._keep(f"{name}-{row['rounds']}-{kind}", data, verdict))
                row["rounds"] += 1
                row["wall_seconds"] = round(row["wall_seconds"] + time.monotonic() - begun, 1)
                report["inputs"] = sum(each["inputs"] for each in report["targets"].values())
                report["findings"] = sum(len(each["findings"]) for each in report["targets"].values())
                if self.out is not None:
                    with written_whole(self.out) as part:
                        part.write_text(json.dumps(report, indent=2) + "\n")

    def _keep(self, stem: str, data: bytes, verdict: Verdict) -> dict[str, Any]:
        """Write a finding to its folder."""
        self.found.mkdir(parents=True, exist_ok=True)
        file = self.found / f"{re.sub('[^a-zA-Z0-9.]+', '-', stem)}.bin"
        file.write_bytes(data)
        file.with_suffix(".txt").write_text(verdict.wrong, encoding="utf-8", errors="replace")
        return {"file": file.name, "bytes": len(data), "wrong": first_line(verdict.wrong)}


@contextlib.contextmanager
def _process(name: str) -> Iterator[tuple[Isolated, list[bytes]]]:
    """A process for a target, and the good files to begin with."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = TARGETS[name].seeds(Path(folder))
        with Isolated(TARGETS[name], Path(folder), seeds) as process:
            yield process, seeds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        hypothesis.configuration.set_hypothesis_home_dir(folder)
        sys.exit(tyro.cli(Fuzz, description=__doc__).run())
