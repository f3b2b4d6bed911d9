"""Ctrl-C, SIGTERM and SIGHUP: a request to stop after the step at hand, and how to resume."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from diracnets.errors import DiracNetsError, FileError
from diracnets.runtime.job import LAUNCHED, exit_code, job
from diracnets.training.checkpoints import Checkpoints

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(DiracNetsError):
    """A run that was stopped by a signal after it was saved; the message says how to resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number
        self.exit_code = exit_code(signal_number)


class Interruption:
    """While this context is open, the first SIGINT, SIGTERM or SIGHUP is remembered in `signal`; a second one acts as
    usual. A signal that is ignored, as SIGHUP is under nohup, stays ignored.

    Args:
        say: whether to write at once, on standard error, that the request was heard and what a second one does.
        several: whether this is one of several processes. A second signal then does nothing: `torchrun` passes signals
            on that have come here already, and sends SIGTERM to those that are left when the first process has ended.
            If the `torchrun` that started it is killed, that counts as a SIGTERM: nobody is left to stop the process.

    Python delivers signals to the main thread alone: in another thread nothing is caught, and `signal` stays None.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.signal == signal.SIGTERM
    True
    """

    def __init__(self, *, say: bool = False, several: bool = False) -> None:
        self.signal: int | None = None
        self._answers: str | None = None
        self._say = say
        self._several = several
        self._parent = os.getppid() if several and job() is not None else None
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def asked(self) -> int:
        """The number of the signal that asks for an end, 0 for none."""
        if self.signal is None and self._parent is not None and os.getppid() != self._parent:
            self.signal = signal.SIGTERM
        return self.signal or 0

    def writes(self, file: Path) -> None:
        """From now on the run is trained, and only writes this file: there is no batch to stop after."""
        self._answers = (
            f"the run is trained, and ends when {file} is written; a second %s stops at once: --resume writes it"
        )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._say and self.signal is None:
            with suppress(OSError):  # of a terminal that has gone
                os.write(2, self._answer(number).encode())  # print may be at work, and cannot be entered again
        self.signal = number
        if not self._several:
            self._restore()

    def _answer(self, number: int) -> str:
        asked, again = ("Ctrl-C", "Ctrl-C") if number == signal.SIGINT else (signal.Signals(number).name, "signal")
        if self._answers is not None:
            return f"\n{asked}: {self._answers % again}\n"
        second = "changes nothing" if self._several else "stops at once, and loses what was not saved"
        return f"\n{asked}: the run stops after this batch and is saved; a second {again} {second}\n"

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


@contextmanager
def told_to_go_on(checkpoints: Checkpoints, command: str) -> Iterator[None]:
    """Let the KeyboardInterrupt of a second Ctrl-C, and the `FileError` of a full disk, say how to go on from what was
    saved last, if anything was."""
    try:
        yield
    except KeyboardInterrupt as error:
        if checkpoints.exist() and not error.args:
            error.args = (f"stopped at once; go on from what was saved last with: {command}",)
        raise
    except FileError as error:
        if checkpoints.exist() and command not in str(error):
            error.args = (f"{error}; mend that, and go on from what was saved last with: {command}",)
        raise


def command_to_resume(
    run: Path, data_dir: str | Path | None, device: str, workers: int | None, *, shard: bool = False
) -> str:
    """The command line that resumes a run with the options that it was started with.

    >>> command_to_resume(Path("runs/first one"), None, "cpu", None)
    "diracnets train --resume --run-dir 'runs/first one' --device cpu"
    """
    options = {
        "--data-dir": data_dir,
        "--device": None if device == "auto" else device,
        "--workers": workers,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    given += [*shlex.split(os.environ.get(LAUNCHED, "")), *["--shard"] * shard]
    return shlex.join(["diracnets", "train", "--resume", "--run-dir", str(run), *given])
