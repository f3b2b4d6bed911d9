"""What devices can do, from their makers' data sheets, and what this processor does, measured on the spot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diracnets.errors import UsageError, did_you_mean

CHANNELS = 16, 64, 256  # of the convolutions that are measured
IMAGES = 32


@dataclass(frozen=True)
class Device:
    """One device, and how it is connected to others. Rates are per second; bytes, not bits.

    Args:
        name: as the command line calls it.
        source: where the peak rates are from.
        flops: peak FLOP/s of convolutions, by precision; a multiplication and an addition are two.
        bandwidth: of its memory, bytes.
        memory: bytes; infinite where it was not given.
        inside: bytes to and from another device of the same node, each way.
        between: bytes to and from another node, each way, for each device.
        reserved: bytes that the runtime keeps for itself.
        computing: fraction of the peak rate that convolutions reach.
        moving: fraction of the memory bandwidth that all other operations reach.
        linking: fraction of the links' rates that collective operations reach.
        operation: seconds that starting an operation takes at least.
        hop: seconds that a message takes at least inside a node, and between nodes.
        efficiency: where `computing` and `moving` are from; the others are assumed.
    """

    name: str
    source: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float = float("inf")
    inside: float = 32e9
    between: float = 12.5e9
    reserved: float = 1e9
    computing: float = 0.5
    moving: float = 0.8
    linking: float = 0.8
    operation: float = 8e-6
    hop: tuple[float, float] = (3e-6, 10e-6)
    efficiency: str = "assumed"


_A100 = (0.26, 0.84, "fitted to NVIDIA's two published rates of ResNet-50 on an A100")
_TAKEN = (*_A100[:2], "taken from an A100, which newer devices may not reach")
_RTX = (0.98, 0.56, "fitted to timm's rates of three networks on an RTX 3090")


def _gpu(
    name: str,
    source: str,
    rates: tuple[float, float],
    memory: tuple[float, float],
    links: tuple[float, float],
    reached: tuple[float, float, str],
) -> Device:
    """A graphics card.

    Args:
        name, source: of the device.
        rates: TFLOP/s in bfloat16 and float16 and in TF32, in which torch convolves float32; without sparsity.
        memory: GB/s and GB.
        links: GB/s each way inside a node and to others.
        reached: fractions of the FLOP/s and of the bandwidth, and where they are from.
    """
    short, tf32 = (1e12 * rate for rate in rates)
    (bandwidth, size), (inside, between) = ([1e9 * each for each in pair] for pair in (memory, links))
    computing, moving, words = reached
    flops = {"bfloat16": short, "float16": short, "float32": tf32}
    return Device(
        name, source, flops, bandwidth, size, inside, between,
        computing=computing, moving=moving, efficiency=words,
    )  # fmt: skip


DEVICES = {
    device.name: device
    for device in (
        _gpu("a100", "NVIDIA A100 data sheet, SXM 80 GB", (312, 156), (2039, 80), (300, 25), _A100),
        _gpu("h100", "NVIDIA H100 data sheet, SXM", (989.4, 494.7), (3350, 80), (450, 50), _TAKEN),
        _gpu("h200", "NVIDIA H200 data sheet, SXM", (989.4, 494.7), (4800, 141), (450, 50), _TAKEN),
        _gpu("b200", "NVIDIA DGX B200 data sheet", (2250, 1125), (8000, 180), (900, 50), _TAKEN),
        _gpu("l40s", "NVIDIA L40S data sheet", (362, 183), (864, 48), (32, 12.5), _TAKEN),
        _gpu("rtx3090", "NVIDIA Ampere GA102 whitepaper", (71, 35.6), (936, 24), (32, 12.5), _RTX),
        _gpu(
            "rtx4090",
            "NVIDIA Ada whitepaper",
            (165.2, 82.6),
            (1008, 24),
            (32, 12.5),
            (*_RTX[:2], "taken from an RTX 3090"),
        ),
    )
}


def known_device(name: str) -> Device:
    """The device of that name.

    Raises:
        UsageError: no such device.

    >>> known_device("h200").memory / known_device("h100").memory
    1.7625
    """
    if name not in DEVICES:
        known = f"there are {', '.join(DEVICES)}, and cpu with measure, or with a peak rate and a bandwidth"
        raise UsageError(f"no device is known as {name!r}: {did_you_mean(name, DEVICES, known)}")
    return DEVICES[name]


def given_cpu(teraflops: float, bandwidth: float) -> Device:
    """A processor whose rates the user knows.

    Args:
        teraflops: float32, in TFLOP/s.
        bandwidth: in GB/s.

    Raises:
        UsageError: a rate that is not positive.
    """
    if min(teraflops, bandwidth) <= 0:
        raise UsageError(
            f"the peak rate is {teraflops} TFLOP/s and the bandwidth {bandwidth} GB/s; both must be above 0"
        )
    rates = {"float32": teraflops * 1e12}
    return _cpu(rates, bandwidth * 1e9, "given on the command line", "assumed")


def measured_cpu(clock: Callable[[], float] = time.perf_counter) -> Device:
    """This processor, with as many threads as torch uses: some seconds of measuring.

    The peak rate is that of a product of matrices, and the bandwidth that of copying 64 MB, reading and writing
    counted. `computing` and `moving` are what forward and backward passes of 3x3 convolutions of 16, 64 and 256
    channels, and of a batch norm and a ReLU, reach of these rates.

    Args:
        clock: seconds from any start.
    """
    matrix = torch.randn(768, 768)
    peak = 2 * 768**3 / _fastest(lambda: matrix @ matrix, clock)
    source, copy = torch.randn(2**24), torch.empty(2**24)
    bandwidth = 2 * 4 * 2**24 / _fastest(lambda: copy.copy_(source), clock)
    tiny = torch.zeros(1)
    operation = _fastest(lambda: [tiny.add_(1) for _ in range(100)], clock) / 100
    seconds = sum(_fastest(_convolution(channels), clock) for channels in CHANNELS)
    computing = len(CHANNELS) * 3 * 2 * IMAGES * 9 * (32 * CHANNELS[0]) ** 2 / seconds / peak
    layers = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
    images = _channels_last(64).requires_grad_()
    # forward reads and writes for each layer; backward reads two and writes one for each
    moved = (2 + 2 + 3 + 3) * 4 * images.numel()
    moving = moved / _fastest(_both_passes(layers, images), clock) / bandwidth
    words = "of 3x3 convolutions, a batch norm and a ReLU, measured here"
    found = _cpu({"float32": peak}, bandwidth, f"measured here, {torch.get_num_threads()} threads", words)
    return replace(found, computing=computing, moving=moving, operation=operation)


def _channels_last(channels: int) -> Tensor:
    """Images on which convolutions have as many FLOPs whatever the channels."""
    side = 32 * CHANNELS[0] // channels
    return torch.randn(IMAGES, channels, side, side).to(memory_format=torch.channels_last)


def _convolution(channels: int) -> Callable[[], object]:
    """A forward and backward pass of a 3x3 convolution."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    return _both_passes(conv, _channels_last(channels).requires_grad_())


def _both_passes(layer: nn.Module, images: Tensor) -> Callable[[], object]:
    """A forward and backward pass of a layer whose output has its input's shape; no gradient is added to another."""
    inputs, gradient = [images, *layer.parameters()], torch.randn_like(images)
    return lambda: torch.autograd.grad(layer(images), inputs, gradient)


def _cpu(flops: Mapping[str, float], bandwidth: float, source: str, efficiency: str) -> Device:
    return Device(
        "cpu",
        source,
        flops,
        bandwidth,
        inside=bandwidth / 4,  # a message between processes is copied twice, each time read and written
        reserved=0.3e9,
        operation=2e-6,
        hop=(30e-6, 50e-6),
        efficiency=efficiency,
    )


def _fastest(call: Callable[[], object], clock: Callable[[], float], rounds: int = 15) -> float:
    """Seconds of the fastest of some calls: the least disturbed by what else the machine does."""
    call()
    taken = []
    for _ in range(rounds):
        begun = clock()
        call()
        taken.append(clock() - begun)
    return min(taken)
