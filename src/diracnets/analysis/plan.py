"""Training on paper: memory, time and communication on any number of devices, and where more of them stop helping.

The model is described in docs/scaling.md, and what it is off by in results/plan.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diracnets.analysis.plan_devices import Device
from diracnets.analysis.plan_step import Operation, Step, gathered
from diracnets.errors import UsageError

SHARE = 2  # images that a device has to have at once, for BatchNorm needs more than one
BUCKET = 25e6  # bytes of gradients that DDP sends at a time; its last ones have nothing to hide behind
LEAST_EFFICIENCY = 0.5  # below it, more than half of what is paid for waits
MOST_DEVICES = 65536


@dataclass(frozen=True)
class Job:
    """A training run, as far as its cost goes.

    Args:
        step: of the network, see `traced_step`.
        device: what computes.
        images: in the training set.
        epochs: passes over them.
        batch_size: images a step over all devices; None where each device gets `batch_per_device`.
        batch_per_device: images a step on each device, so that the batch grows with the devices.
        precision: of convolutions.
        node_size: devices of a node.
        shard: FSDP2 in place of DDP.
        accumulate: parts of a step's images that are computed one after the other.
        sync_bn: batch norms compute their statistics over all devices.
        averages: copies of the weights that are averages.
        critical_batch: images a step from which on more of them help less.

    Raises:
        UsageError: a number that makes no sense, or a precision that the device is not known for.
    """

    step: Step
    device: Device
    images: float
    epochs: int
    batch_size: int | None
    batch_per_device: int | None = None
    precision: str = "float32"
    node_size: int = 8
    shard: bool = False
    accumulate: int = 1
    sync_bn: bool = False
    averages: int = 0
    critical_batch: int = 8192

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.precision not in self.device.flops:
            known = ", ".join(self.device.flops)
            raise UsageError(f"no peak rate of {self.device.name} is known for {self.precision}; choose {known}")
        if (self.batch_size is None) == (self.batch_per_device is None):
            raise UsageError("give a batch size for all devices or one for each, not both")
        numbers = ("images", "epochs", "batch_size", "batch_per_device", "node_size", "accumulate", "critical_batch")
        for name in numbers:
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise UsageError(f"{name} is {value}, but must be at least 1")


@dataclass(frozen=True)
class Plan:
    """What a run costs on so many devices. Times in seconds, memory in bytes of one device.

    Args:
        devices: how many.
        batch: images a step over all devices.
        batch_per_device: a device's share of it.
        memory: by part.
        compute: of the forward and backward pass and the update, in a step.
        communication: of a step, whether hidden or not.
        exposed: the part of it that nothing hides.
        step: all of it.
        images_per_second: over all devices.
        efficiency: images a second of each device, over those of one device that does all of the work of its kind.
        epoch, run: training steps alone.
        limits: what is wrong with that many devices, empty where nothing is.
    """

    devices: int
    batch: int
    batch_per_device: float
    memory: dict[str, float]
    compute: float
    communication: float
    exposed: float
    step: float
    images_per_second: float
    efficiency: float
    epoch: float
    run: float
    limits: tuple[str, ...]

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan(job: Job, devices: int) -> Plan:
    """What a run costs on so many devices.

    Raises:
        UsageError: less than one device.
    """
    if devices < 1:
        raise UsageError(f"devices is {devices}, but must be at least 1")
    batch = job.batch_size or (job.batch_per_device or 1) * devices
    compute, communication, exposed = _times(job, devices, batch)
    seconds = compute + exposed
    alone = sum(_times(job, 1, batch if job.batch_size else batch // devices)[::2])
    efficiency = alone / (seconds * devices) if job.batch_size else alone / seconds
    steps = math.ceil(job.images / batch)  # the last, shorter batch is trained on too
    memory = memory_parts(job, devices, batch)
    limits = []
    if batch < SHARE * devices * job.accumulate:
        limits.append(f"less than {SHARE} images for each device" + (" and part" if job.accumulate > 1 else ""))
    if devices > 1 and efficiency < LEAST_EFFICIENCY:
        limits.append(f"efficiency below {LEAST_EFFICIENCY:.0%}")
    if batch > job.images:
        limits.append(f"batch above all {job.images:,.0f} images")
    if batch > job.critical_batch:
        limits.append(f"batch above {job.critical_batch:,}")
    if sum(memory.values()) > job.device.memory:
        limits.append("does not fit into memory")
    return Plan(
        devices, batch, batch / devices, memory, compute, communication, exposed, seconds, batch / seconds, efficiency,
        steps * seconds, job.epochs * steps * seconds, tuple(limits),
    )  # fmt: skip


def memory_parts(job: Job, devices: int, batch: int) -> dict[str, float]:
    """Bytes on one device by part, all of them at once; what kernels and the allocator need besides is not known."""
    step, part = job.step, job.step.kept(devices) if job.shard else 1.0
    weights = (step.weight_bytes - step.buffer_bytes) * part + step.buffer_bytes
    images = _images(job, devices, batch)
    if devices == 1:
        buffers = 0.0
    elif job.shard:  # two units' parameters are gathered, and one's gradient is whole
        buffers = 3.0 * max(gathered(unit, devices) for unit in step.units)
    else:  # gradients are views of the buckets
        buffers = 0.0
    return {
        "weights": weights,
        "gradients": step.gradient_bytes * part,
        "optimizer states": step.optimizer_bytes * part,
        "averages": job.averages * weights,
        "saved activations": step.saved(images),
        "working memory": step.working(images),
        "images": 4.0 * images * math.prod(step.input_size),
        "communication buffers": buffers,
        "runtime": job.device.reserved,
    }


def _images(job: Job, devices: int, batch: int) -> int:
    """The most images that a device computes at once."""
    return max(1, math.ceil(batch / devices / job.accumulate))


def _times(job: Job, devices: int, batch: int) -> tuple[float, float, float]:
    """Seconds of a step: computing, communicating, and the part of that which is not hidden."""
    step, images = job.step, _images(job, devices, batch)
    forward, backward = (compute_seconds(job, part, images) for part in (step.forward, step.backward))
    part = step.kept(devices) if job.shard else 1.0
    update = compute_seconds(job, step.update, 0) * (1.0 if step.turned else part)  # all turn all filters
    update += job.averages * 3 * step.weight_bytes * part / (job.device.bandwidth * job.device.moving)
    compute = job.accumulate * (forward + backward) + update
    if devices == 1:
        return compute, 0.0, 0.0
    size = float(step.gradient_bytes)
    if job.shard:
        # parameters are gathered before each forward and backward pass, gradients scattered after it
        halves = [allreduce_seconds(job, devices, float(gathered(unit, devices))) / 2 for unit in step.units]
        sent = 3 * job.accumulate * sum(halves)
        hidden_by, tail = compute - update, halves[0] + halves[-1]
    else:
        buckets = max(1, math.ceil(size / BUCKET))
        tail = allreduce_seconds(job, devices, size / buckets)
        sent, hidden_by = buckets * tail, backward  # the earlier parts of a step keep their gradients to themselves
    exposed = max(tail, sent - hidden_by)
    if job.shard:  # Muon gathers the gradient of each layer, and waits for it
        waits = sum(allreduce_seconds(job, devices, float(gathered([each], devices))) / 2 for each in step.turned)
        sent += waits
        exposed += waits
    if job.sync_bn:  # sums and squares forward, and their gradients backward: every layer waits for them
        waits = sum(allreduce_seconds(job, devices, 8.0 * channels) for channels in step.norms)
        sent += 2 * job.accumulate * waits
        exposed += 2 * job.accumulate * waits
    return compute, sent, exposed


def compute_seconds(job: Job, operations: Iterable[Operation], images: int) -> float:
    """Seconds of some operations: each takes what its FLOPs or its bytes take, whichever is more, or its start."""
    device = job.device
    rate, bandwidth = device.flops[job.precision] * device.computing, device.bandwidth * device.moving
    return sum(
        max(operation.flops(images) / rate, operation.moved(images) / bandwidth, device.operation)
        for operation in operations
    )


def allreduce_seconds(job: Job, devices: int, size: float) -> float:
    """Seconds to sum `size` bytes over all devices: inside the nodes, between them, and inside again.

    A ring of n sends 2 (n - 1) / n of the bytes in 2 (n - 1) hops, a tree 2 of them in 2 log2(n); the faster is taken.
    A node of g devices sends to the others over as many links, each a g-th of the bytes.
    """
    device, inside = job.device, min(devices, job.node_size)
    nodes = math.ceil(devices / inside)
    return _summed(size, inside, device.inside * device.linking, device.hop[0]) + _summed(
        size / inside, nodes, device.between * device.linking, device.hop[1]
    )


def _summed(size: float, count: int, rate: float, hop: float) -> float:
    if count == 1:
        return 0.0
    ring = 2 * (count - 1) / count * size / rate + 2 * (count - 1) * hop
    tree = 2 * size / rate + 2 * math.ceil(math.log2(count)) * hop
    return min(ring, tree)


def counts_up_to(most: int) -> list[int]:
    """Powers of two, and the number itself.

    >>> counts_up_to(12)
    [1, 2, 4, 8, 12]
    """
    powers = [2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most]
    return sorted({*powers, most})


def stops_scaling(job: Job, largest: int = MOST_DEVICES) -> tuple[int, Plan | None]:
    """The most devices, in powers of two, that still help; and the plan of twice as many, which do not.

    Memory does not count here. None where nothing stops up to `largest`; 0 devices where one is too many already.
    """
    useful = 0
    for devices in counts_up_to(largest):
        found = plan(job, devices)
        if any("memory" not in limit for limit in found.limits):
            return useful, found
        useful = devices
    return useful, None


def what_would_help(job: Job, devices: int, found: Plan) -> Sequence[str]:
    """For a plan that does not fit into memory: changes each of which makes it fit, by the options' names."""
    if sum(found.memory.values()) <= job.device.memory:
        return []
    changes = []

    def fits(**changed: Any) -> bool:  # noqa: ANN401
        other = Job(**{**{name: getattr(job, name) for name in job.__dataclass_fields__}, **changed})
        return sum(memory_parts(other, devices, found.batch).values()) <= job.device.memory

    if not job.shard and devices > 1 and fits(shard=True):
        changes.append("--shard")
    for parts in (2**exponent for exponent in range(1, 21)):
        if SHARE * parts > found.batch_per_device:
            break
        if parts > job.accumulate and fits(accumulate=parts):
            changes.append(f"--accumulate {parts}")
            break
    smaller = found.batch
    while smaller > 1:
        smaller //= 2
        if sum(memory_parts(job, devices, smaller).values()) <= job.device.memory:
            each = max(1, smaller // devices)
            changes.append(f"--batch-size {smaller}" if job.batch_size else f"--batch-per-device {each}")
            break
    return changes
