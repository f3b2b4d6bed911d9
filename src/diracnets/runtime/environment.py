"""What a run or measurement was made with: versions, machine, command and commit."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

from diracnets._version import __version__
from diracnets.errors import FileError
from diracnets.files import written_whole
from diracnets.places import absolute_place
from diracnets.runtime.precision import Precision
from diracnets.runtime.processor import cpuinfo, instructions


def versions() -> dict[str, str]:
    """Versions of what computes.

    >>> sorted(versions())
    ['diracnets', 'numpy', 'python', 'torch']
    """
    return {
        "diracnets": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str of its own class, which a checkpoint must not hold
        "numpy": numpy.__version__,
    }


def circumstances(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The environment of a measurement as plain JSON values, to store with measurements.

    Args:
        device: that computes.

    >>> sorted(circumstances())
    ['command', 'commit', 'date', 'device', 'instructions',
     'platform', 'processor', 'processors', 'threads', 'versions']
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [_program(), *map(_without_place, sys.argv[1:])],
        "commit": _commit(),
        "versions": versions(),
        "platform": platform.platform(),
        "device": device_name(torch.device(device)),
        "processor": device_name(torch.device("cpu")),
        "instructions": sorted(instructions()),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe_environment(
    device: torch.device, data_dir: str | Path | None, precision: Precision, start: str | None
) -> dict[str, Any]:
    """The environment of a run, for people to read."""
    facts = circumstances(device)
    return {
        "started": facts.pop("date"),
        **facts,
        "start": start,
        "data_dir": None if data_dir is None else absolute_place(data_dir),
        "precision": precision.name,
        "precision_reason": precision.reason,
    }


def record_environment(
    path: str | Path, device: torch.device, data_dir: str | Path | None, precision: Precision, start: str | None
) -> None:
    """Append the present environment to the JSON list at `path`: an entry for the start, one for each resumption.

    Args:
        path: the file.
        device: that computes.
        data_dir: where the images were asked for.
        precision: the arithmetic of the run.
        start: the name of what its weights came from, None where they were fresh.

    Raises:
        FileError: the file is damaged, or cannot be written.
    """
    path = Path(path)
    entries = _recorded(path)
    entries.append(describe_environment(device, data_dir, precision, start))
    with written_whole(path) as part:
        part.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _recorded(path: Path) -> list[dict[str, Any]]:
    """The entries so far."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FileError(f"{path} is damaged: it does not hold the environment of a run")
    return entries


def device_name(device: torch.device) -> str:
    """The make of a graphics card or processor, as its driver or the system calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo(), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _without_place(word: str) -> str:
    """A word of the command line; of an absolute path only the last part, for the rest says nothing to others."""
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def _program() -> str:
    """The name of the program that runs: its path says nothing to others."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _commit() -> str | None:
    """The git commit of the working directory, "+changes" where files differ from it; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + "+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return ran.stdout.strip()
