"""One function for many items, computed by several processes, in order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from diracnets.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE = 16  # items that a process is handed


def spread(function: Callable[[T], R], items: Sequence[T], workers: int, *, at_once: int = _AT_ONCE) -> Iterator[R]:
    """What a function gives for each item, in their order.

    Args:
        function: at the top of a module. What it raises is raised here.
        items: what it is called with; they are sent to the processes.
        workers: how many processes; up to 1 there is none but this one.
        at_once: how many items a process is handed at a time.

    Raises:
        DataError: a process died.

    >>> list(spread(abs, [-1, 2], workers=0))
    [1, 2]
    """
    if workers <= 1 or len(items) <= at_once:
        yield from map(function, items)
        return
    context = get_context("fork" if sys.platform == "linux" else None)  # as the workers of `StreamedImages`
    pool = ProcessPoolExecutor(min(workers, -(-len(items) // at_once)), context, _leave_signals_to_the_parent)
    try:
        yield from pool.map(function, items, chunksize=at_once)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died, most likely for lack of memory: try again with fewer workers, or with "
            "1, which decodes in this process"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
