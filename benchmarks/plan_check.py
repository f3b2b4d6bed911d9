"""`diracnets plan` against what was measured: training steps on this processor, and published rates of GPUs.

OMP_NUM_THREADS=1 python benchmarks/plan_check.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from timing import WARM_UP, Work
from torch import Tensor, nn
from tyro.conf import Positional

from diracnets.analysis.plan import Job, plan
from diracnets.analysis.plan_devices import Device, known_device, measured_cpu
from diracnets.analysis.plan_step import Step, traced_step
from diracnets.files import written_whole
from diracnets.models.build import build_model, on_meta
from diracnets.models.network import Network
from diracnets.runtime.device import keep_memory
from diracnets.runtime.environment import circumstances
from diracnets.training.settings import OptimizationSettings

CASES = (  # network, side of the images, batch
    ("diracnet-10-1", 32, 16),
    ("diracnet-10-1", 32, 128),
    ("diracnet-28-1", 32, 16),
    ("diracnet-28-1", 32, 128),
    ("wrn-16-1", 32, 64),
    ("diracnet-16-4", 32, 16),
    ("diracnet-18", 64, 16),
)
NVIDIA = "NVIDIA DeepLearningExamples, PyTorch ResNet50 v1.5, DGX A100, 256 images a device"
TIMM = "timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv, 512 images"
PUBLISHED = (  # network, device, precision, devices, images a device, images per second, source
    ("resnet-18", "rtx3090", "float16", 1, 512, 3481.78, TIMM),
    ("resnet-34", "rtx3090", "float16", 1, 512, 2036.51, TIMM),
    ("repvgg-b0", "rtx3090", "float16", 1, 512, 1538.07, TIMM),
    ("resnet-50", "a100", "float32", 1, 256, 938.0, NVIDIA),
    ("resnet-50", "a100", "float16", 1, 256, 2470.0, NVIDIA),
    ("resnet-50", "a100", "float32", 8, 256, 7248.0, NVIDIA),
    ("resnet-50", "a100", "float16", 8, 256, 16621.0, NVIDIA),
)
FITTED = {"rtx3090": 3, "a100": 2}  # by so many of the lines above, those of one device


@dataclass(frozen=True)
class Check:
    """Compare predicted with measured time and memory of training steps, and write plan.json."""

    out: Path = Path("results/plan.json")
    """The file to write."""
    rounds: int = 9
    """Steps of each network that are measured."""

    def run(self) -> None:
        """Measure, compare, print and write."""
        keep_memory()
        device = measured_cpu(time.process_time)
        rows = [self._measured(device, *case) for case in CASES]
        again = measured_cpu(time.process_time)
        gpus = [_published(*line) for line in PUBLISHED]
        data = {
            "study": "plan",
            "note": "processor time of one thread, the fastest of the steps; other programs ran on the machine",
            "question": "How far is the plan of a training step off?",
            "circumstances": circumstances(torch.device("cpu")),
            "rates": {"before": _rates(device), "after": _rates(again)},
            "steps": rows,
            "published": gpus,
            "fitted": {name: _fit(name) for name in FITTED},
        }
        with written_whole(self.out) as part:
            part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        for row in (*rows, *gpus):
            print(json.dumps(row))

    def _measured(self, device: Device, name: str, side: int, batch: int) -> dict[str, Any]:
        step = traced_step(on_meta({"name": name, "image_size": side}), OptimizationSettings(), "float32")
        work = Work(build_model(name, image_size=side), batch, image_size=side)
        seconds = [_processor_seconds(work.step) for _ in range(self.rounds + WARM_UP)][WARM_UP:]
        found = plan(Job(step, device, 50_000, 1, batch), 1)
        expected = sum(found.memory.values()) - device.reserved
        saved, peak = work.saved_bytes(), _peak(name, side, batch)
        return {
            "network": name,
            "image_size": side,
            "batch": batch,
            "median_ms": round(1000 * statistics.median(seconds), 2),
            "fastest_ms": round(1000 * min(seconds), 2),
            "planned_ms": round(1000 * found.step, 2),
            "error": round(found.step / min(seconds) - 1, 3),
            "saved_mb": round(saved / 1e6, 3),
            "planned_saved_mb": round(step.saved(batch) / 1e6, 3),
            "peak_mb": round(peak / 1e6, 1),
            "planned_peak_mb": round(expected / 1e6, 1),
            "memory_error": round(expected / peak - 1, 3),
        }


@dataclass(frozen=True)
class Peak:
    """Print how many bytes more than before a process has while it takes three training steps, on Linux."""

    name: Positional[str]
    side: Positional[int]
    batch: Positional[int]

    def run(self) -> None:
        """Take a step of a tiny network first, which loads what every step needs."""
        Work(build_model("diracnet-10-0.25"), 2).step()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the highest so far
        work = Work(build_model(self.name, image_size=self.side), self.batch, image_size=self.side)
        for _ in range(3):
            work.step()
        print(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field + ":")))


def _processor_seconds(call: Callable[[], None]) -> float:
    """Of this process, with one thread: what else the machine does counts less than in the time of a clock."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _peak(name: str, side: int, batch: int) -> int:
    command = [sys.executable, __file__, "peak", name, str(side), str(batch)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _rates(device: Device) -> dict[str, float]:
    return {
        "gflops": round(device.flops["float32"] / 1e9, 1),
        "gb_per_second": round(device.bandwidth / 1e9, 1),
        "computing": round(device.computing, 3),
        "moving": round(device.moving, 3),
        "operation_us": round(1e6 * device.operation, 2),
    }


_steps: dict[tuple[str, str], Step] = {}


def _step(name: str, precision: str) -> Step:
    if (name, precision) not in _steps:
        with torch.device("meta"):
            net = cast(Network, _ResNet50()) if name == "resnet-50" else on_meta({"name": name})
        _steps[name, precision] = traced_step(net, OptimizationSettings(), precision)
    return _steps[name, precision]


def _rate(device: Device, name: str, precision: str, devices: int, batch: int) -> float:
    job = Job(_step(name, precision), device, 1_281_167, 1, None, batch_per_device=batch, precision=precision)
    return plan(job, devices).images_per_second


def _published(
    name: str, device: str, precision: str, devices: int, batch: int, rate: float, source: str
) -> dict[str, Any]:
    planned = _rate(known_device(device), name, precision, devices, batch)
    return {
        "network": name,
        "device": device,
        "precision": precision,
        "devices": devices,
        "batch_per_device": batch,
        "images_per_second": rate,
        "planned": round(planned, 1),
        "error": round(planned / rate - 1, 3),
        "source": source,
    }


def _fit(device: str) -> dict[str, float]:
    """The fractions of FLOP/s and bandwidth for which the largest error of a device's lines is smallest."""
    lines = [line for line in PUBLISHED if line[1] == device and line[3] == 1]
    best = min(
        (max(abs(_rate(tried, *line[:1], *line[2:5]) / line[5] - 1) for line in lines), computing, moving)
        for computing in (each / 50 for each in range(10, 51))
        for moving in (each / 50 for each in range(10, 51))
        for tried in [replace(known_device(device), computing=computing, moving=moving)]
    )
    return {"largest_error": round(best[0], 3), "computing": best[1], "moving": best[2]}


class _Bottleneck(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *_unit(width_in, width, 1), nn.ReLU(), *_unit(width, width, 3, stride), nn.ReLU(), *_unit(width, out, 1)
        )
        self.shortcut = nn.Sequential(*_unit(width_in, out, 1, stride)) if width_in != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _unit(width_in: int, out: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(width_in, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out)]


class _ResNet50(nn.Module):
    """ResNet-50 v1.5, of which more was published than of any network of this package."""

    input_size = (3, 224, 224)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_unit(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        groups, before = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            blocks = OrderedDict()
            for place in range(count):
                blocks[str(place)] = _Bottleneck(before, width, stride if place == 0 else 1)
                before = 4 * width
            groups.append(nn.Sequential(blocks))
        self.groups = nn.ModuleList(groups)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for group in self.groups:
            x = group(x)
        return cast(Tensor, self.fc(x.mean((2, 3))))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"check": Check, "peak": Peak}, args=sys.argv[1:] or ["check"]).run()
