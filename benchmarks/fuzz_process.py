"""A process that reads the files of strangers one after the other, watched, and says of each what came of it.

It reports what Python's audit hooks see. One that dies, or that no signal reaches any more, is replaced by the next.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz_targets import Target

from diracnets.errors import DiracNetsError

SECONDS = 10.0  # of processor time for one file
WALL = 180.0  # of any time: what does not come back then is stuck in code that no signal reaches
LONGEST = 3000  # characters of a message
ROOM = 1 << 30  # bytes of addresses above the allowed memory, which is measured
_CHANGES = tuple(
    f"os.{name}" for name in ("remove", "rename", "mkdir", "rmdir", "link", "symlink", "truncate", "utime")
)
_CHANGES += ("os.chmod", "os.chown", "shutil.rmtree", "shutil.move")
_NEVER = tuple(f"os.{name}" for name in ("system", "exec", "spawn", "posix_spawn", "fork", "putenv"))
_NEVER += ("subprocess.Popen", "socket.", "pickle.find_class", "ctypes.dlopen", "urllib.Request")


@dataclass(frozen=True)
class Verdict:
    """What came of a file.

    Attributes:
        accepted: it was read.
        kind: of the fault, in a word; empty where it was read, or refused in one line.
        wrong: the fault, in full.
        seconds: of processor time.
        mib: of memory, above what the process had.
    """

    accepted: bool
    kind: str = ""
    wrong: str = ""
    seconds: float = 0.0
    mib: float = 0.0


class TooLong(BaseException):
    """No `except Exception` holds it."""


@dataclass
class Watch:
    """What the process does besides computing, while a file is read."""

    allowed: tuple[str, ...] = ()
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what is looked at here is not looked at again
        try:
            if what := self._harm(event, args):
                self.seen.append(f"{event} {what}"[:200])
        finally:
            self.on = True

    def _harm(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            return self._outside(args[0]) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) else None
        if event in _CHANGES:
            inside = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") and len(args) > 1 else -1
            base = str(Path(f"/proc/self/fd/{inside}").readlink()) if isinstance(inside, int) and inside >= 0 else ""
            paths = [arg for arg in args[:2] if isinstance(arg, str | bytes | Path)]
            return next(filter(None, (self._outside(Path(base) / os.fsdecode(path)) for path in paths)), None)
        if event == "exec":
            name = str(getattr(args[0], "co_filename", args[0]))
            if sys._getframe(3).f_globals.get("__name__") in ("typing", "collections", "dataclasses"):
                return None  # of our own type hints
            return name if name.startswith("<") and not name.startswith("<frozen") else None
        return str(args)[:100] if event.startswith(_NEVER) else None

    def _outside(self, path: object) -> str | None:
        if not isinstance(path, str | bytes | Path):
            return None  # of an open file
        real = os.path.realpath(os.fsdecode(path))
        return None if real.startswith((*self.allowed, "/dev/null")) else real


class Memory:
    """The largest resident memory of this process since `begin`."""

    def begin(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._now("VmHWM")

    def rise(self) -> float:
        """In MiB."""
        return max(0.0, self._now("VmHWM") - self.before)

    @staticmethod
    def _now(name: str) -> float:
        with Path("/proc/self/status").open(encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


class Reader:
    """Reads files of one target in this process.

    Args:
        target: what is read.
        place: a folder in which anything may be written.
        seeds: good files; reading them imports what is imported only when it is needed.
    """

    def __init__(self, target: Target, place: Path, seeds: list[bytes]) -> None:
        self.target, self.place, self.out = target, place, place / "out"
        os.environ["DIRACNETS_HOME"] = str(place / "home")
        self.watch, self.memory = Watch((str(place.resolve()),)), Memory()
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGPROF, self._stop)
        for data in seeds:
            with contextlib.suppress(BaseException):
                self._read(data)
        self.watch.on = False
        sys.addaudithook(self.watch)
        limit = target.memory * (1 << 20) + ROOM + int(Memory._now("VmSize")) * (1 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, 1 << 31))

    def read(self, data: bytes) -> Verdict:
        self.watch.seen.clear()
        accepted, kind, wrong = False, "", ""
        self.memory.begin()
        begun = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            self._read(data)
            accepted = True
        except DiracNetsError as error:
            text = str(error)
            if "\n" in text or len(text) > LONGEST or not text.strip():
                kind = "message"
                wrong = f"a message of {len(text)} characters and {text.count(chr(10)) + 1} lines: {text[:100]!r}"
        except TooLong:
            kind, wrong = "time", f"more than {SECONDS:g} seconds\n{traceback.format_exc(limit=-8)}"
        except BaseException as error:
            kind = type(error).__name__
            wrong = f"{kind}: {str(error)[:300]}\n{traceback.format_exc(limit=-6)[-3000:]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.watch.on = False
        seconds, rise = time.process_time() - begun, self.memory.rise()
        if rise > self.target.memory and not kind:
            kind, wrong = "memory", f"{rise:.0f} MiB of memory, more than {self.target.memory}"
        if self.watch.seen:
            kind, wrong = self.watch.seen[0].split()[0], f"{'; '.join(sorted(set(self.watch.seen)))}\n{wrong}"
        return Verdict(accepted and not kind, kind, wrong, seconds, rise)

    def _read(self, data: bytes) -> None:
        for folder in (self.out, self.place / "home"):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.mkdir()
        path = self.place / self.target.name
        path.write_bytes(data)
        self.watch.on = True
        self.target.read(path, self.out)

    @staticmethod
    def _stop(*_: object) -> None:
        raise TooLong


def _serve(target: Target, place: Path, seeds: list[bytes], pipe: Connection, other: Connection) -> None:
    other.close()
    with (place.parent / "said").open("wb") as said:
        os.dup2(said.fileno(), 2)
    faulthandler.enable(file=2)  # says where, when nobody waits for it any longer
    reader = Reader(target, place, seeds)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send_bytes(json.dumps(asdict(reader.read(pipe.recv_bytes()))).encode())


class Isolated:
    """A `Reader` in a process of its own, and in another one after that has died.

    Args:
        target: what is read.
        folder: an empty one.
        seeds: good files.
    """

    def __init__(self, target: Target, folder: Path, seeds: list[bytes]) -> None:
        self._given, self._said = (target, folder / "place", seeds), folder / "said"
        (folder / "place").mkdir()
        self._process: Any = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, data: bytes) -> Verdict:
        if self._process is None:
            self._begin()
        try:
            self._pipe.send_bytes(data)
            if not self._pipe.poll(WALL):
                os.kill(self._process.pid, signal.SIGABRT)
            return Verdict(**json.loads(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            code = self._end()
            said = self._said.read_bytes()[:3000].decode(errors="replace")
            return Verdict(False, f"exit {code}", f"the process ended with {code}\n{said}")

    def _begin(self) -> None:
        context = multiprocessing.get_context("fork")  # begins at once, with all that is imported here
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(*self._given, other, self._pipe), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which does anything now
            self._process.start()
        other.close()

    def _end(self) -> int | None:
        if self._process is None:
            return None
        self._pipe.close()
        self._process.join()
        code: int | None = self._process.exitcode
        self._process = None
        return code
