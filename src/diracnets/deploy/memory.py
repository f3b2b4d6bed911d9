"""How much memory the process has and had at most, as its operating system counts it."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def used_memory() -> int:
    """Bytes of memory that the process holds now; where only the peak is known, the peak."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """The most bytes of memory that the process has held since `reset_peak`, or since it began where that cannot be.

    >>> peak_memory() > 10_000_000
    True
    """
    if found := _status("VmHWM"):
        return found
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> None:
    """Give back what is free, and let the peak be what is held now, where the system has that (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _RESET.write_text("5")


def _status(key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
