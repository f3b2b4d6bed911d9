"""What the processor can do, as far as it decides how fast a network trains."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import torch


@cache
def instructions() -> frozenset[str]:
    """Those of the processor's instructions that decide how fast it trains, as Linux calls them; elsewhere none.

    >>> instructions() <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16"}
    True
    """
    return frozenset(re.findall(r"\b(?:avx2|avx512f|avx512_bf16|amx_bf16|bf16)\b", cpuinfo()))


def has_bfloat16() -> bool:
    """Whether the processor computes in bfloat16 itself: without such instructions it is emulated, many times slower.

    Intel and AMD processors have avx512_bf16 or AMX, and those of ARM bf16, which Linux alone tells of.
    """
    return (
        bool(instructions() & {"avx512_bf16", "amx_bf16", "bf16"})
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo() -> str:
    """What Linux tells of the processor; elsewhere nothing."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""
