"""Files of strangers: many damaged and hostile ones are read, and none may do harm.

    python benchmarks/fuzz.py --inputs 100000 --out results/fuzz.json
    python benchmarks/fuzz.py --inputs 3000 --targets images shards --found /tmp/found

Each file must be read, or be refused by an error of diracnets with a message of one line. Anything else is a finding,
and the file is kept: another exception, a crash, more than the allowed processor time or memory, a file opened for
writing, removed or renamed outside the folder meant for it, a program, a connection, or code in text that is run. The
readers work in processes of their own, which report what Python's audit hooks see; one that dies is replaced by the
next. Inputs follow from the seed and their number, so that `--only NUMBER` makes one again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import tyro

SECONDS = 10.0  # of processor time for one file
_WALL = 180.0  # of any time: what does not come back then is stuck in code that no signal reaches
_LONGEST = 3000  # characters of a message
_ROOM = 1 << 30  # bytes of addresses above the allowed memory, which is measured
_SUMS, _LARGEST = (
    ("inputs", "accepted", "refused", "findings", "of_them_crashes"),
    ("longest_seconds", "largest_MiB"),
)
_STATE = struct.Struct("qqqddq")  # inputs done, accepted, refused, longest seconds, largest MiB, the input at hand


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
        if event in (
            "os.remove",
            "os.rename",
            "os.mkdir",
            "os.rmdir",
            "os.link",
            "os.symlink",
            "os.chmod",
            "os.chown",
            "os.truncate",
            "shutil.rmtree",
            "shutil.move",
            "os.utime",
        ):
            inside = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") and len(args) > 1 else -1
            base = str(Path(f"/proc/self/fd/{inside}").readlink()) if isinstance(inside, int) and inside >= 0 else ""
            paths = [arg for arg in args[:2] if isinstance(arg, str | bytes | Path)]
            return next(filter(None, (self._outside(Path(base) / os.fsdecode(path)) for path in paths)), None)
        if event == "exec":
            name = str(getattr(args[0], "co_filename", args[0]))
            if sys._getframe(3).f_globals.get("__name__") in ("typing", "collections", "dataclasses"):
                return None  # of our own type hints
            return name if name.startswith("<") and not name.startswith("<frozen") else None
        bad = (
            "os.system",
            "os.exec",
            "os.spawn",
            "os.posix_spawn",
            "os.fork",
            "os.putenv",
            "subprocess.Popen",
            "socket.",
            "pickle.find_class",
            "ctypes.dlopen",
            "urllib.Request",
        )
        return str(args)[:100] if event.startswith(bad) else None

    def _outside(self, path: object) -> str | None:
        if not isinstance(path, str | bytes | Path):
            return None  # of an open file
        real = os.path.realpath(os.fsdecode(path))
        return None if real.startswith((*self.allowed, "/dev/null")) else real


WATCHES: list[Watch] = []  # the last one is told what happens


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
    """Reads the files of one target in this process, one after the other.

    Args:
        name: of the target.
        place: an empty folder, in which anything may be written.
        seed: of all inputs.
        found: where findings go.
    """

    def __init__(self, name: str, place: Path, seed: int, found: Path) -> None:
        import fuzz_targets

        from diracnets.errors import DiracNetsError

        self.error, self.name, self.seed, self.found = DiracNetsError, name, seed, found
        self.place, self.out = place, place / "out"
        place.mkdir(parents=True, exist_ok=True)
        os.environ["DIRACNETS_HOME"] = str(place / "home")
        self.target = fuzz_targets.TARGETS[name]
        fuzz_targets.prepare()
        self.seeds = self.target.seeds(place)
        self.watch, self.memory = Watch((str(place.resolve()),)), Memory()
        warnings.simplefilter("ignore")
        signal.signal(signal.SIGPROF, self._stop)
        for data in self.seeds:  # what is imported only when it is needed
            with contextlib.suppress(BaseException):
                self._read(data)
        self.watch.on = False
        if not WATCHES:
            sys.addaudithook(lambda event, args: WATCHES[-1](event, args))  # which stays as long as the process
        WATCHES.append(self.watch)

    def input(self, number: int) -> bytes:
        """The input of this number."""
        import fuzz_targets

        if number < len(self.seeds):
            return self.seeds[number]
        return fuzz_targets.made(self.target, self.seeds, random.Random(f"{self.seed} {self.name} {number}"))

    def try_one(self, data: bytes) -> tuple[bool, str | None, float, float]:
        """Whether it was accepted, what is wrong, seconds and MiB."""
        self.watch.seen.clear()
        accepted, wrong = False, None
        self.memory.begin()
        begun = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            self._read(data)
            accepted = True
        except self.error as error:
            text = str(error)
            if "\n" in text or len(text) > _LONGEST or not text.strip():
                wrong = f"a message of {len(text)} characters and {text.count(chr(10)) + 1} lines: {text[:100]!r}"
        except TooLong:
            wrong = f"more than {SECONDS:g} seconds\n{traceback.format_exc(limit=-8)}"
        except BaseException as error:
            wrong = f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc(limit=-6)[-3000:]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.watch.on = False
        seconds, rise = time.process_time() - begun, self.memory.rise()
        if rise > self.target.memory and wrong is None:
            wrong = f"{rise:.0f} MiB of memory, more than {self.target.memory}"
        if self.watch.seen:
            wrong = f"{'; '.join(sorted(set(self.watch.seen)))}\n{wrong or ''}"
        return accepted, wrong, seconds, rise

    def _read(self, data: bytes) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.place / "home", ignore_errors=True)
        self.out.mkdir()
        path = self.place / self.target.name
        path.write_bytes(data)
        self.watch.on = True
        self.target.read(path, self.out)

    @staticmethod
    def _stop(*_: object) -> None:
        raise TooLong

    def keep(self, data: bytes, number: int, wrong: str) -> None:
        """Write a finding to its folder."""
        self.found.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name.replace(' ', '-')}-{number}"
        (self.found / f"{stem}.bin").write_bytes(data)
        (self.found / f"{stem}.txt").write_text(wrong, encoding="utf-8", errors="replace")


def work(name: str, place: Path, seed: int, found: Path, first: int, end: int, shared: Path) -> None:
    """Try inputs of these numbers; progress goes to the file `shared`, where it is found after a crash."""
    with shared.open("r+b") as file:
        state = mmap.mmap(file.fileno(), _STATE.size)
    faulthandler.enable()  # says where, when the process that waits for this one loses patience
    reader = Reader(name, place, seed, found)
    limit = reader.target.memory * (1 << 20) + _ROOM + int(Memory._now("VmSize")) * (1 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, 1 << 31))
    done, accepted, refused, longest, largest, _ = _STATE.unpack(state[:])
    for number in range(first, end):
        data = reader.input(number)
        state[:] = _STATE.pack(done, accepted, refused, longest, largest, number)
        good, wrong, seconds, rise = reader.try_one(data)
        if wrong:
            reader.keep(data, number, wrong)
        done, accepted, refused = done + 1, accepted + good, refused + (not good and not wrong)
        longest, largest = max(longest, seconds), max(largest, rise)
    state[:] = _STATE.pack(done, accepted, refused, longest, largest, end)


def run(name: str, inputs: int, seed: int, found: Path) -> dict[str, Any]:
    """All inputs of a target, in as many processes as it takes."""
    begun, crashes = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        place, shared = Path(folder) / "place", Path(folder) / "state"
        place.mkdir()
        shared.write_bytes(_STATE.pack(0, 0, 0, 0.0, 0.0, 0))
        first = 0
        while first < inputs and crashes < 100:
            given = json.dumps([name, str(place), seed, str(found), first, inputs, str(shared)])
            code, errors = _watched([sys.executable, __file__, "work", given], shared, place.with_name("errors"))
            state = _STATE.unpack(shared.read_bytes())
            if code == 0:
                break
            crashes += 1
            first = state[5] + 1
            shared.write_bytes(_STATE.pack(state[0] + 1, *state[1:5], first))
            kept = found / f"{name.replace(' ', '-')}-{first - 1}"
            found.mkdir(parents=True, exist_ok=True)
            for file in place.iterdir():
                if file.is_file():
                    shutil.copy(file, f"{kept}.{file.name}")
            Path(f"{kept}.txt").write_text(f"the process ended with {code}\n{errors}")
        tried, accepted, refused, longest, largest, _ = _STATE.unpack(shared.read_bytes())
    return {
        "target": name,
        "inputs": tried,
        "accepted": accepted,
        "refused": refused,
        "findings": tried - accepted - refused,
        "of_them_crashes": crashes,
        "longest_seconds": round(longest, 2),
        "largest_MiB": round(largest, 1),
        "allowed_seconds": SECONDS,
        "wall_seconds": round(time.monotonic() - begun),
    }


def _watched(command: list[str], shared: Path, said: Path) -> tuple[int, str]:
    """How a process of `work` ended and the end of what it printed; it is ended where one file takes too long."""
    with said.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        last, since = b"", time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if (now := shared.read_bytes()) != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > _WALL:
                process.send_signal(signal.SIGABRT)
                process.wait()
    return process.wait(), said.read_bytes()[-3000:].decode(errors="replace")


def _together(files: tuple[Path, ...], out: Path) -> dict[str, Any]:
    """The counts of several calls, by target; what was mended is kept as it stands in the file before."""
    calls = [json.loads(file.read_text()) for file in files]
    targets: dict[str, dict[str, Any]] = {}
    for row in (row for call in calls for row in call["measured"]):
        total = targets.setdefault(row["target"], dict.fromkeys(_SUMS + _LARGEST, 0))
        total |= {key: total[key] + row[key] for key in _SUMS} | {key: max(total[key], row[key]) for key in _LARGEST}
    before = json.loads(out.read_text()) if out.exists() else {}
    return {
        "inputs": sum(each["inputs"] for each in targets.values()),
        "findings": sum(each["findings"] for each in targets.values()),
        "mended": before.get("mended", []),
        "targets": targets,
        "calls": calls,
    }


@dataclass
class Fuzz:
    inputs: int = 1000
    """Files to read, of all kinds together."""
    targets: tuple[str, ...] = ()
    """Kinds of files; by default all."""
    seed: int = 0
    """Of the changes."""
    found: Path = Path("fuzz-findings")
    """Folder for the files of findings."""
    only: int | None = None
    """Read this one input of the first target here, and show what comes of it."""
    out: Path | None = None
    """JSON file for the counts."""
    merge: tuple[Path, ...] = ()
    """Try nothing, but put the counts of these files together into `out`."""

    def run(self) -> int:
        import fuzz_targets

        from diracnets.runtime.environment import circumstances

        if self.merge and self.out is not None:
            self.out.write_text(json.dumps(_together(self.merge, self.out), indent=2) + "\n")
            return 0
        names = self.targets or tuple(fuzz_targets.TARGETS)
        if self.only is not None:
            return self._one(names[0], self.only)
        shares = {name: fuzz_targets.TARGETS[name].share for name in names}
        measured = []
        for name in names:
            row = run(
                name,
                max(1, round(self.inputs * shares[name] / sum(shares.values()))),
                self.seed,
                self.found,
            )
            row["allowed_MiB"] = fuzz_targets.TARGETS[name].memory
            row |= self._corpus(name)
            print(json.dumps(row), flush=True)
            measured.append(row)
        if self.out is not None:
            total = sum(row["inputs"] for row in measured)
            findings = sum(row["findings"] for row in measured)
            report = {
                "circumstances": circumstances("cpu"),
                "seed": self.seed,
                "inputs": total,
                "findings": findings,
                "measured": measured,
            }
            self.out.write_text(json.dumps(report, indent=2) + "\n")
        return int(any(row["findings"] for row in measured))

    def _corpus(self, name: str) -> dict[str, Any]:
        """How many files a target begins with, and a hash of them."""
        import fuzz_targets

        with tempfile.TemporaryDirectory() as place:
            seeds = fuzz_targets.TARGETS[name].seeds(Path(place))
        digest = hashlib.sha256(b"".join(hashlib.sha256(seed).digest() for seed in seeds)).hexdigest()
        return {"seed_files": len(seeds), "seed_bytes": sum(map(len, seeds)), "seeds_sha256": digest}

    def _one(self, name: str, number: int) -> int:
        with tempfile.TemporaryDirectory() as place:
            reader = Reader(name, Path(place), self.seed, self.found)
            data = reader.input(number)
            print(f"{name} {number}: {len(data):,} bytes")
            print(*reader.try_one(data), sep="\n")
        return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        name, place, seed, found, first, end, shared = json.loads(sys.argv[2])
        work(name, Path(place), seed, Path(found), first, end, Path(shared))
    else:
        sys.exit(tyro.cli(Fuzz, description=__doc__).run())
