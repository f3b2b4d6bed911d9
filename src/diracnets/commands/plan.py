"""`diracnets plan`: what a training run costs on any number of devices, on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import FlagCreatePairsOff, Positional

from diracnets.commands.output import note, say, stdout, table
from diracnets.commands.plan_words import (
    COLUMNS,
    counted,
    ending_of,
    in_bytes,
    in_time,
    per_second,
    row_of,
    worth_a_line,
)
from diracnets.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from diracnets.analysis.plan import Job
    from diracnets.analysis.plan import Plan as Planned
    from diracnets.analysis.plan_devices import Device
    from diracnets.training.recipe import Recipe

DATA: dict[str, tuple[float, int, int, str]] = {  # images, their side in training, classes, recipe
    "cifar10": (50_000, 32, 10, "fast-cifar"),
    "cifar100": (50_000, 32, 100, "fast-cifar"),
    "imagenet": (1_281_167, 224, 1000, "paper-imagenet"),
    "imagenet-21k": (14_197_122, 224, 21_841, "paper-imagenet"),
}
DECODED = {128: 296.0, 224: 176.0}  # images a second of one core by their side, see docs/data.md


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan a training run on paper: memory, time and communication, and where more devices stop helping.

    Nothing is trained and no data is needed. The model and its errors are in docs/scaling.md."""

    model: Positional[str]
    """The network, by name."""
    device: str = "h100"
    """One of a100, h100, h200, b200, l40s, rtx3090, rtx4090; or cpu with --measure, or with --teraflops and
    --bandwidth."""
    devices: int = 8
    """How many. The table has powers of two around it."""
    data: str = "imagenet"
    """One of cifar10, cifar100, imagenet or imagenet-21k; for other sets of images, see --images and --image-size."""
    images: float | None = None
    """Training images, such as 5e9. None: as many as the data has."""
    image_size: int | None = None
    """Side of the images in pixels. None: the data's."""
    classes: int | None = None
    """Classes. None: the data's."""
    recipe: str | None = None
    """Decides epochs, batch size, optimizer, averages and precision. None: one that suits the data."""
    epochs: int | None = None
    """Passes over the images. None: the recipe's."""
    batch_size: int | None = None
    """Images per step, of all devices together. None: the recipe's."""
    batch_per_device: int | None = None
    """Images per step of each device, so that the batch grows with the devices."""
    precision: str | None = None
    """One of float32, bfloat16 or float16. None: the recipe's; for auto, bfloat16, and float32 on a cpu."""
    node_size: int = 8
    """Devices of a node."""
    shard: FlagCreatePairsOff[bool] = False
    """Plan for FSDP2 (`fully_shard` of each block) in place of DDP."""
    accumulate: int | None = None
    """Parts in which each step's gradient is computed. None: the recipe's."""
    sync_bn: bool | None = None
    """Normalize with the statistics of all devices. None: as the recipe says."""
    critical_batch: int = 8192
    """Images per step above which a plan is said to have stopped scaling. 8,192 is where accuracy on ImageNet begins to
    fall in Goyal et al. 2017; other data have other numbers."""
    decoded: float | None = None
    """Images that one processor core decodes per second. None: 296 up to 128 pixels, else 176 (docs/data.md)."""
    measure: FlagCreatePairsOff[bool] = False
    """With --device cpu: measure this processor, for some seconds."""
    teraflops: float | None = None
    """With --device cpu: its float32 rate in TFLOP/s."""
    bandwidth: float | None = None
    """With --device cpu: its memory bandwidth in GB/s."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON only."""

    examples: ClassVar[Sequence[str]] = (
        "diracnet-18 --devices 64",
        "diracnet-34 --device rtx4090 --data cifar10 --devices 1",
    )
    groups: ClassVar[Mapping[str, str]] = {
        "Network and images": "model data images image_size classes",
        "Training": "recipe epochs batch_size batch_per_device accumulate precision sync_bn critical_batch",
        "Devices": "device devices node_size shard decoded measure teraflops bandwidth",
    }
    """The options by the titles under which --help shows them."""

    def execute(self) -> None:
        """Trace the network, and print the plan."""
        from diracnets.analysis.plan import counts_up_to, plan, stops_scaling, what_would_help

        job, multiply_adds, notes = self._job()
        chosen = plan(job, self.devices)
        largest = max(self.devices, 4096)
        rows = [plan(job, count) for count in sorted({*counts_up_to(largest), self.devices})]
        useful, stop = stops_scaling(job)
        helps = what_would_help(job, self.devices, chosen)
        size = job.step.input_size[1]
        rate = DECODED[128 if size <= 128 else 224] if self.decoded is None else self.decoded
        cores = 0 if self._in_memory else math.ceil(chosen.images_per_second / rate)
        ending = ending_of(useful, stop)
        if self.json:
            data = {
                "model": self.model,
                "parameters": job.step.parameters,
                "multiply_adds": multiply_adds,
                "images": job.images,
                "image_size": size,
                "epochs": job.epochs,
                "precision": job.precision,
                "device": _device_data(job.device),
                "plan": chosen.to_data(),
                "decoding_cores": cores,
                "what_would_help": list(helps),
                "scales_to": useful,
                "stops_because": [] if stop is None else list(stop.limits),
                "table": [row.to_data() for row in rows],
                "notes": notes,
            }
            print(json.dumps(data, indent=2))
            return
        console = stdout()
        for name, value in self._facts(job, multiply_adds, chosen, cores, rate):
            say(f"{name:<16} {value}")
        console.print()
        parts = [[name, in_bytes(count)] for name, count in chosen.memory.items() if count]
        console.print(table(["memory of a device", ""], [*parts, ["sum", in_bytes(sum(chosen.memory.values()))]]))
        if any("memory" in limit for limit in chosen.limits):
            help_ = f"; what would help: {', or '.join(helps)}" if helps else "; no option of this command would help"
            say(f"This is more than the {in_bytes(job.device.memory)} of the device{help_}.")
        console.print()
        console.print(table(COLUMNS, map(row_of, worth_a_line(rows, self.devices))))
        console.print()
        for text in (ending, *notes):
            say(text)

    @property
    def _in_memory(self) -> bool:
        return self.data.startswith("cifar") and self.images is None

    def _recipe(self) -> Recipe:
        from diracnets.training.recipe import Recipe

        if self.data not in DATA:
            hint = did_you_mean(self.data, DATA, f"there are {', '.join(DATA)}.")
            others = "For other images leave out --data, and give --images, --image-size and --classes"
            raise UsageError(f"the size of --data {self.data} is not known: {hint} {others}")
        given = {
            name: getattr(self, name)
            for name in ("epochs", "batch_size", "accumulate", "sync_bn", "precision")
            if getattr(self, name) is not None
        }
        recipe = Recipe.load(self.recipe or DATA[self.data][3])
        if self.epochs is not None and self.epochs < max(recipe.optimization.milestones, default=0):
            given |= {"milestones": ()}
        return recipe.replaced(**given)

    def _device(self) -> Device:
        from diracnets.analysis.plan_devices import given_cpu, known_device, measured_cpu

        given = (self.teraflops, self.bandwidth)
        if self.device != "cpu":
            if self.measure or given != (None, None):
                raise UsageError("--measure, --teraflops and --bandwidth are for --device cpu")
            return known_device(self.device)
        if self.measure and given == (None, None):
            note("measuring this processor")
            return measured_cpu()
        if self.measure or self.teraflops is None or self.bandwidth is None:
            raise UsageError("for --device cpu give --measure, or --teraflops and --bandwidth")
        return given_cpu(self.teraflops, self.bandwidth)

    def _job(self) -> tuple[Job, int, list[str]]:
        """The run to plan, the MACs of one image, and what is not counted."""
        from diracnets.analysis.plan import Job
        from diracnets.analysis.plan_step import traced_step
        from diracnets.evaluation.info import describe
        from diracnets.models.build import on_meta

        if self.batch_size is not None and self.batch_per_device is not None:
            raise UsageError("give --batch-size or --batch-per-device, not both")
        for name in ("images", "image_size", "classes", "decoded"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} is {value:g}, but must be a number from 1")
        recipe = self._recipe()
        device = self._device()
        optimization, precision = recipe.optimization, recipe.runtime.precision
        if precision == "auto":
            precision = "float32" if device.name == "cpu" else "bfloat16"
        count, side, classes, _ = DATA[self.data]
        arguments: dict[str, Any] = {
            "name": self.model,
            "num_classes": classes if self.classes is None else self.classes,
            "image_size": side if self.image_size is None else self.image_size,
        }
        notes = ["Evaluation, saving and reading images are not counted."]
        if recipe.data.progressive_size is not None:
            notes.append("The recipe's smaller images in the first part of the run are not counted: it takes less.")
        averaged = bool(optimization.ema_decay or optimization.swa_fraction)
        job = Job(
            step=traced_step(on_meta(arguments), optimization, precision),
            device=device,
            images=count if self.images is None else self.images,
            epochs=optimization.epochs,
            batch_size=None if self.batch_per_device is not None else optimization.batch_size,
            batch_per_device=self.batch_per_device,
            precision=precision,
            node_size=self.node_size,
            shard=self.shard,
            accumulate=optimization.accumulate,
            sync_bn=optimization.sync_bn,
            averages=int(averaged),
            critical_batch=self.critical_batch,
        )
        return job, describe(on_meta(arguments)).multiply_adds, notes

    def _facts(self, job: Job, multiply_adds: int, chosen: Planned, cores: int, rate: float) -> list[tuple[str, str]]:
        device, ways = job.device, "FSDP2" if job.shard else "DDP"
        peak = device.flops[job.precision]
        gradient = f"{ways}, gradient of {in_bytes(job.step.gradient_bytes)}, {in_time(chosen.communication)} a step"
        hidden = 1 - chosen.exposed / chosen.communication if chosen.communication else 1.0
        feeding = (
            "images lie in the device's memory"
            if self._in_memory
            else f"{counted(cores, 'core')} at {rate:,.0f} a second"
        )
        return [
            ("network", f"{self.model}, {job.step.parameters:,} parameters, {multiply_adds:,} MACs per image"),
            (
                "run",
                f"{job.images:,.0f} images of {job.step.input_size[1]} pixels, {counted(job.epochs, 'epoch')}, "
                f"{job.precision}",
            ),
            (
                "device",
                f"{device.name}: {peak / 1e12:,.2f} TFLOP/s, {device.bandwidth / 1e9:,.1f} GB/s ({device.source})",
            ),
            ("efficiency", f"{device.computing:.0%} of FLOP/s, {device.moving:.0%} of GB/s ({device.efficiency})"),
            ("step", f"{chosen.batch:,} images on {counted(chosen.devices, 'device')} in {in_time(chosen.step)}"),
            ("communication", "none" if chosen.devices == 1 else f"{gradient}, {hidden:.0%} of it hidden"),
            ("time", f"{in_time(chosen.epoch)} per epoch, {in_time(chosen.run)} per run"),
            ("decoding", f"{per_second(chosen.images_per_second)} images per second: {feeding}"),
        ]


def _device_data(device: Device) -> dict[str, Any]:
    """Plain JSON values; None for a memory that is not known."""
    return {name: None if value == math.inf else value for name, value in asdict(device).items()}
