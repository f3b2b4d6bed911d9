"""The run folder: which files it holds, and when a run may begin or go on in it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint
from diracnets.artifacts.network_file import BEST
from diracnets.errors import FileError, MissingExtraError, UsageError
from diracnets.files import append_json, written_whole
from diracnets.training.plots import draw_curve
from diracnets.training.recipe import Recipe

try:
    import fcntl
except ImportError:  # on Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

WAIT = 10.0  # seconds; processes that decode images for a run that was killed keep its lock for half of that


def new_folder(recipe: Recipe) -> Path:
    """A folder in runs/ that is not there yet, named by network and data."""
    name = f"runs/{recipe.model.name}-{recipe.data.name}"
    tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for folder in map(Path, tries) if not folder.exists())


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
        self.last = self.path / "last.pt"
        self.best = self.path / BEST
        self.curve = self.path / "curve.png"
        self.events = self.path / "tensorboard"
        self.model = self.path / "model.safetensors"

    def check_unused(self) -> None:
        """Raise `UsageError` where the folder already holds a run."""
        if self.last.exists():  # without it a start failed, of which nothing is worth keeping
            raise UsageError(f"{self.path} already holds a run: resume it, or choose another folder")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder meanwhile, on systems and file systems that have locks.

        Raises:
            UsageError: another process trains in it, or it is a file.
            FileError: the folder cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file, not a folder for a run")
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileError(f"cannot write {self.path}: {error.strerror or error}") from error
            if fcntl is None:
                yield
                return
            folder = os.open(self.path, os.O_RDONLY)
            try:
                self._lock(folder)
                yield
            finally:
                os.close(folder)  # and the lock with it
        finally:
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

    def read_last(self, recipe: Recipe) -> Checkpoint:
        """The last checkpoint, if it is of a run by this recipe.

        Raises:
            UsageError: there is no checkpoint, or its run has another recipe; the message names each difference.
            FileError: the checkpoint is damaged.
        """
        if not self.last.exists():
            raise UsageError(f"there is no run to resume in {self.path}: it holds no {self.last.name}")
        checkpoint = read_checkpoint(self.last)
        if checkpoint.card.recipe is None or checkpoint.resume is None:
            raise FileError(f"{self.last} is a checkpoint to evaluate, without what a run needs to be resumed")
        differences = Recipe.from_table(dict(checkpoint.card.recipe), str(self.last), warn=False).differences(recipe)
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

    def draw(self, history: list[dict[str, Any]]) -> str | None:
        """Draw the curve; what to say where matplotlib is not installed."""
        try:
            draw_curve(history, self.curve)
        except MissingExtraError as error:
            return f"no {self.curve.name}: {error}"
        return None
