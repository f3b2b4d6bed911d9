"""The watch over a run's loss: NaN at once, divergence by a rule, and the last moment at which all was well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diracnets.training.checkpoints import Position
from diracnets.training.state import State

TIMES = 3.0  # as high as the loss of guessing: a network that learns nothing has that of guessing itself


class LossWatch:
    """Looks at the training loss now and then, and tells when the run diverges.

    A look takes the mean loss over the steps since the look before. It is high above `TIMES` the loss of guessing, ln
    of the number of classes, or above `TIMES` the loss of the very first step where that is higher. A run diverges when
    all looks over `patience` steps were high. A spike, a restart or a bad initialization that training mends is none.

    Args:
        classes: of the images.
        patience: steps; 0 never finds divergence.
        state: of the run, as it begins or goes on.
        steps: batches an epoch.
        recorded: what `to_data` gave when the run was saved; empty at its beginning.
    """

    def __init__(
        self, classes: int, patience: int, state: State, steps: int, recorded: Mapping[str, Any] | None = None
    ) -> None:
        recorded = recorded or {}
        self._guessing = math.log(max(classes, 2))
        self._patience = patience
        self._state, self._steps = state, steps
        self._first: float | None = recorded.get("first")
        self._high: int = recorded.get("high", 0)
        good: Sequence[int] = recorded.get("good", (state.epoch - 1, state.batch))
        self.good = Position(*good)
        """Where the run stood at the last look that was not high, or at its beginning."""
        self._before = (float(state.totals()[0]), state.seen, state.batch)

    @property
    def limit(self) -> float:
        """The loss above which a look is high."""
        return TIMES * max(self._guessing, self._first or 0.0)

    def look(self) -> str | None:
        """Look at the steps since the last look, of all processes together, which waits for the device.

        Returns:
            What is wrong, as a sentence without an end; None while nothing is, or not for long enough yet.
        """
        state = self._state
        loss_sum, seen, batch = self._before if state.batch > self._before[2] else (0.0, 0, 0)
        now = float(state.totals()[0])
        if not math.isfinite(now):
            return f"the loss became infinite or NaN in epoch {state.epoch}, by batch {state.batch}"
        self._before = now, state.seen, state.batch
        mean, steps = (now - loss_sum) / max(state.seen - seen, 1), state.batch - batch
        if self._first is None:
            self._first = mean
        if mean <= self.limit:
            ended = state.batch == self._steps
            self._high, self.good = 0, Position(state.epoch - 1 + ended, 0 if ended else state.batch)
            return None
        self._high += steps
        if not self._patience or self._high < self._patience:
            return None
        return (
            f"the run diverges: the loss has been above {self.limit:.3g} for {self._high} steps, and by epoch "
            f"{state.epoch} it is {mean:.3g}, where guessing has {self._guessing:.3g}"
        )

    def to_data(self) -> dict[str, Any]:
        """What a run that goes on needs to know, as plain values."""
        return {"first": self._first, "high": self._high, "good": list(self.good)}
