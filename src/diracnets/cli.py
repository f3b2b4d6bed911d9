"""The command line: finds the command, parses its options, turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from diracnets._version import __version__
from diracnets.errors import DiracNetsError, FileError, UsageError, did_you_mean, lines_of, printable
from diracnets.runtime.job import variables

COMMANDS = {  # in the order in which a user meets them
    "demo": ("Demo", "train, fold and classify handwritten digits, in about a minute"),
    "data": ("Data", "check images before training, pack them into shards"),
    "train": ("Train", "train a network and fold it; --resume continues a run"),
    "distill": ("Distill", "train a chain under a trained network, fold it, and compare the two"),
    "eval": ("Evaluate", "accuracy, loss, results by class and most confident errors"),
    "fold": ("Fold", "turn a checkpoint into a model file that computes the same"),
    "quantize": ("Quantize", "turn a model file into int8, by a few hundred images"),
    "export": ("Export", "write a network to ONNX, OpenVINO and other formats, and check it"),
    "parity": ("Parity", "run a network on every backend: same answers? speed? memory?"),
    "bench": ("Bench", "time networks side by side on each backend of this machine"),
    "predict": ("Predict", "classify images with a model file"),
    "info": ("Info", "layers, parameters, MACs and origin of a network or file"),
    "plan": ("Plan", "memory and time of a training run on many devices, on paper"),
    "study": ("Study", "reproduce the paper's experiments: tables, figures and raw numbers"),
    "models": ("Models", "list the networks by name"),
    "verify": ("Verify", "check that a model file is complete and unchanged"),
}
HELP = """usage: diracnets COMMAND [OPTIONS]

Very deep plain convolutional networks: train with the Dirac
parameterization, fold to a bare conv-ReLU chain, use it from
one file.

{commands}

  diracnets help COMMAND     the options of a command; also COMMAND --help
  --version                  the version of diracnets
  --debug                    with any command: where an error came from
"""


class Command(Protocol):
    """A parsed command line: the fields are its options."""

    def execute(self) -> None:
        """Run the command and print its results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code of the process.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0 for success, 1 for a failure, 2 for wrong usage, 3 for a training run that diverged, 130 if interrupted,
        143 if terminated, and 129 if its terminal was closed.

    >>> main(["--version"])
    diracnets 0.1.0
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _open_streams()
    try:
        with _terminated_as_exit(), _plain_warnings(), _any_name_printed():
            _run(words)
            sys.stdout.flush()
    except SystemExit as stop:  # of the parser, after its message or help
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:  # `diracnets models | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        if not _told_by_another(error):
            print(f"diracnets: {_sentence(error)}", file=sys.stderr)
        return _exit_code(error)
    return 0


def _told_by_another(error: BaseException) -> bool:
    """Whether another process of a run reports the error; what is wrong with the command, the first of each machine."""
    same = isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0"
    return bool(getattr(error, "silent", same))


def _open_streams() -> None:
    """Let a process that was started without standard output, as by `>&-` or a service, print to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def _check_here() -> None:
    """Refuse a working directory that was removed: torch cannot be loaded in it, and ends the process without a word
    of why."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise FileError(f"the current folder cannot be used ({error.strerror}): cd to one that is there") from error


def _run(words: list[str]) -> None:
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        width = min(shutil.get_terminal_size().columns, 100)
        rows = (
            f"  {name:<10} " + f"\n{'':13}".join(lines_of(summary, width - 13))
            for name, (_, summary) in COMMANDS.items()
        )
        print(HELP.format(commands="\n".join(rows)), end="")
        if not words:
            raise SystemExit(UsageError.exit_code)
    elif words[0] in ("--version", "-V", "version"):
        print(f"diracnets {__version__}")
    else:
        _check_here()
        parse(words).execute()


def parse(words: Sequence[str]) -> Command:
    """Parse a command line into a command; nothing is run and torch is not imported.

    Args:
        words: a command's name and its options.

    Raises:
        UsageError: unknown command, or a flag that it calls otherwise.
        SystemExit: wrong options (code 2) or --help (code 0); the parser has printed the message.

    >>> parse(["predict", "digits.safetensors", "two.png"]).images
    ('two.png',)
    """
    import tyro

    from diracnets.commands.foreign import refuse_foreign
    from diracnets.commands.help import paragraphs, prepare, wrapped
    from diracnets.commands.page import print_page

    name, *options = words
    if name not in COMMANDS:
        hint = did_you_mean(name, [*COMMANDS, "help", "--help", "--version"], f"there are {', '.join(COMMANDS)}")
        raise UsageError(f"there is no command {name!r}: {hint}")
    kind = getattr(importlib.import_module(f"diracnets.commands.{name}"), COMMANDS[name][0])
    description = paragraphs(kind.__doc__)
    prepare(kind)
    if empty := [
        word for word in options if not word.strip() or (word[:2] == "--" and word.find("=") == len(word) - 1)
    ]:
        raise UsageError(f"{name} was given {empty[0]!r}, which is nothing: is a variable of the shell not set?")
    if hasattr(kind, "form"):
        kind, options = kind.form(options)
    if {"-h", "--help"} & set(options) and hasattr(kind, "groups"):
        print_page(f"diracnets {name}", description, kind)
        raise SystemExit(0)
    refuse_foreign(name, kind, options)
    style = (tyro.conf.PositionalMetavarFromFieldName,)
    plain = os.environ.get("NO_COLOR") or not sys.stderr.isatty()  # for which the parser itself looks at TERM only
    with variables({"TERM": "dumb"} if plain else {}), wrapped():
        command: Command = tyro.cli(kind, prog=f"diracnets {name}", description=description, args=options, config=style)
    return command


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, DiracNetsError):
        return printable(str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {printable(str(error.filename or 'the output'))}: {error.strerror}"
    return (
        f"{type(error).__name__}: {printable(str(error), keep=chr(10))} (unexpected; --debug shows where it came from)"
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.exit_code if isinstance(error, DiracNetsError) else 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print this package's warnings as one line, without the source location."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            renamed = category is FutureWarning and Path(filename).is_relative_to(Path(__file__).parent)
            if renamed or category.__module__.startswith("diracnets."):
                print(f"diracnets: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        warnings.filterwarnings("default", category=FutureWarning, module="diracnets")
        yield


@contextmanager
def _any_name_printed() -> Iterator[None]:
    """A file name in no encoding must not stop a table."""
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream, _ in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in streams:
            stream.reconfigure(errors=errors)


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception: no half-written file is left, and no process that was started."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in stopping if signal.getsignal(number) not in (signal.SIG_IGN, None)]  # under nohup
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
