"""Brings the files of coming batches while the present ones are used, not further ahead than there is room for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from torch import Tensor

from diracnets.errors import DiracNetsError

Bring = Callable[[int, Callable[[], bool]], None]


class Ahead:
    """A thread that brings files, in the order in which an epoch needs them.

    What goes wrong is left to who needs the file, and meets it again.

    Args:
        bring: brings a file, given its number and a function that says whether to give up.
        batches: the files of the images of each batch, int64 [B] each.
        files: how many to bring ahead of those that the batch at hand has come to.
    """

    def __init__(self, bring: Bring, batches: Sequence[Tensor], files: int) -> None:
        self._bring = bring
        self._ahead = files
        self._order: list[int] = []  # files
        self._met: list[int] = []  # how many of them have been met when a batch is used
        known = set[int]()
        for batch in batches:
            new = [file for file in sorted(set(batch.tolist())) if file not in known]
            known.update(new)
            self._order += new
            self._met.append(len(self._order))
        self._allowed = files
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="diracnets-ahead", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()  # a process that is forked meanwhile would keep its locks

    def at(self, batch: int) -> None:
        """The batch of this number is about to be used."""
        with self._changed:
            self._allowed = max(self._allowed, self._met[batch] + self._ahead)
            self._changed.notify_all()

    def _run(self) -> None:
        for number, file in enumerate(self._order):
            with self._changed:
                self._changed.wait_for(lambda wanted=number: self._stopped or wanted < self._allowed)  # type: ignore[misc]
                if self._stopped:
                    return
            try:
                self._bring(file, lambda: self._stopped)
            except DiracNetsError:
                continue
