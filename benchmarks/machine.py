"""The circumstances of a measurement: processor, versions, command."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import torch


def machine(device: str = "cpu") -> dict[str, object]:
    """Processor or GPU, instruction sets, threads, versions and command line, to stand beside what was measured."""
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
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }
