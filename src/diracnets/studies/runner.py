"""Trainings in processes of their own: some at a time, each resumable, all of them stopped and saved together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from diracnets.training.recipe import Recipe

_POLL_SECONDS = 0.1


class Process(Protocol):
    """What is used of a process."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Ask it to stop."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self) -> int:
        """Wait for its end."""


@dataclass(frozen=True)
class Step:
    """One command of a job: words behind `diracnets`, and the file that takes what it prints."""

    words: Sequence[str]
    output: Path


@dataclass(frozen=True)
class Job:
    """One training, with the evaluation of its chain where that is wanted."""

    row: str
    key: str
    recipe: Recipe
    """With its seed."""
    folder: Path
    """The run folder; it also gets log.txt and chain.json."""

    @property
    def log(self) -> Path:
        """What the job's commands say."""
        return self.folder / "log.txt"

    @property
    def chain(self) -> Path:
        """The evaluation of the folded chain."""
        return self.folder / "chain.json"

    def steps(self, device: str, data_dir: Path | None, *, chain: bool) -> Iterator[Step]:
        """The commands of this job, each asked for when the one before has ended well."""
        where = ["--device", device] if data_dir is None else ["--device", device, "--data-dir", str(data_dir)]
        if (self.folder / "last.pt").exists():
            yield Step(["train", "--resume", "--run", str(self.folder), *where], self.log)
        else:
            recipe = self.folder / "recipe.toml"
            self.recipe.save(recipe)
            yield Step(["train", "--recipe", str(recipe), "--run", str(self.folder), *where], self.log)
        model = self.folder / "model.safetensors"
        if chain and model.exists():
            words = ["eval", str(model), "--data", self.recipe.data, "--json", "--worst", "0"]
            yield Step([*words, *where], self.chain)


def processors() -> int:
    """Threads to share among jobs: OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(step: Step, log: Path, environment: Mapping[str, str]) -> Process:
    """Start one command; what it says on stderr goes to the log."""
    output: IO[bytes]
    with log.open("ab") as errors, step.output.open("ab" if step.output == log else "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "diracnets", *step.words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C in the terminal reaches the study alone, which then stops its trainings
        )


def run_jobs(
    jobs: Sequence[Job],
    steps: Callable[[Job], Iterator[Step]],
    *,
    at_once: int,
    threads: int,
    started: Callable[[Job], None],
    ended: Callable[[Job, int], None],
    launch: Callable[[Step, Path, Mapping[str, str]], Process] = launch,
) -> None:
    """Run jobs, `at_once` at a time, in their order. Where anything is raised, such as by Ctrl-C, those that run are
    asked to stop, and waited for while they save.

    Args:
        jobs: what to run.
        steps: the commands of a job.
        at_once: so many jobs run beside each other.
        threads: that each may use.
        started: called when a job is started.
        ended: called when it has ended, with the exit code of its last command.
        launch: starts a process.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    waiting, running = list(jobs), dict[int, tuple[Job, Iterator[Step], Process]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                commands = steps(job)
                started(job)
                running[id(job)] = job, commands, launch(next(commands), job.log, environment)
            for name, (job, commands, process) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                step = next(commands, None) if code == 0 else None
                if step is not None:
                    running[name] = job, commands, launch(step, job.log, environment)
                else:
                    del running[name]
                    ended(job, code)
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        _stop([process for _, _, process in running.values()])


def _stop(processes: Sequence[Process]) -> None:
    """Let trainings save and end; what interrupts the waiting, such as a second Ctrl-C, ends them at once."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
