"""What a training run survives: it is killed, stopped, starved of disk and shown wrong clocks, and resumed after each.

python benchmarks/faults.py --out results/faults.json
python benchmarks/faults.py --kinds kill signal --times 3

Each run is a process of its own (a fork, which spares it the imports) that executes `diracnets train` on a few hundred
digits, or on pictures that two worker processes decode. It ends with `--resume`, as often as it takes. Counted are the
steps that a fault cost, temporary files that are left, and runs whose weights, optimizer and log differ in any bit from
those of a run that nothing disturbed: that should be none. Faults that need root (a full disk, on a tmpfs) are made by
a limit on the size of files for other users.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diracnets import cli
from diracnets.artifacts.checkpoint import read_checkpoint
from diracnets.errors import FileError, UsageError
from diracnets.runtime.environment import circumstances
from diracnets.training import checkpoints, folder, reporter, state
from diracnets.training.checkpoints import Checkpoints, Position

STEPS, SAVE_EVERY = 10, 4  # steps an epoch; steps between two checkpoints, where they are asked for
COMMON = ["--model", "diracnet-10-0.25", "--precision", "float32", "--device", "cpu"]
DIGITS = ["--data", "digits", "--num-train", str(16 * STEPS), "--batch-size", "16", "--epochs", "6"]
PICTURES = ["--data", "folder", "--image-size", "16", "--batch-size", "8", "--workers", "2", "--epochs", "4"]
NOBODY = 65534
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static long calls;
static long jump(void) { calls++; return (calls / 7 % 5 - 2) * 86400L * 30; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += jump();
    return code;
}
time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); if (t) *t = s.tv_sec; return s.tv_sec; }
int gettimeofday(struct timeval *restrict t, void *restrict z) {
    struct timespec s; clock_gettime(CLOCK_REALTIME, &s); t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec / 1000; return 0;
}
"""


AT_FSYNC = """
import os
if os.environ.get("RANK") == os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    real, calls = os.fsync, iter(range(1, 10_000))
    def killing(file):
        if next(calls) == int(os.environ["AT_FSYNC"]):
            os.kill(os.getpid(), 9)
        real(file)
    os.fsync = killing
"""


@dataclass
class Kind:
    """What came of one kind of fault."""

    name: str
    faults: int = 0
    runs: int = 0
    lost_steps: list[int] = field(default_factory=list)
    bound: int = 0
    in_writing: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        return {
            "fault": self.name,
            "faults": self.faults,
            "runs_resumed_to_the_end": self.runs,
            "lost_steps_at_most": max(self.lost_steps, default=None),
            "lost_steps_allowed": self.bound,
            "faults_that_hit_a_file_being_written": self.in_writing,
            "seconds": round(self.seconds, 1),
            "wrong": self.wrong,
        }


class Bench:
    """Runs, and what each should come to."""

    def __init__(self, place: Path, times: int, kills: int, seed: int) -> None:
        self.place, self.times, self.kills, self.random = place, times, kills, random.Random(seed)
        self.counter = mmap.mmap(-1, 8)  # steps that the process at hand has done in its whole run
        self.pictures = place / "pictures"
        make_pictures(self.pictures)
        self.whole: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        self.duration: dict[str, float] = {}
        self.number = 0
        self.started: list[int] = []
        folder.RunFolder.draw = lambda *_: None  # type: ignore[method-assign,assignment]
        reporter.Events.write = lambda *_: None  # type: ignore[method-assign,assignment]
        with redirect_stdout(io.StringIO()):  # what is imported here need not be in each process
            cli.main(["train", "--run-dir", str(place / "first"), *COMMON, *DIGITS, "--epochs", "1"])
        for data in ("digits", "pictures"):
            begun, run = time.monotonic(), self.new(data)
            assert self.train(run, data) == 0, self.log(run)
            self.duration[data] = time.monotonic() - begun
            self.whole[data] = outcome(run)

    def new(self, data: str, place: Path | None = None) -> Path:
        self.number += 1
        return (place or self.place) / f"{data}-{self.number}"

    def log(self, run: Path) -> str:
        log = self.place / f"{run.name}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def words(self, run: Path, data: str, every: int) -> list[str]:
        if Checkpoints(run).exist():
            return ["train", "--resume", "--run-dir", str(run), "--device", "cpu"]
        here = DIGITS if data == "digits" else [*PICTURES, "--data-dir", str(self.pictures)]
        return ["train", "--run-dir", str(run), "--save-every", str(every), *COMMON, *here]

    def start(self, run: Path, data: str, every: int = 0, hook: Callable[[], None] | None = None) -> int:
        """Start or resume a run in a process and a session of its own."""
        words = self.words(run, data, every)
        self.counter[:8] = struct.pack("q", 0)
        process = os.fork()
        if process:
            self.started.append(process)
            return process
        try:
            os.setsid()
            output = os.open(self.place / f"{run.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(output, 1), os.dup2(output, 2)
            count_steps(self.counter)
            if hook:
                hook()
            os._exit(cli.main(words))
        finally:
            os._exit(99)

    def train(self, run: Path, data: str, every: int = 0, hook: Callable[[], None] | None = None) -> int:
        """Do so, and wait for its end: the exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(run, data, every, hook), 0)[1])

    @property
    def done(self) -> int:
        return int(struct.unpack("q", self.counter[:8])[0])

    def after_fault(self, kind: Kind, run: Path, bound: int) -> None:
        """Count what a fault cost, in a run whose process has gone."""
        kind.faults += 1
        kind.bound = max(kind.bound, bound)
        kind.in_writing += any(run.rglob(".*"))
        try:
            saved, _ = Checkpoints(run).read()
            position = Position.of(saved)
        except UsageError:  # before the first checkpoint
            position = Position(0, 0)
        except FileError as error:
            kind.wrong.append(f"{run.name}: {error}")
            return
        lost = max(self.done - (position.epochs * STEPS + position.batches), 0)
        kind.lost_steps.append(lost)
        if lost > bound:
            kind.wrong.append(f"{run.name}: {lost} steps lost")

    def finish(self, kind: Kind, run: Path, data: str, every: int = 0) -> None:
        """Resume to the end, and compare with the undisturbed run."""
        code = self.train(run, data, every)
        kind.runs += 1
        if code:
            kind.wrong.append(f"{run.name}: resuming ended with {code}: {self.log(run)[-300:]}")
        elif not same(outcome(run), self.whole[data]):
            kind.wrong.append(f"{run.name}: weights or log differ")
        elif left := [path.name for path in run.rglob(".*")]:
            kind.wrong.append(f"{run.name}: left {left}")
        else:
            shutil.rmtree(run)


def make_pictures(place: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 8)):
        for kind in ("a", "b"):
            (place / part / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / part / kind / f"{number}.png")


def count_steps(counter: mmap.mmap) -> None:
    """Let this process note how far its run has come."""
    end, begin = state.State.end_step, state.State.restore

    def note(self: state.State) -> None:
        counter[:8] = struct.pack("q", (self.epoch - 1) * STEPS + self.batch)

    def counted(self: state.State, *args: object, **kwargs: object) -> None:
        end(self, *args, **kwargs)
        note(self)

    def restored(self: state.State, *args: object, **kwargs: object) -> None:
        begin(self, *args, **kwargs)
        note(self)

    state.State.end_step, state.State.restore = counted, restored  # type: ignore[method-assign]


def outcome(run: Path) -> tuple[dict[str, Any], list[Any]]:
    """All that a finished run computed: what its last checkpoint holds, and its log, without times."""
    resume = dict(read_checkpoint(run / "last.pt").resume or {})
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        {key: resume[key] for key in ("net", "optimizer", "best", "epoch", "batch", "random")},
        [{key: value for key, value in row.items() if "second" not in key} for row in rows],
    )


def rounded(found: tuple[dict[str, Any], list[Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The same with losses of the log to rounding: what ranks lost in an epoch is added up when it is saved."""
    computed, rows = found
    return computed, [{**row, "loss": round(row["loss"], 5)} for row in rows]


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.equal(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(bench: Bench) -> Iterator[Kind]:
    """SIGKILL at random moments, several in the life of each run."""
    for data in ("digits", "pictures"):
        kind = Kind(f"SIGKILL at random moments, {data}")
        while kind.faults < bench.kills / 2:
            every = SAVE_EVERY if kind.runs % 2 else 0
            run, ended = bench.new(data), False
            for _ in range(4):
                process = bench.start(run, data, every)
                time.sleep(bench.random.uniform(0.0, 0.8) * bench.duration[data])
                ended, _ = os.waitpid(process, os.WNOHANG)
                if ended:
                    break
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                bench.after_fault(kind, run, every or STEPS)
            bench.finish(kind, run, data, every)
        yield kind


def at(module: object, name: str, number: int, *, before: bool = False, half: bool = False) -> Callable[[], None]:
    """A hook that kills the process at the given call of a function, before or after it, or when its file is cut."""

    def hook() -> None:
        real, calls = getattr(module, name), iter(range(1, 10_000))

        def killing(*args: object, **kwargs: object) -> object:
            due = next(calls) == number
            if due and before:
                die()
            answer = real(*args, **kwargs)
            if due and half:
                path = Path(args[1])
                os.truncate(path, path.stat().st_size // 2)
            if due:
                die()
            return answer

        setattr(module, name, killing)

    return hook


def log_line(number: int) -> Callable[[], None]:
    """A hook that kills the process when half a line of its log is written."""

    def hook() -> None:
        real, calls = folder.append_json, iter(range(1, 10_000))

        def killing(path: Path, row: dict[str, Any]) -> None:
            if next(calls) == number:
                with path.open("a") as file:
                    file.write(json.dumps(row)[:30])
                die()
            real(path, row)

        folder.append_json = killing  # type: ignore[assignment]

    return hook


def aimed(bench: Bench) -> Iterator[Kind]:
    """SIGKILL in the middle of saving, at each point at which the files differ."""
    points: dict[str, Callable[[int], Callable[[], None]]] = {
        "before a file is written": lambda n: at(torch, "save", n, before=True),
        "half of a file written": lambda n: at(torch, "save", n, half=True),
        "written, not flushed": lambda n: at(torch, "save", n),
        "flushed, not renamed": lambda n: at(os, "fsync", n),
        "renamed": lambda n: at(Path, "replace", n),
        "before last.pt is kept": lambda n: at(checkpoints, "keep_also_as", n, before=True),
        "last.pt kept, not replaced": lambda n: at(checkpoints, "keep_also_as", n),
        "linked, not renamed": lambda n: at(os, "link", n),
        "before an old one is removed": lambda n: at(Path, "unlink", n, before=True),
        "half a line of the log": log_line,
    }
    for name, hook in points.items():
        kind = Kind(f"SIGKILL in saving: {name}")
        for each in range(bench.times):
            run, every = bench.new("digits"), SAVE_EVERY if each % 2 else 0
            code = bench.train(run, "digits", every, hook(bench.random.randint(2, 5)))
            if code != -signal.SIGKILL:
                kind.wrong.append(f"{run.name}: ended with {code}")
            bench.after_fault(kind, run, every or STEPS)
            bench.finish(kind, run, "digits", every)
        yield kind


def signals(bench: Bench) -> Iterator[Kind]:
    """Signals that ask to stop: nothing is lost, and the process says so."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for group in (False, True):
            kind = Kind(f"{number.name} to {'the group of the process' if group else 'the process'}")
            for each in range(bench.times):
                data = "digits" if each % 3 == 0 else "pictures"
                run = bench.new(data)
                process = bench.start(run, data)
                ended = wait_for(lambda run=run: bench.done > 0 and (run / "last.pt").exists(), process)  # type: ignore[misc]
                time.sleep(bench.random.uniform(0.0, 0.3) * bench.duration[data])
                with suppress(ProcessLookupError):
                    (os.killpg if group else os.kill)(process, number)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) if not ended else 0
                if code == 0:  # it had finished
                    continue
                if code != 128 + number or "saved; go on with" not in bench.log(run):
                    kind.wrong.append(f"{run.name}: ended with {code}: {bench.log(run)[-300:]}")
                bench.after_fault(kind, run, 0)
                bench.finish(kind, run, data)
            yield kind


def wait_for(holds: Callable[[], bool], process: int) -> bool:
    """Wait until something holds; whether the process ended before."""
    for _ in range(6000):
        if holds():
            return False
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    raise TimeoutError("nothing happened for a minute")


@contextmanager
def tmpfs(place: Path, size: int) -> Iterator[Path | None]:
    """A file system of so many bytes; None where this user may make none."""
    place.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True
    ).returncode
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = place / "filler"
    status = os.statvfs(place)
    filler.write_bytes(bytes(max(status.f_bavail * status.f_frsize - leave, 0)))
    return filler


def full_disk(bench: Bench) -> Iterator[Kind]:
    """A disk that fills up, for the rest of the run or during one save only; and one whose flush fails."""
    size = sum(path.stat().st_size for path in bench.place.glob("digits-1/**/*") if path.is_file())
    kind = Kind("a full disk (tmpfs)")
    during = Kind("a disk that is full during one save only (tmpfs)")
    for each in range(bench.times):
        with tmpfs(bench.place / f"disk-{each}", 4 * size) as disk:
            if disk is None:
                break
            run = bench.new("digits", disk)
            filler = fill(disk, round(size * (each + 0.3) / bench.times))
            failed(bench, kind, run, bench.train(run, "digits", SAVE_EVERY), "cannot write")
            filler.unlink()
            bench.finish(kind, run, "digits", SAVE_EVERY)

            run = bench.new("digits", disk)
            code = bench.train(run, "digits", SAVE_EVERY, lambda disk=disk, each=each: full_once(disk, each + 2))  # type: ignore[misc]
            failed(bench, during, run, code, "cannot write")
            bench.finish(during, run, "digits", SAVE_EVERY)
    if kind.faults:
        yield kind
        yield during
    limited = Kind("a limit on the size of files (RLIMIT_FSIZE), as a quota sets it")
    for each in range(bench.times):
        run = bench.new("digits")

        def limit(each: int = each) -> None:
            real, calls = torch.save, iter(range(1, 10_000))

            def limiting(*args: object, **kwargs: object) -> None:
                if next(calls) == each + 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
                real(*args, **kwargs)

            torch.save = limiting

        failed(bench, limited, run, bench.train(run, "digits", SAVE_EVERY, limit), "cannot write")
        bench.finish(limited, run, "digits", SAVE_EVERY)
    yield limited
    flush = Kind("ENOSPC when a file is flushed (fsync)")
    for each in range(2 * bench.times):
        run = bench.new("digits")

        def fail(number: int = 5 + 4 * each) -> None:
            real, calls = os.fsync, iter(range(1, 10_000))

            def failing(file: int) -> None:
                if next(calls) == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                real(file)

            os.fsync = failing

        failed(bench, flush, run, bench.train(run, "digits", SAVE_EVERY, fail), "No space left on device")
        bench.finish(flush, run, "digits", SAVE_EVERY)
    yield flush


def full_once(disk: Path, number: int) -> None:
    """Let the disk be full while the given checkpoint is written."""
    real, calls = torch.save, iter(range(1, 10_000))

    def saving(*args: object, **kwargs: object) -> None:
        if next(calls) != number:
            return real(*args, **kwargs)
        filler = fill(disk, 20_000)
        try:
            return real(*args, **kwargs)
        finally:
            filler.unlink()

    torch.save = saving


def failed(bench: Bench, kind: Kind, run: Path, code: int, message: str) -> None:
    """Check that a run ended with one sentence, and count what it lost."""
    if code != 1 or message not in bench.log(run) or "Traceback" in bench.log(run):
        kind.wrong.append(f"{run.name}: ended with {code}: {bench.log(run)[-300:]}")
    if list(run.rglob(".*")):
        kind.wrong.append(f"{run.name}: left temporary files though it was not killed")
    bench.after_fault(kind, run, SAVE_EVERY)


def read_only(bench: Bench) -> Iterator[Kind]:
    """A run folder that becomes read-only, for a user who is not root."""
    kind, root = Kind("a folder that becomes read-only"), os.geteuid() == 0
    for each in range(bench.times):
        place = bench.place / f"others-{each}"
        place.mkdir()
        place.chmod(0o777)
        run = bench.new("digits", place)

        def leave_root(run: Path = run) -> None:
            (bench.place / f"{run.name}.log").chmod(0o666)
            if root:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        process = bench.start(run, "digits", SAVE_EVERY, leave_root)
        ended = wait_for(lambda least=4 + 9 * each: bench.done > least, process)  # type: ignore[misc]
        for part in (run, run / "earlier"):
            part.chmod(0o555)
        code = 0 if ended else os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        failed(bench, kind, run, code, "cannot write")
        if bench.train(run, "digits", SAVE_EVERY, leave_root) != 1:  # nor can it be resumed, and that is said
            kind.wrong.append(f"{run.name}: resumed in a read-only folder: {bench.log(run)[-300:]}")
        for part in (run, run / "earlier"):
            part.chmod(0o755)
        bench.finish(kind, run, "digits", SAVE_EVERY)
    yield kind


def clock(bench: Bench) -> Iterator[Kind]:
    """A clock that jumps by months, forth and back, all the time: two runs at a time, one killed and resumed."""
    kind = Kind("a clock that jumps by months, forth and back")
    source, library = bench.place / "clock.c", bench.place / "clock.so"
    source.write_text(CLOCK)
    if not shutil.which("cc") or subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"]).returncode:
        return
    for data in ("digits", "pictures"):
        run = bench.new(data)
        words = [sys.executable, "-m", "diracnets", *bench.words(run, data, SAVE_EVERY)]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        shown = "import time; print(*(time.time() // 86400 for _ in range(50)))"
        shown = subprocess.run([sys.executable, "-c", shown], env=environment, capture_output=True, text=True).stdout
        if len(set(shown.split())) < 2:
            kind.wrong.append("the clock does not jump")
        with (bench.place / f"{run.name}.log").open("a") as log:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
            while process.poll() is None and not list(run.glob("earlier/epoch-0002*")):
                time.sleep(0.02)
            process.kill()
            process.wait()
            bench.counter[:8] = struct.pack("q", 0)  # it does not count here
            bench.after_fault(kind, run, STEPS)
            kind.lost_steps.pop()
            words = [sys.executable, "-m", "diracnets", *bench.words(run, data, SAVE_EVERY)]
            code = subprocess.run(words, env=environment, stdout=log, stderr=log, start_new_session=True).returncode
        if code:
            kind.wrong.append(f"{run.name}: ended with {code}: {bench.log(run)[-300:]}")
        bench.finish(kind, run, data, SAVE_EVERY)
    yield kind


def damage(bench: Bench) -> Iterator[Kind]:
    """A last checkpoint of which a bit has flipped, or that was cut off: it is named, and the one before resumed."""
    kind = Kind("a damaged last.pt")
    begun = bench.new("digits")
    code = bench.train(begun, "digits", SAVE_EVERY, at(torch, "save", 9))
    content = (begun / "last.pt").read_bytes()
    for each in range(4 * bench.times):
        run = bench.new("digits")
        shutil.copytree(begun, run)
        damaged = bytearray(content)
        place = bench.random.randrange(len(damaged))
        damaged[place] ^= 1 << bench.random.randrange(8)
        (run / "last.pt").write_bytes(damaged if each % 2 else content[:place])
        bench.counter[:8] = struct.pack("q", 0)
        bench.after_fault(kind, run, SAVE_EVERY)
        kind.lost_steps.pop()
        kind.in_writing = 0  # what was left is of the kill before
        if each >= bench.times:  # reading is enough
            shutil.rmtree(run)
            continue
        whole = Checkpoints(run).listed()[-2].damage is None  # the byte may have been padding
        bench.finish(kind, run, "digits", SAVE_EVERY)
        if not whole and "an earlier checkpoint is resumed instead" not in bench.log(run):
            kind.wrong.append(f"{run.name}: {code}, nothing was said of the damage")
    yield kind


def lock(bench: Bench) -> Iterator[Kind]:
    """A second training run in a folder: refused while the first one lives, and let in when it was killed."""
    kind = Kind("a second run in the folder of one that trains, then that one killed")
    for data in ("digits", "pictures"):
        run = bench.new(data)
        process = bench.start(run, data, SAVE_EVERY, slowly)
        wait_for(lambda run=run: bool(list(run.glob("earlier/*"))), process)  # type: ignore[misc]
        code = bench.train(run, data)
        if code != UsageError.exit_code or "another process trains in" not in bench.log(run):
            kind.wrong.append(f"{run.name}: the second run ended with {code}")
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        bench.counter[:8] = struct.pack("q", 0)
        bench.after_fault(kind, run, SAVE_EVERY)
        kind.lost_steps.pop()
        bench.finish(kind, run, data)
    yield kind


def stall(bench: Bench) -> Iterator[Kind]:
    """An image whose file does not answer, as on a network disk that is gone: a pipe that nobody writes to."""
    kind = Kind("an image file that does not answer")
    for each in range(bench.times):
        run, picture = bench.new("pictures"), bench.pictures / "train" / "b" / f"{each}.png"
        kept = picture.rename(bench.place / "kept.png")
        shutil.copy(kept, picture)
        words = bench.words(run, "pictures", SAVE_EVERY)
        bench.words = lambda *_, words=words: [*words, "--stall-seconds", "2"]  # type: ignore[misc,method-assign]
        process = bench.start(run, "pictures", SAVE_EVERY)
        del bench.words  # type: ignore[method-assign]
        ended = wait_for(lambda least=3 + 9 * each: bench.done >= least, process)  # type: ignore[misc]
        os.mkfifo(bench.place / "pipe.png")
        (bench.place / "pipe.png").replace(picture)
        code = 0 if ended else os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        kept.replace(picture)
        failed(bench, kind, run, code, f"they are at {picture}")
        if kind.lost_steps[-1]:
            kind.wrong.append(f"{run.name}: steps were lost, though it could save")
        bench.finish(kind, run, "pictures")
    yield kind


class Together:
    """Runs of two processes that torchrun starts: each with a launcher of its own, in a session of its own."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.number = bench, 0
        (bench.place / "hook").mkdir(exist_ok=True)
        (bench.place / "hook" / "sitecustomize.py").write_text(AT_FSYNC)
        run = self.new()
        process = self.start(run, restarts=0)
        begun = self.trains(run, process)
        assert process.wait() == 0, bench.log(run)
        self.duration, self.whole = time.monotonic() - begun, outcome(run)

    def new(self) -> Path:
        self.number += 1
        return self.bench.place / f"together-{self.number}"

    def start(
        self, run: Path, restarts: int = 1, at_fsync: int = 0, before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start or resume a run; `before` are the words that start its processes, if it is not --devices."""
        hook = self.bench.place / ("hook" if at_fsync else "none")
        words = ["train", "--run-dir", str(run), *COMMON, *DIGITS, "--save-every", str(SAVE_EVERY)]
        if not before:
            words += ["--devices", "2", "--restarts", str(restarts)]
        if Checkpoints(run).exist():
            words = ["train", "--resume", "--run-dir", str(run), "--device", "cpu", "--devices", "2"]
        paths = [str(hook), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "AT_FSYNC": str(at_fsync)}
        environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if before else {}  # docs/distributed.md says why
        with (self.bench.place / f"{run.name}.log").open("a") as log:
            words = [sys.executable, *(before or ("-m", "diracnets")), *words]
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.bench.started.append(process.pid)
        return process

    @staticmethod
    def trains(run: Path, process: subprocess.Popen[bytes]) -> float:
        """Wait for the first checkpoint, or the end; the time then."""
        while process.poll() is None and not (run / "last.pt").exists():
            time.sleep(0.01)
        return time.monotonic()

    def end(self, kind: Kind, run: Path, process: subprocess.Popen[bytes], expected: int = 0) -> None:
        """Wait for the end of a run that had a fault, and compare it with the undisturbed one."""
        kind.faults += 1
        if (code := process.wait(600)) != expected:
            kind.wrong.append(f"{run.name}: ended with {code}: {self.bench.log(run)[-300:]}")
        if expected:
            process = self.start(run)
            process.wait(600)
        kind.runs += 1
        if process.returncode or not same(rounded(outcome(run)), rounded(self.whole)):
            kind.wrong.append(f"{run.name}: weights or log differ: {self.bench.log(run)[-300:]}")
        elif left := [path.name for path in run.rglob(".*")]:
            kind.wrong.append(f"{run.name}: left {left}")


@cache
def together(bench: Bench) -> Together:
    return Together(bench)


def hit(bench: Bench, kind: Kind, number: int, expected: int, times: int) -> Iterator[Kind]:
    """A signal to one of two processes, at a random moment."""
    runs = together(bench)
    while kind.faults < times:
        run = runs.new()
        process = runs.start(run)
        runs.trains(run, process)
        time.sleep(bench.random.uniform(0.0, 0.7) * runs.duration)
        if rank := bench.random.choice(children(process.pid) or [0]):
            os.kill(rank, number)
            runs.end(kind, run, process, expected)
        else:  # it has finished
            process.wait()
    yield kind


def rank_killed(bench: Bench) -> Iterator[Kind]:
    """One of two processes killed, and both started again by torchrun."""
    return hit(bench, Kind("SIGKILL of one of two processes, --restarts 1"), signal.SIGKILL, 0, 2 * bench.times)


def rank_stopped(bench: Bench) -> Iterator[Kind]:
    """One of two processes stopped, and with it the run, which is resumed."""
    kind = Kind("SIGTERM to one of two processes, --restarts 1")
    return hit(bench, kind, signal.SIGTERM, 128 + signal.SIGTERM, bench.times)


def rank_saving(bench: Bench) -> Iterator[Kind]:
    """The one of two processes that saves killed while it does."""
    kind, runs = Kind("SIGKILL of the one of two processes that saves, in saving, --restarts 1"), together(bench)
    for _ in range(2 * bench.times):
        run = runs.new()
        runs.end(kind, run, runs.start(run, at_fsync=bench.random.randint(4, 15)))
        if "resumed after" not in bench.log(run):
            kind.wrong.append(f"{run.name}: was not killed")
    yield kind


def machine(bench: Bench) -> Iterator[Kind]:
    """One of two torchruns killed with its process, as if its machine had lost power: the other goes on alone."""
    kind, runs = Kind("SIGKILL of one of two torchruns and its process, --nnodes 1:2"), together(bench)
    for _ in range(bench.times):
        run = runs.new()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        words = ["-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
        words += ["--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost", "--rdzv-id", run.name]
        words += ["--max-restarts", "1", "--rdzv-conf", "last_call_timeout=10", "-m", "diracnets"]
        first = runs.start(run, before=words)
        while not listens(port) and first.poll() is None:
            time.sleep(0.1)
        second = runs.start(run, before=words)  # not the one that keeps the store
        while first.poll() is None and not list(run.glob("earlier/*")):
            time.sleep(0.01)
        for each in (*children(second.pid), second.pid):
            os.kill(each, signal.SIGKILL)
        second.wait()
        kind.faults, kind.runs = kind.faults + 1, kind.runs + 1
        if first.wait(600) or "resumed after" not in bench.log(run):
            kind.wrong.append(f"{run.name}: ended with {first.returncode}: {bench.log(run)[-300:]}")
        elif [row["epoch"] for row in outcome(run)[1]] != [row["epoch"] for row in runs.whole[1]]:
            kind.wrong.append(f"{run.name}: another log")
    yield kind


def listens(port: int) -> bool:
    """Whether a process of this machine listens there."""
    with suppress(OSError), socket.create_connection(("localhost", port), 1.0):
        return True
    return False


def children(process: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def slowly() -> None:
    """Let this process take its time for each step."""
    end = state.State.end_step

    def added(self: state.State, *args: object, **kwargs: object) -> None:
        end(self, *args, **kwargs)
        time.sleep(2.0)

    state.State.end_step = added  # type: ignore[method-assign]


KINDS = {
    "kill": kill,
    "aimed": aimed,
    "signal": signals,
    "disk": full_disk,
    "read-only": read_only,
    "clock": clock,
    "damage": damage,
    "lock": lock,
    "stall": stall,
    "rank": rank_killed,
    "rank-stop": rank_stopped,
    "rank-save": rank_saving,
    "machine": machine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--times", type=int, default=3, help="faults of each kind")
    parser.add_argument("--kills", type=int, default=52, help="SIGKILLs at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    rows = {}
    if arguments.out and arguments.out.exists():  # what is not measured again stays
        rows = {row["fault"]: row for row in json.loads(arguments.out.read_text())["measured"]}
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        bench = Bench(Path(place), arguments.times, arguments.kills, arguments.seed)
        try:
            for name in arguments.kinds:
                begun = time.monotonic()
                for kind in KINDS[name](bench):
                    kind.seconds, begun = time.monotonic() - begun, time.monotonic()
                    rows[kind.name] = {**kind.to_data(), "commit": circumstances()["commit"]}
                    print(json.dumps(rows[kind.name]), flush=True)
                    if arguments.out:
                        write(arguments.out, list(rows.values()))
        finally:
            for process in bench.started:
                with suppress(ProcessLookupError, ChildProcessError):  # most have ended, and been waited for
                    if os.waitpid(process, os.WNOHANG)[0] == 0:
                        for each in children(process):  # of --devices, in sessions of their own
                            os.kill(each, signal.SIGKILL)
                        os.killpg(process, signal.SIGKILL)
    sys.exit(any(row["wrong"] for row in rows.values()))


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    found = {
        "circumstances": circumstances(),
        "steps_an_epoch": STEPS,
        "save_every": SAVE_EVERY,
        "faults": sum(row["faults"] for row in rows),
        "wrong": sum(len(row["wrong"]) for row in rows),
        "measured": rows,
    }
    out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
