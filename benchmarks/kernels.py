"""Which convolutions of few channels torch's CPU kernels crash on, compute wrongly or never finish.

python benchmarks/kernels.py --out results/kernels.json                   # about ten minutes an instruction set
python benchmarks/kernels.py --isa AVX2 --layers Conv2d --dtypes float32  # a part

oneDNN, which torch convolves with on x86, chooses its kernels by the processor, and ONEDNN_MAX_CPU_ISA makes it choose
as on an older one. Each instruction set is a process of its own, which forks one for every group of convolutions, so
that a crash or an endless loop ends that one alone and is put down to the convolution that was running. Looked for are:

- memory overwritten past a block's end: glibc's checking allocator (`libc_malloc_debug.so.0`) ends the process;
- numbers that differ from those of torch's own kernels (`torch.backends.mkldnn.flags(enabled=False)`);
- convolutions that do not end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diracnets.runtime.environment import circumstances

ISAS = ("AVX2", "AVX512_CORE", "DEFAULT")  # the last two, where the processor has no AVX-512, choose as the first does
LAYERS = ("Conv2d", "Conv1d", "Conv3d", "ConvTranspose2d")
CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17)  # of Conv2d without groups, of 1x1
FEWER = (1, 2, 3, 4, 6, 8, 9, 16)  # of all others
STAGES = ("forward", "gradient of the input", "gradient of the filters")
SECONDS = 20.0  # that one convolution may take; it takes a thousandth of one
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}  # of 1 + the largest number
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
SIZES = {"divisible": (12, 12, 12), "odd": (9, 10, 11)}  # by all strides; Conv3d's depth is the last


@dataclass(frozen=True)
class Group:
    """Convolutions that differ in their channels alone."""

    layer: str
    kernel: int
    stride: int
    padding: int
    dilation: int
    groups: str  # one, two or depthwise
    size: str  # of the images, a key of SIZES
    layout: str  # contiguous or channels_last
    threads: int
    dtype: str

    def channels(self) -> list[tuple[int, int]]:
        """Pairs of input and output channels."""
        among = CHANNELS if (self.layer, self.kernel, self.groups) == ("Conv2d", 1, "one") else FEWER
        if self.groups == "depthwise":
            return [(c, times * c) for c in among if c > 1 for times in (1, 2)]
        groups = 2 if self.groups == "two" else 1
        return [(groups * c, groups * d) for c, d in itertools.product(among, among)]


def all_groups(layers: Sequence[str], dtypes: Sequence[str]) -> Iterator[Group]:
    """What the sweep consists of."""
    pointwise = [(1, stride, 0, 1) for stride in (1, 2, 3, 4)] + [(1, 2, 0, 2), (1, 2, 1, 1)]
    wider = [(kernel, stride, kernel // 2, 1) for kernel in (2, 3, 5) for stride in (1, 2, 3)]
    shapes = [*pointwise, *wider, (2, 2, 0, 1), (3, 2, 0, 1), (3, 1, 2, 2), (3, 2, 2, 2)]
    for layer, shape, groups, size, layout, threads, dtype in itertools.product(
        layers, shapes, ("one", "two", "depthwise"), SIZES, ("contiguous", "channels_last"), (1, 2), dtypes
    ):
        no_layout = layer == "Conv1d" and layout == "channels_last"  # torch has none
        if not no_layout and (shape[1] > 1 or size == "odd") and (dtype == "float32" or layer == "Conv2d"):
            yield Group(layer, *shape, groups, size, layout, threads, dtype)


def stages(group: Group, channels: tuple[int, int], by_onednn: bool) -> Iterator[list[Tensor]]:
    """The output of a convolution, its input's gradient, and its filters' and bias's."""
    axes, transposed = int(group.layer[-2]), group.layer.startswith("ConvTranspose")
    count = {"one": 1, "two": 2, "depthwise": channels[0]}[group.groups]
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, group.dtype)
    layout = FORMATS.get(axes, torch.contiguous_format) if group.layout == "channels_last" else torch.contiguous_format

    def drawn(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator).to(dtype)
        if not by_onednn:
            return tensor.float()
        where = layout if len(shape) == axes + 2 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, memory_format=where).copy_(tensor)  # in it for one channel, too

    images = drawn(3, channels[0], *SIZES[group.size][:axes])
    across = (channels[0], channels[1] // count) if transposed else (channels[1], channels[0] // count)
    weight, bias = drawn(*across, *[group.kernel] * axes), drawn(channels[1])
    how = ([group.stride] * axes, [group.padding] * axes, [group.dilation] * axes, transposed, [0] * axes, count)
    with torch.backends.mkldnn.flags(enabled=by_onednn):
        output = torch.convolution(images, weight, bias, *how)
        yield [output]
        ahead = drawn(*output.shape)
        for wanted in ([True, False, False], [False, True, True]):
            found = torch.ops.aten.convolution_backward(ahead, images, weight, [channels[1]], *how, wanted)
            yield [gradient for gradient in found if gradient is not None]


class Progress:
    """Where a forked process is and what it found: memory that both processes see."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 2**20)

    def step(self, index: int, stage: int) -> None:
        self.memory[:3] = index.to_bytes(2, "little") + bytes([stage])

    @property
    def at(self) -> tuple[int, int]:
        return int.from_bytes(self.memory[:2], "little"), self.memory[2]

    def tell(self, findings: list[dict[str, Any]]) -> None:
        text = json.dumps(findings).encode()
        self.memory[8 : 8 + len(text)] = text
        self.memory[4:8] = len(text).to_bytes(4, "little")

    def findings(self) -> list[dict[str, Any]]:
        return json.loads(self.memory[8 : 8 + int.from_bytes(self.memory[4:8], "little")] or b"[]")


def work(group: Group, pairs: Sequence[tuple[int, int]], first: int, progress: Progress) -> None:
    """Compute a group's convolutions from the `first` on and tell of wrong numbers."""
    torch.set_num_threads(group.threads)
    findings: list[dict[str, Any]] = []
    for index, channels in enumerate(pairs[first:], first):
        progress.step(index, 0)
        truth = list(stages(group, channels, by_onednn=False))
        for stage, (found, right) in enumerate(zip(stages(group, channels, by_onednn=True), truth, strict=True)):
            errors = [
                float((a.float() - b).abs().max() / (1 + b.abs().max())) for a, b in zip(found, right, strict=True)
            ]
            if not max(errors) <= TOLERANCES[group.dtype]:  # NaN, too
                findings.append({"channels": list(channels), "stage": STAGES[stage], "what": "wrong numbers"})
                progress.tell(findings)
            del found  # so that the allocator looks at it
            progress.step(index, min(stage + 1, len(STAGES) - 1))


def failures(group: Group, pairs: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """What goes wrong in a group, each time in a process that is forked for it."""
    first = 0
    while first < len(pairs):
        progress = Progress()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the allocator says on ending the process
                work(group, pairs, first, progress)
                status = 0
            finally:
                os._exit(status)
        end = wait(child, progress)
        yield from progress.findings()
        if end is None:
            return
        index, stage = progress.at
        yield {"channels": list(pairs[index]), "stage": STAGES[stage], "what": end}
        first = index + 1


def wait(child: int, progress: Progress) -> str | None:
    """How a process ended; None where it ended well."""
    seen, since = progress.at, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if progress.at != seen:
            seen, since = progress.at, time.monotonic()
        elif time.monotonic() - since > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "does not end"
        time.sleep(0.002)


def sweep(layers: Sequence[str], dtypes: Sequence[str]) -> dict[str, Any]:
    """What goes wrong with the kernels that this process's ONEDNN_MAX_CPU_ISA chooses."""
    torch.set_num_threads(1)
    warm = Group("Conv2d", 3, 1, 1, 1, "one", "odd", "contiguous", 1, "float32")
    for by_onednn in (True, False):  # so that the forked processes need not prepare it
        list(stages(warm, (8, 8), by_onednn))
    began, tried, found = time.monotonic(), 0, []
    for group in all_groups(layers, dtypes):
        pairs = group.channels()
        tried += len(pairs)
        wrong = [f"{failure['channels']}: {failure['stage']}: {failure['what']}" for failure in failures(group, pairs)]
        if wrong:
            found.append({**asdict(group), "tried": len(pairs), "failures": wrong})
            print(f"{group}: {len(wrong)} of {len(pairs)} fail", file=sys.stderr, flush=True)
    return {"convolutions": tried, "seconds": round(time.monotonic() - began), "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = ISAS if torch.backends.cpu.get_cpu_capability() == "AVX512" else ISAS[:1]
    parser.add_argument("--isa", nargs="+", default=own, help=f"by default {' '.join(ISAS)}")
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCES), choices=TOLERANCES)
    parser.add_argument("--allocator", default="libc_malloc_debug.so.0", help="a library to preload that checks memory")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.within:
        print(json.dumps(sweep(arguments.layers, arguments.dtypes)))
        return
    rows = []
    for isa in arguments.isa:
        preload = {"LD_PRELOAD": arguments.allocator, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "1"}
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, *sys.argv, "--within"]
        environment = {**os.environ, **preload, **threads, "ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        rows.append({"isa": isa, **json.loads(done.stdout)})
        fail = sum(len(group["failures"]) for group in rows[-1]["found"])
        print(f"{isa}: {rows[-1]['convolutions']} convolutions, {fail} fail", file=sys.stderr)
        if arguments.out:
            facts = {**circumstances(), "capability": torch.backends.cpu.get_cpu_capability()}
            arguments.out.write_text(json.dumps({"circumstances": facts, "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
