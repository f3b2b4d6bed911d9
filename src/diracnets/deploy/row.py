"""What is measured of a network on a backend: a row of the tables of parity and bench."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    """How long a network takes for a number of images; quartiles are of the rounds.

    Args:
        seconds: the median.
        seconds_quartiles: the lower and the upper one.
        ratio: the median of the rounds' ratios to the first row that was measured in the same rounds.
        ratio_quartiles: of these.
        processor_seconds: of processor time, of all threads together, the median.
        processor_ratio: the median of the rounds' ratios of these; what else the machine does hardly changes it.
        processor_ratio_quartiles: of these.
        of_peak: multiply-adds in a second of processor time, as a part of those of a matrix product in float32 in the
            same round, the median; None where the network's are not known.
    """

    seconds: float
    seconds_quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    processor_seconds: float
    processor_ratio: float
    processor_ratio_quartiles: tuple[float, float]
    of_peak: float | None


@dataclass(frozen=True)
class Row:
    """One network on one backend in one precision; what was not measured is None.

    Args:
        network: its name.
        backend: the name of a backend, or "torch" for eager torch, or "torch.compile".
        precision: "float32", "bfloat16" or "int8".
        reason: why it was not measured; "" where it was.
        top1: part of the images whose class comes first.
        agreement: part of the images for which the class is that of the exact network, in float64.
        difference: the largest between an output and the exact network's.
        latency: by the number of images at a time.
        file_bytes: of the exported file, and of what belongs to it.
        start_seconds: from opening the file to the first answer, in a process that has imported the packages.
        start_bytes: the most memory that this took, beyond what the process held before.
        running_bytes: the most memory held while it runs, beyond the same, by the number of images at a time.
    """

    network: str
    backend: str
    precision: str
    reason: str = ""
    top1: float | None = None
    agreement: float | None = None
    difference: float | None = None
    latency: Mapping[int, Timing] = field(default_factory=dict)
    file_bytes: int | None = None
    start_seconds: float | None = None
    start_bytes: int | None = None
    running_bytes: Mapping[int, int] = field(default_factory=dict)
