"""One process a device on this machine: torchrun, started and stopped by the program itself."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diracnets.errors import DiracNetsError, TrainingError, UsageError
from diracnets.runtime.device import choose_device
from diracnets.runtime.job import LAUNCHED, STOP, program, variables
from diracnets.runtime.processor import usable_processors
from diracnets.runtime.ranks import TORCHRUN

SAVING = 120  # seconds that a process has to save its state after a signal


def count_processes(devices: str, device: str) -> int:
    """How many processes `--devices` asks for.

    Args:
        devices: "auto" (each graphics card; on a CPU one process), or a number.
        device: where they compute: "auto", "cpu" or "cuda".

    Raises:
        UsageError: no such number, more than there are graphics cards, or a device of which there is one alone.

    >>> count_processes("auto", "cpu"), count_processes("2", "cpu")
    (1, 2)
    """
    if set(TORCHRUN) <= set(os.environ):
        raise UsageError(
            "torchrun has started these processes already: leave out --devices, and tell it how many (--nproc-per-node)"
        )
    place = choose_device(device)
    there = torch.cuda.device_count() if place.type == "cuda" else 1
    if devices == "auto":
        return there if place.index is None else 1
    if not devices.isdecimal() or int(devices) == 0:
        raise UsageError(f"--devices is {devices!r}, but must be auto or a number from 1")
    count = int(devices)
    if count > 1 and (place.type not in ("cpu", "cuda") or ":" in device):
        raise UsageError(f"--device {place} is one device, and not {count}: leave out --devices")
    if place.type == "cuda" and count > there:
        raise UsageError(f"--devices is {count}, but this machine has {there} graphics card{'s'[: there > 1]}")
    return count


def crowded(processes: int, device: str) -> str:
    """What to say where there are more processes on the CPU than cores for them; empty where there are not.

    >>> crowded(10**6, "cpu").partition(":")[0], crowded(1, "cpu")
    ('--devices 1000000', '')
    """
    cores = usable_processors()
    if processes <= cores or choose_device(device).type != "cpu":
        return ""
    return f"--devices {processes}: more processes than the {cores} cores of this machine only wait for each other"


def launch(words: Sequence[str], processes: int, *, restarts: int = 0, devices: str = "") -> None:
    """Run a `diracnets` command line in several processes, as torchrun does, and wait for them.

    Args:
        words: the command line, without the program's name.
        processes: how many.
        restarts: how often all are started again after one has died.
        devices: what asked for them, for the command that resumes.

    Raises:
        SystemExit: they have ended with this code, after a message of their own; 128 + n after signal n.
        DiracNetsError: one was killed.
    """
    stopping = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [name for name in stopping if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]  # under nohup
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, usable_processors() // processes)))
    asked = f"--devices {devices}" + (f" --restarts {restarts}" if restarts else "")
    python, *module = program()
    debug = ["--debug"] if "--debug" in sys.argv else []
    with (
        tempfile.TemporaryDirectory(prefix="diracnets-") as place,
        variables({"OMP_NUM_THREADS": threads, LAUNCHED: asked, STOP: str(Path(place, "stop"))}),
        _quiet(),
        _first_signal_alone(heard),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=place),
            **_signals(),
        )
        try:
            elastic_launch(config, python)("-u", *module, *words, *debug)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from stop
        except ChildFailedError as failed:
            report(failed.failures)
        if Path(place, "stop").exists():  # a signal came to one of them
            raise SystemExit(128 + int(Path(place, "stop").read_text()))


def report(failures: Mapping[int, ProcessFailure]) -> None:
    """Raise what processes came to that failed, by rank: SystemExit with the exit code of the one that knows why."""
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # which torchrun sends to those that are left
            raise DiracNetsError(
                f"process {rank} of the run was killed by {signal.Signals(-failure.exitcode).name}, and with it the "
                "run: resume from the last checkpoint"
            )
    codes = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    ended = 128 + signal.SIGTERM  # before it trained
    lost = TrainingError.exit_code  # also that of a process which another one has left alone
    raise SystemExit(min(codes, key=lambda code: (code == ended, code == lost, code == 1), default=1))


def _signals() -> dict[str, Any]:
    """How torch is told to leave signals to us, and a process the time to save; earlier versions know no such thing."""
    known = {item.name for item in fields(LaunchConfig)}
    wanted = {"signals_to_handle": "SIGQUIT", "shutdown_timeout": SAVING}
    return {name: value for name, value in wanted.items() if name in known}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the messages to the processes themselves."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _first_signal_alone(names: Sequence[str]) -> Iterator[None]:
    """Pass the first signal on to the processes, and let no other keep them from saving."""
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise SignalException("stopped", signal.Signals(number))

    before = {name: signal.signal(getattr(signal, name), stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
