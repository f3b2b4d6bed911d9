"""Training runs in processes of their own: several at a time, each resumable, all stopped and saved together."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diracnets.runtime.job import program
from diracnets.runtime.processor import usable_processors
from diracnets.studies.grid import Row

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
class Job:
    """One training run."""

    row: Row
    """With the random seed of this run in its recipe."""
    full_epochs: int
    """Epochs of the row's recipe before a budget scaled it down."""
    folder: Path
    """The run folder; it also gets log.txt."""

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder / "log.txt"

    def command(self, device: str, data_dir: Path | None) -> list[str]:
        """The words of the command that trains, or resumes what was stopped. Writes the recipe.

        Raises:
            FileError: the recipe cannot be written.
        """
        where = ["--device", device] if data_dir is None else ["--device", device, "--data-dir", str(data_dir)]
        if (self.folder / "last.pt").exists():
            return ["train", "--resume", "--run-dir", str(self.folder), *where]
        recipe = self.folder / "recipe.toml"
        self.row.recipe.save(recipe)
        return ["train", "--recipe", str(recipe), "--run-dir", str(self.folder), *where]


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Process]


def processors() -> int:
    """Threads to share among runs: OMP_NUM_THREADS if it is set, else the processors that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return usable_processors()


def launch(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start `diracnets WORDS`; what it prints goes to the log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [*program(), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # a signal to the process group reaches the study alone, which stops its runs
        )


def run_jobs(
    jobs: Sequence[Job],
    command: Callable[[Job], Sequence[str]],
    *,
    at_once: int,
    threads: int,
    started: Callable[[Job], None],
    ended: Callable[[Job, int], None],
    launch: Launch = launch,
) -> None:
    """Run jobs, `at_once` at a time, in their order. If anything is raised, such as by Ctrl-C, those that run are asked
    to stop, and waited for while they save.

    Args:
        jobs: what to run.
        command: the words of a job's command.
        at_once: how many jobs run at the same time.
        threads: that each may use.
        started: called when a job is started.
        ended: called when it has ended, with its exit code.
        launch: starts a process.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    waiting, running = list(jobs), list[tuple[Job, Process]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                words = command(job)
                started(job)
                running.append((job, launch(words, job.log, environment)))
            for job, process in list(running):
                code = process.poll()
                if code is not None:
                    running.remove((job, process))
                    ended(job, code)
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        _stop([process for _, process in running])


def _stop(processes: Sequence[Process]) -> None:
    """Let runs save and end; what interrupts the waiting, such as a second Ctrl-C, ends them at once."""
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
