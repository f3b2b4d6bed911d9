"""The numbers of each epoch as TensorBoard events, where the `tensorboard` extra is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


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
        """The numbers of one epoch, each under its own name."""
        if not self._installed:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._done + 1)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
