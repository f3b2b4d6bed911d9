"""What keeps a run from being lost: how often it is saved, how many checkpoints are kept, and when it is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from diracnets.errors import UsageError, shown


@dataclass(frozen=True)
class Safeguards:
    """How a run is guarded. None of it changes what a run computes, so that a resumed run may have others.

    >>> Safeguards(save_every=500).keep
    1
    >>> Safeguards(keep=-1)
    Traceback (most recent call last):
    diracnets.errors.UsageError: keep is -1, but must be a whole number, 0 or more
    """

    save_every: int = 0
    """Save after every this many steps too, not only after each epoch. 0: after epochs only."""
    keep: int = 1
    """Earlier checkpoints to keep, besides the last and the best one."""
    stall_seconds: int = 600
    """Stop if worker processes give no batch of images for this many seconds. 0: wait for ever."""
    diverged_steps: int = 200
    """Stop if the training loss stays above 3 times that of guessing (or of the first step, where that is higher) for
    this many steps. 0: go on."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in vars(self).items():
            if type(value) is not int or value < 0:
                raise UsageError(f"{name} is {shown(value)}, but must be a whole number, 0 or more")

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Safeguards:
        """Those that a run was begun with, as plain values; names of other versions are left out.

        >>> Safeguards.of({"keep": 3, "of_a_later_version": 1})
        Safeguards(save_every=0, keep=3, stall_seconds=600, diverged_steps=200)
        """
        return cls(**{item.name: recorded[item.name] for item in fields(cls) if item.name in recorded})
