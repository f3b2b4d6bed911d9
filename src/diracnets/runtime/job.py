"""What started this process, besides its user (torchrun, `diracnets train --devices`), and how it starts others."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LAUNCHED = "DIRACNETS_LAUNCHED"  # --devices and --restarts as they were given, for the command that resumes
STOP = "DIRACNETS_STOP"  # a file for the number of the signal that stopped a process, so that none is restarted


def job() -> str | None:
    """The job that torchrun started this process for, the same after restarts; None where it did not.

    Without an id of its own (`--rdzv-id`), a job is that of the torchrun process which started rank 0.
    """
    number = os.environ.get("TORCHELASTIC_RUN_ID")
    if number is None:
        return None
    agent = f"{socket.gethostname()} {os.getppid()} {os.environ.get('MASTER_PORT')}"
    return number if number != "none" else hashlib.sha256(agent.encode()).hexdigest()[:16]


def program() -> list[str]:
    """What runs `diracnets` once more, in another process.

    Python would import what it finds in the current folder before all else, such as a `queue.py` beside somebody's
    photographs: it may only where this process does so too, as `python -m diracnets` does.
    """
    here = not {"", str(Path.cwd())}.isdisjoint(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "diracnets"]


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which processes inherit that are started in the block; after it, all are as before."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def restarts() -> tuple[int, int]:
    """How often torchrun has started all processes again, and how often it may."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)), int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))


def exit_code(stopped_by: int) -> int:
    """The exit code of a process that has stopped for a signal: 128 and its number, as shells report it.

    `--devices` is told the number, and the code is 0: torchrun starts again what ends with another.

    >>> exit_code(15)
    143
    """
    try:
        Path(os.environ[STOP]).write_text(str(stopped_by))
    except (KeyError, OSError):  # nobody is there to be told
        return 128 + stopped_by
    return 0
