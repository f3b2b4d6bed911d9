"""How processes that start together find each other in a store that may still hold what earlier ones wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch.distributed.distributed_c10d import PrefixStore, Store

from diracnets.errors import TrainingError

POLL = 0.01  # seconds
WAIT = 1800.0  # seconds; as torch waits for others


def fresh_store(store: Store, rank: int, count: int, name: str, wait: float = WAIT) -> Store:
    """A part of the store that no processes have written to but the ones that call this together.

    torchrun may keep its store when it starts processes again, and they cannot tell how often that was: each machine
    counts the failures that it saw itself. So each process takes a number that was never taken, and rank 0 tells every
    number its own one, those of dead processes too, until all that live have heard it.

    Args:
        store: that of torchrun.
        rank: number of this process.
        count: how many there are; each calls this, with a rank of its own.
        name: what they meet for; they use it once.
        wait: how many seconds rank 0 waits for the others; they wait as long as the store does.

    Raises:
        TrainingError: some have not come within that time.

    >>> from torch.distributed import HashStore
    >>> store = HashStore()
    >>> for start in range(2):
    ...     part = fresh_store(store, 0, 1, "doctest")
    ...     print(part.add("starts", 1))
    1
    1
    """
    number = store.add(f"{name}/numbers", 1)
    if rank == 0:
        told = 0
        for _ in _until(wait):
            taken = store.add(f"{name}/numbers", 0)
            for each in range(told + 1, taken + 1):
                store.set(f"{name}/{each}", str(number))
            told = taken
            if store.add(f"{name}/{number}/heard", 0) == count - 1:
                break
    else:
        number = int(store.get(f"{name}/{number}"))
        store.add(f"{name}/{number}/heard", 1)
    return PrefixStore(f"{name}/{number}", store)


def _until(wait: float) -> Iterator[None]:
    """Again and again, until the time is over."""
    end = time.monotonic() + wait
    while time.monotonic() < end:
        yield
        time.sleep(POLL)
    raise TrainingError(f"not all processes of this run have come within {wait:.0f} seconds: see their messages")
