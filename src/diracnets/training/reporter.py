"""Progress of a training run: a live bar on a terminal, and there as in a log file a table of the epochs."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from diracnets.errors import lines_of, printable
from diracnets.training.patience import score

REFRESH_SECONDS = 0.2
COLUMNS = {"loss": 7, "acc": 7, "val loss": 8, "val acc": 7, "lr": 7, "images/s": 9, "left": 6}  # their widths
LEAST = ("images/s", "left", "lr")  # which a narrow terminal has no room for: the first goes first
BAR = 10  # characters of the live bar, at least
TAGS = {  # of numbers that share a chart in TensorBoard, by what comes before the slash
    "loss": "loss/train",
    "accuracy": "accuracy/train",
    **{f"{images}_{what}": f"{what}/{images}" for what in ("loss", "accuracy") for images in ("val", "test")},
}


class Reporter:
    """Writes to standard output, unless `quiet`.

    Args:
        epochs: of the whole run.
        steps: batches per epoch.
        quiet: show nothing.
        balanced: whether the accuracy that is shown of an evaluation, and compared, is the balanced one.
        console: where to write.
    """

    def __init__(
        self, epochs: int, steps: int, *, quiet: bool = False, balanced: bool = False, console: Console | None = None
    ) -> None:
        self._balanced = balanced
        self._epochs, self._steps = epochs, steps
        self._console = Console(quiet=quiet) if console is None else console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._first: int | None = None  # the first step, which may wait for a compiler or for workers
        self._begun = 0.0  # when it ended
        self._shown = 0.0
        self._width = self._console.width if self._console.is_terminal else 1000  # characters; a file has room for all
        self._headed = False  # whether the names of the epochs' columns have been printed

    def __enter__(self) -> Reporter:
        if self._console.is_terminal and not self._console.quiet:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[state]}"))
            self._progress = Progress(
                *columns, console=self._console, transient=True, refresh_per_second=5, expand=True
            )
            self._task = self._progress.add_task("", total=self._steps, state="waiting for the first batch")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """One line of text; a terminal that is too narrow for it has line breaks between words."""
        for line in printable(text, keep="\n").split("\n"):
            for part in lines_of(line, self._width) or [""]:
                self._print(part)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def step(
        self, epoch: int, batch: int, images_per_second: float, running: Callable[[], tuple[float, float]]
    ) -> None:
        """After `batch` batches of an epoch; cheap enough to be called each time.

        Args:
            epoch, batch: counted from 1.
            images_per_second: of the epoch so far.
            running: gives its loss and accuracy so far. That waits for the device, so it is asked only for what is
                shown.
        """
        done, now = (epoch - 1) * self._steps + batch, time.monotonic()
        if self._first is None:
            self._first, self._begun = done, now
        if self._progress is None or now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        loss, accuracy = running()
        name = f"epoch {epoch}/{self._epochs}"
        parts = {
            "batch": f"{batch}/{self._steps}",
            "loss": f"loss {loss:.3f}",
            "accuracy": f"accuracy {accuracy:.1%}",
            "images/s": f"{images_per_second:,.0f} images/s",
            "left": f"{self._time_left(done)} left",
        }
        for least in ("images/s", "batch", "left"):  # which a narrow terminal has no room for
            if len(", ".join(parts.values())) > self._width - len(name) - BAR - 2:
                del parts[least]
        self._progress.update(self._task, completed=batch, description=name, state=", ".join(parts.values()))

    def recalibrating(self, batches: int) -> None:
        """While BatchNorm is recalibrated, and has come to this batch."""
        if self._progress is not None:
            self._progress.update(self._task, state=f"recalibrates BatchNorm, batch {batches}")

    def evaluating(self, done: int, count: int) -> None:
        """While `done` of `count` images have been evaluated."""
        if self._progress is not None:
            self._progress.update(self._task, state=f"evaluated {done:,} of {count:,} images")

    def epoch(self, row: dict[str, Any], *, best: bool = False) -> None:
        """The line of a finished epoch, marked where it is the best so far; before the first one, what the columns are.

        A narrow terminal has some columns less.
        """
        mark = "  best"
        widths = {"epoch": max(len("epoch"), 2 * len(str(self._epochs)) + 1), **COLUMNS}
        for least in LEAST:
            if sum(widths.values()) + 2 * (len(widths) - 1) + len(mark) > self._width:
                del widths[least]
        cells = {
            "epoch": f"{row['epoch']}/{self._epochs}",
            "loss": _number(row["loss"]),
            "acc": f"{row['accuracy']:.2%}",
            "val loss": _number(row["val_loss"]) if "val_loss" in row else "",
            "val acc": f"{score(row):.2%}" if "val_loss" in row else "",
            "lr": _number(row["rate"], least=1e-3),
            "images/s": f"{row['images_per_second']:,.0f}",
            "left": self._time_left(row["epoch"] * self._steps),
        }
        if not self._headed:
            names = {"val acc": "bal acc"} if self._balanced else {}
            self._print("  ".join(names.get(name, name).rjust(width) for name, width in widths.items()))
        self._print("  ".join(cells[name].rjust(width) for name, width in widths.items()) + mark * best)
        self._headed = True

    def _time_left(self, done: int) -> str:
        left = self._epochs * self._steps - done
        if left == 0:
            return duration(0)
        if self._first is None or done <= self._first:
            return "?"
        return duration((time.monotonic() - self._begun) / (done - self._first) * left)


class Events:
    """Writes a run's epochs for TensorBoard; without the extra, nothing: `metrics.jsonl` has the same numbers.

    Args:
        folder: of the event files.
        done: epochs that a resumed run keeps; what was written for later ones is not shown any more.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._folder, self._done = folder, done
        self._installed = importlib.util.find_spec("tensorboard") is not None
        self._writer: Any = None

    def write(self, row: dict[str, Any]) -> None:
        """The numbers of one epoch: losses and accuracies by `TAGS`, the others under their own names."""
        if not self._installed:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._done + 1)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(TAGS.get(name, name), value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if self._writer is not None:
            self._writer.close()


def _number(value: float, least: float = 0.0) -> str:
    """With four decimals, or where that would be too long or say too little, shorter."""
    return (
        f"{value:.4f}" if least <= value < 10 or not value else f"{value:.2f}" if 10 <= value < 1000 else f"{value:.1e}"
    )


def duration(seconds: float) -> str:
    """Seconds in hours, minutes and seconds.

    >>> duration(7.2), duration(83), duration(7500)
    ('7s', '1m23s', '2h05m')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
