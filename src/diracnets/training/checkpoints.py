"""The checkpoints of a run: last.pt, those before it, and best.pt: written, pruned, listed, and found again.

A process may be killed at any moment. last.pt is replaced in one step by a file that is complete. Before that, it gets
a second name in the folder `earlier`, and only after it the oldest of these is removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from diracnets.artifacts.network_file import BEST, LAST
from diracnets.errors import FileError, UsageError
from diracnets.files import keep_also_as, remove_parts

EARLIER = "earlier"


class Position(NamedTuple):
    """How far a run has come; positions compare.

    >>> Position(2, 120) > Position(2, 0), str(Position(2, 120))
    (True, '2 epochs and 120 batches')
    """

    epochs: int
    """Whole epochs done."""
    batches: int
    """Batches done after them."""

    def __str__(self) -> str:
        return f"{self.epochs} epochs and {self.batches} batches"

    @property
    def name(self) -> str:
        """Of a file in the folder of earlier checkpoints."""
        return f"epoch-{self.epochs:04}-batch-{self.batches:06}.pt"

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Position:
        """Where a run stood; a checkpoint to evaluate is that of the end of an epoch.

        Raises:
            KeyError, TypeError, ValueError: it does not say so.
        """
        given = checkpoint.card.provenance if checkpoint.resume is None else checkpoint.resume
        epoch, batch = given["epoch"], 0 if checkpoint.resume is None else given["batch"]
        if not all(type(each) is int and 0 <= each < 1 << 31 for each in (epoch, batch)):
            raise ValueError("no numbers of epochs and batches")
        return cls(epoch if checkpoint.resume is None else epoch - 1, batch)


@dataclass(frozen=True)
class Kept:
    """A checkpoint in a run folder.

    Args:
        path: the file.
        size: of it, in bytes.
        position: how far the run had come; None if the file is damaged.
        damage: what is wrong with the file; None if it is whole.
    """

    path: Path
    size: int
    position: Position | None = None
    damage: str | None = None


class Checkpoints:
    """The checkpoints in a run folder.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.last = folder / LAST
        self.best = folder / BEST
        self.earlier = folder / EARLIER
        self._in_last: Position | None = None  # of the checkpoint in last.pt, where that is known to be whole

    def exist(self) -> bool:
        """Whether there is anything to resume."""
        return self.last.exists() or bool(self._before())

    def write(self, checkpoint: Checkpoint, *, keep: int, safe: Position) -> None:
        """Make this last.pt, and what was last.pt the newest of the earlier ones.

        Args:
            checkpoint: with what resuming needs.
            keep: how many earlier ones to keep. Any that are later than this one belong to a course that the run has
                left, and go.
            safe: the newest one that is not later than this is kept too.

        Raises:
            TrainingError, FileError: as `save_checkpoint`; last.pt is then what it was.
        """
        position = Position.of(checkpoint)
        if self._in_last is not None and self._in_last < position and self.last.exists():
            keep_also_as(self.last, self.earlier / self._in_last.name)
        save_checkpoint(self.last, checkpoint)
        self._in_last = position
        before = sorted(self._before(), reverse=True)
        wanted = [each for each in before if each < position][:keep]
        wanted += [each for each in before if each <= safe][:1] if safe < position else []
        for each in before:
            if each not in wanted:
                (self.earlier / each.name).unlink(missing_ok=True)

    def read(self) -> tuple[Checkpoint, list[str]]:
        """The newest whole checkpoint to resume from.

        Returns:
            The checkpoint, and for each newer one what is wrong with it.

        Raises:
            UsageError: there is none at all.
            FileError: all are damaged; the message is about last.pt.
        """
        paths = [self.last, *(self.earlier / each.name for each in sorted(self._before(), reverse=True))]
        damaged: list[str] = []
        first: FileError | None = None
        for path in paths:
            if not path.exists():
                continue
            try:
                return self.read_one(path), damaged
            except FileError as error:
                first = first or error
                damaged.append(str(error))
        if first is None:
            raise UsageError(
                f"there is no run to resume in {self.last.parent}: it holds no {LAST}; "
                "a run that was stopped before its first checkpoint is started again, without --resume"
            )
        raise first

    def read_one(self, path: Path) -> Checkpoint:
        """A checkpoint to resume from: last.pt, or an earlier one.

        Raises:
            FileError: it is damaged, or one to evaluate.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.card.recipe is None or checkpoint.resume is None:
            raise FileError(f"{path} is a checkpoint to evaluate, without what a run needs to be resumed")
        try:
            position = Position.of(checkpoint)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is damaged: it does not say how far its run had come") from error
        self._in_last = position if path == self.last else None
        return checkpoint

    def go_back(self, safe: Position) -> Path:
        """Make the newest earlier checkpoint that is not later than `safe` the last one, if last.pt is later.

        Returns:
            What to resume from now: last.pt.

        Raises:
            FileError: a file cannot be written.
        """
        before = sorted(each for each in self._before() if each <= safe)
        if self._in_last is not None and self._in_last > safe and before:
            keep_also_as(self.earlier / before[-1].name, self.last)
            self._in_last = before[-1]
            for each in self._before():
                if each > safe:
                    (self.earlier / each.name).unlink(missing_ok=True)
        return self.last

    def listed(self) -> list[Kept]:
        """All of them, the earliest first, last.pt and best.pt at the end; each is read, and its checksums verified."""
        before = [self.earlier / each.name for each in sorted(self._before())]
        return [_kept(path) for path in [*before, self.last, self.best] if path.exists()]

    def remove_parts(self) -> None:
        """Remove what processes left behind that were killed while they wrote a checkpoint."""
        for path in (self.last, self.best, *(self.earlier / each.name for each in self._linked())):
            remove_parts(path)

    def _before(self) -> list[Position]:
        return self._named(r"epoch-(\d+)-batch-(\d+)\.pt")

    def _linked(self) -> list[Position]:
        return self._named(r"\.epoch-(\d+)-batch-(\d+)-[0-9a-f]{8}\.pt")

    def _named(self, pattern: str) -> list[Position]:
        if not self.earlier.is_dir():
            return []
        found = (re.fullmatch(pattern, path.name) for path in self.earlier.iterdir())
        return [Position(int(name[1]), int(name[2])) for name in found if name]


def _kept(path: Path) -> Kept:
    size = path.stat().st_size
    try:
        return Kept(path, size, Position.of(read_checkpoint(path)))
    except (FileError, KeyError, TypeError, ValueError) as error:
        return Kept(path, size, damage=str(error))
