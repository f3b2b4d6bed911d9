"""The run folder: which files it holds, and when a run may begin or go on in it."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diracnets.artifacts import run_record
from diracnets.artifacts.checkpoint import Checkpoint
from diracnets.errors import FileError, MissingExtraError, UsageError
from diracnets.files import append_json, remove_parts, writing, written_whole
from diracnets.training.checkpoints import Checkpoints
from diracnets.training.plots import draw_curve
from diracnets.training.recipe import Recipe

try:
    import fcntl
except ImportError:  # on Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

WAIT = 10.0  # seconds; processes that decode images for a run that was killed keep its lock for half of that


def new_folder(recipe: Recipe, job: str | None = None) -> Path:
    """A folder in runs/ that is not there yet, or that of a job which torchrun has restarted, named by network and
    data."""
    name = f"runs/{recipe.model.name}-{recipe.data.name}"
    tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for folder in map(Path, tries) if not folder.exists() or RunFolder(folder).saved_by(job))


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it is made when something is written to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.scales = self.path / "scales.jsonl"
        self.checkpoints = Checkpoints(self.path)
        self.last, self.best = self.checkpoints.last, self.checkpoints.best
        self.curve = self.path / "curve.png"
        self.events = self.path / "tensorboard"
        self.model = self.path / "model.safetensors"
        self._first_files = self.path / run_record.NAME, self.recipe, self.metrics, self.environment, self.scales
        self.damaged: list[str] = []
        """What is wrong with the checkpoints that were too damaged to be resumed from."""

    def check_unused(self) -> None:
        """Raise `UsageError` where the folder already holds a run."""
        if self.checkpoints.exist():  # without it a start failed, of which nothing is worth keeping
            raise UsageError(f"{self.path} already holds a run: resume it, or choose another folder")

    def saved_by(self, job: str | None) -> bool:
        """Whether the newest whole checkpoint was written for this job of torchrun."""
        if job is None or not self.checkpoints.exist():
            return False
        try:
            checkpoint, _ = self.checkpoints.read()
        except FileError:
            return False
        return checkpoint.resume is not None and checkpoint.resume.get("job") == job

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder meanwhile, on systems and file systems that have locks.

        Of a start that failed before the first checkpoint, as on a full disk, nothing is left behind.

        Raises:
            UsageError: another process trains in it, or it is a file.
            FileError: the folder cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, not a folder for a run")
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        first = [file for file in self._first_files if not file.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            if fcntl is None:
                yield
                return
            folder = os.open(self.path, os.O_RDONLY)
            try:
                self._lock(folder)
                self._remove_parts()
                yield
            finally:
                os.close(folder)  # and the lock with it
        finally:
            with suppress(OSError):
                for file in () if self.checkpoints.exist() else first:
                    file.unlink(missing_ok=True)
            with suppress(OSError):  # it holds a run
                for made in new:
                    made.rmdir()

    def _lock(self, folder: int) -> None:
        """Lock the folder of this file descriptor."""
        end = time.monotonic() + WAIT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UsageError(
                        f"another process trains in {self.path}: wait until it has finished, or stop it"
                    ) from None
                time.sleep(0.1)
            except OSError:  # of a file system without locks
                return

    def _remove_parts(self) -> None:
        """Remove what processes left behind that were killed while they wrote to the folder, which is locked."""
        self.checkpoints.remove_parts()
        for file in (*self._first_files, self.curve, self.model):
            remove_parts(file)

    def read_last(self, recipe: Recipe, chosen: str | Path | None = None) -> Checkpoint:
        """The newest whole checkpoint, if it is of a run by this recipe.

        Args:
            recipe: of the run.
            chosen: the checkpoint to go back to instead, in the folder or anywhere; a damaged one is refused.

        Raises:
            UsageError: there is no checkpoint, or its run has another recipe; the message names each difference.
            FileError: all checkpoints are damaged.
        """
        if chosen is None:
            checkpoint, self.damaged = self.checkpoints.read()
        else:
            inside = self.path / chosen
            checkpoint = self.checkpoints.read_one(inside if inside.exists() else Path(chosen))
        table = dict(checkpoint.card.recipe or {})
        differences = Recipe.from_table(table, str(self.last), warn=False).differences(recipe)
        if differences:
            raise UsageError(
                f"the run in {self.path} has another recipe ({'; '.join(differences)}): resume it with its own, "
                "or begin a new run in another folder"
            )
        return checkpoint

    def rewrite_metrics(self, history: list[dict[str, Any]]) -> None:
        """Make `metrics.jsonl` hold exactly these rows."""
        with written_whole(self.metrics) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one row to `metrics.jsonl`."""
        append_json(self.metrics, row)

    def draw(self, history: list[dict[str, Any]], label_smoothing: float = 0.0) -> str | None:
        """Draw the curve, see `draw_curve`; what to say where matplotlib is not installed."""
        try:
            draw_curve(history, self.curve, label_smoothing=label_smoothing)
        except MissingExtraError as error:
            return f"no {self.curve.name}: {error}"
        return None

    def pictures(self) -> str:
        """Where the run can be looked at: its curve, and how to open TensorBoard; nothing where neither was written."""
        curve = [f"its curve is {self.curve}"] * self.curve.exists()
        events = f"for TensorBoard: {shlex.join(['tensorboard', '--logdir', str(self.events)])}"
        return "; ".join([*curve, *[events] * self.events.exists()])
