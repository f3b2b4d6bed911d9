"""One function for many items, computed by several processes, in order."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, get_start_method
from typing import Any, TypeVar

from diracnets.errors import DataError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
START = "fork" if sys.platform == "linux" else None  # how processes that decode are started; None: as the system does
_AT_ONCE = 16  # items that a process is handed


def spread(function: Callable[[S, T], R], shared: S, items: Sequence[T], workers: int) -> Iterator[R]:
    """What a function gives for something and each item, in the order of the items.

    Args:
        function: at the top of a module. What it raises is raised here.
        shared: its first argument, of which each process has its own copy.
        items: its second arguments; they are sent to the processes.
        workers: how many processes; up to 1 there is none but this one.

    Raises:
        DataError: a process died.

    >>> list(spread(pow, 2, [3, 4], workers=0))
    [8, 16]
    """
    if workers <= 1 or len(items) <= _AT_ONCE:
        yield from map(partial(function, shared), items)
        return
    context = get_context(START)
    pool = ProcessPoolExecutor(min(workers, -(-len(items) // _AT_ONCE)), context, _begin, (function, shared))
    try:
        yield from pool.map(_answer, items, chunksize=_AT_ONCE)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images died, most likely for lack of memory: try again with fewer workers, or with "
            f"1, which decodes in this process{unguarded()}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def unguarded() -> str:
    """What else ends a process where it begins by importing the program, which would then train in the process too."""
    if (START or get_start_method()) == "fork":
        return ""
    return '. Or a program of your own trains as it is imported: put what it does under if __name__ == "__main__":'


_job: list[Any] = []  # of a process: the function and what it shares, which a fork hands over without a copy


def _begin(function: Any, shared: Any) -> None:  # noqa: ANN401
    _job[:] = function, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _answer(item: Any) -> Any:  # noqa: ANN401
    function, shared = _job
    return function(shared, item)
