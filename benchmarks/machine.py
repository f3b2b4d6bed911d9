"""The circumstances of a measurement: processor, versions, command."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """Processor, instruction sets, threads, versions and command line, to be written beside what was measured."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    flags = set(re.findall(r"\b(?:avx512f|avx512_bf16|amx_bf16|avx2)\b", text))
    return {
        "processor": model[1] if model else platform.processor(),
        "instructions": sorted(flags),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["python", *sys.argv]),
    }
