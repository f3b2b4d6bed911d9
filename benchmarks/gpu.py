"""What this package does on one GPU, in stages of at most nine minutes each.

    python benchmarks/gpu.py --data-dir data --airbench airbench94_muon.py      # all stages, in order
    python benchmarks/gpu.py --data-dir data --stage 2 --set muon_lr=0.03       # one stage, with another recipe
    python benchmarks/gpu.py --toy                                              # every stage in seconds, on a CPU

| stage | what it measures | aim |
| 1  | time of a training step relative to the plain network's, eager and compiled; images/s; the loader | 1.02, 1.01 |
| 2  | DiracNet-28-10 on CIFAR-10, for as many epochs as fit into the time | error of 4.0% |
| 3  | the same on CIFAR-100 | 19.25% |
| 3b | Wide ResNet-28-10 on CIFAR-100, with the recipe and the epochs of stage 3 | |
| 4  | time to 94% and 96% on CIFAR-10: the sprint family, and programs of cifar10-airbench, run unchanged | theirs |
| 5  | DiracNet-18 on Imagenette | |
| 6  | DiracNet-28-1, two initializations, and its residual twin on CIFAR-10, with and without a teacher | 0.2 apart |

It needs what the package needs for training, and installs nothing: PYTHONPATH=src is enough. `--data-dir` holds the
files of CIFAR as published (`cifar-10-batches-py`, `cifar-100-python`) and `imagenette/{train,val}/<class>/*`.

Each stage runs in a process of its own. Results go into gpu.json, in the folders `--work` and `--out` (by default the
folder that the variable OUT names), as soon as they are there. The same command again skips stages that are finished. A
stage that was stopped goes on from its last checkpoint or measurement. A stage with `--set` counts as another stage.
Choose settings on images held out of the training set: `--set select_on=5000 ...`.

The number of epochs follows from the measured speed of a few steps. A stage that takes longer all the same is stopped
shortly before its end, and keeps what it has.

Networks train in bfloat16 autocast, channels_last, with cudnn.benchmark. Times in stage 4 are of training alone, as
cifar10-airbench measures them: without evaluation, and after a warm-up. Both are measured in the same call.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch


def toml_text(table: Mapping[str, Any], name: str = "") -> str:
    """A recipe's table as `tomli_w.dumps` writes it, but for the layout."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    inner = {f"{name}.{key}".strip("."): value for key, value in table.items() if isinstance(value, Mapping)}
    return "\n".join([f"[{name}]" if name else "", *lines, *(toml_text(value, key) for key, value in inner.items())])


if find_spec("tomli_w") is None:  # machines with a GPU have torch, but may lack this small library
    sys.modules["tomli_w"] = types.ModuleType("tomli_w")
    sys.modules["tomli_w"].dumps = toml_text

import airbench  # noqa: E402
from timing import Work, interleaved  # noqa: E402

from diracnets import Init, Recipe, evaluate, load, load_data, save, train  # noqa: E402
from diracnets.data.augmentation import Augmentation  # noqa: E402
from diracnets.data.folder import FolderSource, find_images  # noqa: E402
from diracnets.data.images import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, ImageData  # noqa: E402
from diracnets.data.memory import MemoryImages  # noqa: E402
from diracnets.errors import DiracNetsError  # noqa: E402
from diracnets.models.build import build_model  # noqa: E402
from diracnets.runtime.device import choose_device, synchronize  # noqa: E402
from diracnets.runtime.environment import circumstances  # noqa: E402
from diracnets.training.finish import Trained  # noqa: E402
from diracnets.training.interruption import Interrupted  # noqa: E402
from diracnets.training.run import SAVE_SHARE  # noqa: E402

SPARE = 15.0  # seconds before its end at which a stage is asked to stop
GRACE = 10.0  # seconds that it then has
STOPPED = 3  # exit status of a stage that was stopped
EVALUATIONS = 8  # of each long training run
TRIAL_STEPS = 24  # of an epoch whose speed tells how many epochs there is time for
CAUTION = 0.9  # the part of the time that is planned with: a device slows down as it gets warm
TWIN_SEEDS = 3  # of stage 6
TURN = 3.2  # muon_lr times the root of the number of steps: 3.0 in fast-cifar, 3.6 in sprint-cifar


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    precision: str = "bfloat16"
    compiler: str = "inductor"
    networks: tuple[tuple[str, tuple[int, ...]], ...] = (("28-10", (128, 512)), ("34-2", (128, 1024)))
    """Of stage 1, with their batch sizes; the last one is compiled too."""
    rounds: int = 15
    round_seconds: float = 0.2
    loaded: int = 50_000
    size: str = "28-10"
    batch: int = 512
    most_epochs: int = 200
    sprints: tuple[tuple[str, int], ...] = (("", 9), ("", 12), ("-1.5", 9), ("-2", 40), ("-3", 40), ("-4", 30))
    """Widths of sprint, and epochs: three that may reach 94%, three that may reach 96%."""
    teacher: str = "wrn-16-4"
    """Of stage 6, and the networks that it teaches."""
    twins: tuple[str, str] = ("diracnet-28-1", "wrn-28-1")
    twin_batch: int = 256
    twin_epochs: int = 56
    width: float = 1.0
    side: int = 160
    """Of photographs."""
    first_side: int = 128
    """Of photographs in the first part of a run."""
    photograph_epochs: tuple[int, int] = (16, 150)


TOY = Scale(
    precision="float32",
    compiler="eager",
    networks=(("10-0.25", (2, 4)),),
    rounds=3,
    round_seconds=0.0,
    loaded=64,
    size="10-0.25",
    batch=16,
    most_epochs=2,
    sprints=(("-0.125", 1), ("-0.125", 2)),
    teacher="wrn-10-0.5",
    twins=("diracnet-10-0.25", "wrn-10-0.25"),
    twin_batch=16,
    twin_epochs=1,
    width=0.0625,
    side=40,
    first_side=32,
    photograph_epochs=(1, 2),
)


class Stage:
    """One stage: its place in gpu.json, and its time.

    Args:
        name: "1" to "6".
        options: of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.options, self.scale = options, TOY if options.toy else Scale()
        self.key = key_of(name, options)
        self.device = choose_device(options.device)
        self.end = (options.until or time.time() + 60 * options.minutes) - SPARE
        before = results(options).get(self.key, {})
        self.rows: list[dict[str, Any]] = before.get("rows", [])
        self.facts = {key: value for key, value in before.items() if key not in ("stopped", "failed")}
        self.facts |= {"toy": options.toy, "circumstances": surroundings(self.device), "rows": self.rows}

    def left(self) -> float:
        """Seconds until the stage should be over."""
        return self.end - time.time()

    def put(self, **facts: object) -> None:
        """Write these facts, and all rows, to gpu.json."""
        self.facts.update(facts)
        write_results(self.options, {**results(self.options), self.key: self.facts})

    def add(self, **row: object) -> None:
        """Write and print a row."""
        self.rows.append(row)
        self.put()
        show(row)

    def has(self, **row: object) -> bool:
        """Whether there is a row with these values."""
        return any(row.items() <= {key: each.get(key) for key in row}.items() for each in self.rows)


def key_of(stage: str, options: argparse.Namespace) -> str:
    """What gpu.json calls a stage: its number, and the settings that its recipe was given."""
    return " ".join([stage, *sorted(f"{name}={value}" for name, value in options.set)])


def results(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What stages have found so far, by key."""
    path = options.work / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_results(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Write gpu.json, whole or not at all, to the folder that is kept and to that of results."""
    for folder in {options.work.resolve(), options.out.resolve()}:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".gpu.json"
        part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        part.replace(folder / "gpu.json")


def show(row: Mapping[str, object]) -> None:
    """Print a row, but for its longer values."""
    brief = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
    cells = (f"{key} {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in brief.items())
    print("  ".join(cells), flush=True)


def surroundings(device: torch.device) -> dict[str, Any]:
    """The circumstances, with those that matter on a GPU."""
    facts = {**circumstances(device), "cudnn_benchmark": torch.backends.cudnn.benchmark}
    if device.type == "cuda":
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }
    return facts


# Stage 1: time of a training step


def step_times(stage: Stage) -> bool:
    """The Dirac parameterization against the plain network, in rounds that take turns; and the loader alone."""
    scale = stage.scale
    for name, count, side in (("cifar", scale.loaded, 32), ("photographs", scale.loaded // 8, scale.side)):
        if not stage.has(loader=name):
            recipe = Recipe.load("fast-cifar" if name == "cifar" else "fast-imagenet")
            speed = loader_speed(noise(stage, count, side, 10), recipe.data.augment, scale.batch, stage.device)
            stage.add(loader=name, batch=scale.batch, images_per_second=round(speed))
    for compiled in (False, True):
        for size, batches in scale.networks:
            for batch in batches[-1:] if compiled else batches:
                if stage.has(network=size, batch=batch, compiled=compiled):
                    continue
                if stage.left() < 0:
                    return False
                try:
                    row = compared(stage, size, batch, compiled)
                except Exception as failed:  # of a compiler, or for lack of memory: the other networks are measured
                    row = {"failed": f"{type(failed).__name__}: {failed}"[:1000]}
                stage.add(network=size, batch=batch, compiled=compiled, **row)
    return True


def compared(stage: Stage, size: str, batch: int, compiled: bool) -> dict[str, Any]:
    """Times of a step of both networks, and the quotients of each round."""
    scale, device = stage.scale, stage.device
    torch.manual_seed(0)
    torch.compiler.reset()  # after another batch size had been compiled, this one would become a variable
    works: dict[str, Work] = {}
    for name, family in (("plain", "plain"), ("dirac", "diracnet")):
        works[name] = Work(build_model(f"{family}-{size}"), batch, precision=scale.precision, device=device)
        if compiled:
            works[name].run = torch.compile(works[name].net, backend=scale.compiler, dynamic=False)
    first = interleaved({name: work.step for name, work in works.items()}, 3, device)  # compiles and chooses kernels
    steps = max(1, math.ceil(scale.round_seconds / statistics.median(first["plain"])))

    def several(work: Work) -> None:
        for _ in range(steps):  # without waiting in between, as in training
            work.step()

    times = interleaved({name: partial(several, work) for name, work in works.items()}, scale.rounds, device)
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(times["dirac"], times["plain"], strict=True)], n=4)
    plain, dirac = (statistics.median(times[name]) / steps for name in ("plain", "dirac"))
    return {
        "ratio": round(ratio, 4),
        "ratio_low": round(low, 4),
        "ratio_high": round(high, 4),
        "plain_ms": round(1e3 * plain, 3),
        "dirac_ms": round(1e3 * dirac, 3),
        "dirac_images_per_second": round(batch / dirac),
        "rounds": scale.rounds,
        "steps_per_round": steps,
    }


def loader_speed(images: MemoryImages, augment: Augmentation, batch: int, device: torch.device) -> float:
    """Images a second of whole epochs: the median of four, after one to warm up."""
    speeds = []
    for epoch in range(5):
        synchronize(device)
        begun = time.perf_counter()
        for _ in images.batches(batch, epoch=epoch, augment=augment):
            pass
        synchronize(device)
        speeds.append(len(images) / (time.perf_counter() - begun))
    return statistics.median(speeds[1:])


# Stages 2, 3, 3b and 5: as many epochs as there is time for; stage 6: twins


def wide_network(stage: Stage, data: str, family: str, as_in: str | None = None) -> bool:
    """A network ten times as wide on CIFAR-10 or CIFAR-100."""
    images, most = images_of(stage, data), stage.scale.most_epochs
    if as_in is not None:  # the epochs of the network that it is compared with
        rows = results(stage.options).get(key_of(as_in, stage.options), {}).get("rows")
        most = min(most, rows[-1]["epochs"]) if rows else most
    easy = data == "cifar10"

    def recipe(epochs: int) -> Recipe:
        return with_muon(
            stage,
            epochs,
            len(images.train),
            model=f"{family}-{stage.scale.size}",
            batch_size=stage.scale.batch,
            lr=0.3,
            classifier_lr=0.05 if easy else 0.1,
            cutout=12 if easy else 8,
        )

    trained_in_time(stage, f"{family}-{data}", images, recipe, most)
    return True


def photographs(stage: Stage) -> bool:
    """DiracNet-18 on Imagenette: by the recipe of the package, and for longer with Muon."""
    images, scale = images_of(stage, "imagenette"), stage.scale
    common = {"model": "diracnet-18", "width": scale.width, "image_size": scale.side}
    augment = Augmentation(crop="resized", min_scale=0.25, flip="alternating", cutout=scale.side // 4)

    def shipped(epochs: int) -> Recipe:
        recipe = Recipe.load("fast-imagenet").replaced(**common, precision=scale.precision, epochs=epochs)
        return recipe.replaced(eval_every=math.ceil(epochs / EVALUATIONS))

    def muon(epochs: int) -> Recipe:
        return with_muon(stage, epochs, len(images.train), **common, augment=augment, progressive_size=scale.first_side)

    recipes = {"fast-imagenet": shipped, "muon": muon}
    for (name, recipe), most in zip(recipes.items(), scale.photograph_epochs, strict=True):
        if not stage.has(run=name):
            trained_in_time(stage, name, images, recipe, most)
    return True


def twins(stage: Stage) -> bool:
    """A chain, of two initializations, and a residual network of as many weights, alone and with the same teacher."""
    images, scale = images_of(stage, "cifar10"), stage.scale

    def recipe(model: str, seed: int = 0, **settings: Any) -> Recipe:  # noqa: ANN401
        common = {"batch_size": scale.twin_batch, "lr": 0.3}
        return with_muon(stage, scale.twin_epochs, len(images.train), model=model, seed=seed, **common, **settings)

    chain, twin = scale.twins
    shapes = {chain: partial(recipe, chain), twin: partial(recipe, twin)}
    shapes[f"{chain}-carriers"] = partial(recipe, chain, init=Init("carriers"))
    if not stage.has(run="teacher"):
        trained_to_end(stage, "teacher", images, partial(recipe, scale.teacher))
    for seed in range(TWIN_SEEDS):
        for network, shape in shapes.items():
            for teacher in (None, run_folder(stage, "teacher")):
                name = f"{network}-seed-{seed}{'' if teacher is None else '-taught'}"
                if not stage.has(run=name):
                    trained_to_end(stage, name, images, partial(shape, seed=seed), teacher, keep=seed == 0)
    return True


def with_muon(stage: Stage, epochs: int, images: int, **settings: Any) -> Recipe:  # noqa: ANN401
    """The fast recipe, with the angle of a step that suits their number, and with the settings of `--set`."""
    recipe = Recipe.load("fast-cifar").replaced(**settings, precision=stage.scale.precision, epochs=epochs)
    steps = epochs * math.ceil(images / recipe.optimization.batch_size)
    recipe = recipe.replaced(muon_lr=round(TURN / math.sqrt(steps), 4), eval_every=math.ceil(epochs / EVALUATIONS))
    return recipe.replaced(**dict(stage.options.set))


def trained_in_time(stage: Stage, name: str, data: ImageData, shape: Callable[[int], Recipe], most: int) -> None:
    """Train by `shape(epochs)`, for as many epochs as there is time for and at most `most`, and add a row."""
    trained_to_end(stage, name, data, lambda: shape(epochs_in_time(stage, data, shape, most)))


def trained_to_end(
    stage: Stage,
    name: str,
    data: ImageData,
    shape: Callable[[], Recipe],
    teacher: Path | None = None,
    keep: bool = True,
) -> None:
    """Train by the recipe that `shape` makes, and add a row; `keep` the weights.

    A run that was stopped goes on in its folder, by the recipe that it began with.
    """
    folder = run_folder(stage, name)
    resume = (folder / "last.pt").exists()
    if resume:
        recipe = Recipe.load(folder / "recipe.toml")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        recipe = shape()
    epochs = recipe.optimization.epochs
    print(f"{name}: {'resuming ' * resume}{epochs} epochs, {int(stage.left())} s left", flush=True)
    device = str(stage.device)
    trained = train(
        recipe, run=folder, data=data, device=device, resume=resume, teacher=teacher, on_epoch=show, quiet=True
    )
    data = as_trained(recipe, data)
    stage.add(
        run=name,
        network=recipe.model.name,
        data=data.name,
        train_images=len(data.train),
        error_of="test images" if data.test is None else "images held out of the training set",
        epochs=epochs,
        error=round(100 * (1 - trained.accuracy), 2),
        error_views=round(100 * (1 - evaluate(trained.net, data.val, views="mirror-shift").top1), 2),
        seconds=round(sum(row["seconds"] for row in trained.history), 1),
        images_per_second=round(statistics.median(row["images_per_second"] for row in trained.history)),
        parameters=parameters(trained),
        memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2) if stage.device.type == "cuda" else None,
        weights=kept_weights(stage, trained, f"{stage.key.split()[0]}-{name}") if keep else None,
        recipe=recipe.table(),
        history=trained.history,
    )


def run_folder(stage: Stage, name: str) -> Path:
    """Where a run of this stage is kept."""
    return stage.options.work / "runs" / f"{stage.key} {name}".replace(" ", "_").replace("=", "-")


def as_trained(recipe: Recipe, data: ImageData) -> ImageData:
    """The images that `train` takes, of which some may be held out or left out."""
    if recipe.data.select_on is not None:
        data = data.selecting_on(recipe.data.select_on)
    return data if recipe.data.num_train is None else data.with_fewer(recipe.data.num_train)


def parameters(trained: Trained) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in trained.net.parameters())


def epochs_in_time(stage: Stage, data: ImageData, shape: Callable[[int], Recipe], most: int) -> int:
    """How many epochs there is time for, by the speed of a few steps on small and on whole images."""
    folder = stage.options.work / "runs" / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = shape(most)
    trial = recipe.replaced(epochs=4, eval_every=4, select_on=None, num_train=None)
    small_share = 0.0
    if recipe.data.progressive_size is not None:
        small_share = recipe.data.progressive_fraction
        trial = trial.replaced(progressive_fraction=0.5)  # the first two epochs, of which the second counts
    few = replace(data, train=data.with_fewer(min(len(data.train), TRIAL_STEPS * recipe.optimization.batch_size)).train)
    begun = time.perf_counter()
    trained = train(trial, run=folder, data=few, device=str(stage.device), quiet=True)
    once = time.perf_counter() - begun - sum(row["seconds"] for row in trained.history)  # start, checkpoints, folding
    begun = time.perf_counter()
    evaluate(trained.net, data.val)
    evaluation = time.perf_counter() - begun
    shutil.rmtree(folder)
    count = len(as_trained(recipe, data).train)
    small, whole = (count / trained.history[index]["images_per_second"] for index in (1, 3))
    each = (small_share * small + (1 - small_share) * whole) / (1 - SAVE_SHARE)
    # Evaluations at the end: of the test images, and of six views of each image.
    time_left = CAUTION * stage.left() - once - (EVALUATIONS + 7) * evaluation
    show({"seconds of an epoch": each, "of an evaluation": evaluation, "of all else": once, "left": stage.left()})
    return max(1, min(most, int(time_left / each)))


def kept_weights(stage: Stage, trained: Trained, name: str) -> str | None:
    """The name of a model file in `--out`, in float16, where the network folds to a chain."""
    if trained.model_file is None:
        return None
    chain = load(trained.model_file)
    stage.options.out.mkdir(parents=True, exist_ok=True)
    save(chain.half(), stage.options.out / f"{name}.safetensors", card=chain.card)
    return f"{name}.safetensors"


# Stage 4: time to an accuracy


def sprints(stage: Stage) -> bool:
    """Programs of cifar10-airbench, and networks of the sprint family, several times each."""
    images = images_of(stage, "cifar10")
    complete = others(stage, images)
    warm: set[str] = set()
    for width, epochs in stage.scale.sprints:
        for seed in range(stage.options.seeds):
            recipe = sprint_recipe(stage, f"diracnet-sprint{width}", epochs, seed)
            name = recipe.model.name
            if stage.has(network=name, epochs=recipe.optimization.epochs, seed=seed):
                continue
            if stage.left() < 0:
                return False
            if name not in warm:
                warm.add(name)
                sprint(stage, images, recipe.replaced(epochs=2, eval_every=2))  # to warm up; it does not count
            trained = sprint(stage, images, recipe)
            best = max((row["accuracy"] for row in stage.rows if "recipe" in row), default=-1.0)
            if trained.accuracy > best:
                stage.facts["weights"] = kept_weights(stage, trained, "4-best-sprint")
            stage.add(
                network=name,
                epochs=recipe.optimization.epochs,
                seed=seed,
                seconds=round(sum(row["seconds"] for row in trained.history), 3),  # BatchNorm statistics included
                accuracy=round(trained.accuracy, 4),
                accuracy_views=round(
                    evaluate(trained.net, as_trained(recipe, images).val, views="mirror-shift").top1, 4
                ),
                parameters=parameters(trained),
                recipe=recipe.table(),
            )
    stage.put(summary=summarized(stage.rows))
    for row in stage.facts["summary"]:
        show(row)
    return complete


def sprint_recipe(stage: Stage, model: str, epochs: int, seed: int) -> Recipe:
    """The package's recipe, with the angle for that many steps, and more augmentation for many epochs."""
    recipe = Recipe.load("sprint-cifar")
    if stage.options.toy:
        recipe = recipe.replaced(batch_size=stage.scale.batch)
    if epochs >= 20:
        recipe = recipe.replaced(pad=4, cutout=12)
    steps = epochs * math.ceil(50_000 / recipe.optimization.batch_size)
    recipe = recipe.replaced(model=model, epochs=epochs, eval_every=epochs, seed=seed, precision=stage.scale.precision)
    return recipe.replaced(muon_lr=round(3.6 / math.sqrt(steps), 4)).replaced(**dict(stage.options.set))


def sprint(stage: Stage, images: ImageData, recipe: Recipe) -> Trained:
    """Train once."""
    folder = stage.options.work / "runs" / "sprint"
    shutil.rmtree(folder, ignore_errors=True)
    return train(recipe, run=folder, data=images, device=str(stage.device), quiet=True)


def others(stage: Stage, images: ImageData) -> bool:
    """Run the programs of cifar10-airbench unchanged; say plainly where there is none."""
    if not stage.options.airbench:
        stage.put(airbench="not given: --airbench FILE runs that program on the same images in the same call")
        print(stage.facts["airbench"], flush=True)
    complete = True
    for program in stage.options.airbench:
        wanted = stage.options.seeds - sum(row["network"] == program.name for row in stage.rows)
        if wanted > 0:
            rows, problem = airbench.unchanged(program, images, wanted, seconds=max(1.0, 0.6 * stage.left()))
            for row in rows:
                stage.add(**row)
            complete = complete and len(rows) == wanted
            if problem:
                stage.put(**{f"output of {program.name}": problem})
                print(problem, flush=True)
    return complete


def summarized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds of each network, the fastest first."""
    lines = []
    for network, epochs in dict.fromkeys((row["network"], row["epochs"]) for row in rows):
        alike = [row for row in rows if (row["network"], row["epochs"]) == (network, epochs)]
        line: dict[str, Any] = {"network": network, "epochs": epochs, "runs": len(alike)}
        for name in ("seconds", "accuracy", "accuracy_views"):
            values = [row[name] for row in alike]
            line[name] = round(statistics.fmean(values), 5)
            line[f"{name}_spread"] = round(statistics.stdev(values), 5) if len(values) > 1 else None
        lines.append(line)
    return sorted(lines, key=lambda line: line["seconds"])


# Images


def images_of(stage: Stage, name: str) -> ImageData:
    """CIFAR-10, CIFAR-100 or Imagenette as one tensor on the device; a toy without data gets noise."""
    folder: Path | None = stage.options.data_dir
    if stage.options.toy and folder is None:
        classes, side = (100 if name == "cifar100" else 10), (stage.scale.side if name == "imagenette" else 32)
        train_set, val_set = (noise(stage, count, side, classes) for count in (96, 32))
        names = tuple(map(str, range(classes)))
        return ImageData(name, names, (3, side, side), CIFAR_MEAN, CIFAR_STD, train_set, val_set)
    if name != "imagenette":
        return load_data(name, data_dir=folder, device=stage.device, download=False)
    size = (3, stage.scale.side, stage.scale.side)
    listings = find_images((folder or Path("data")) / name)
    parts = []
    for part, listing in zip(("train", "val"), listings, strict=True):
        source = FolderSource(listing.files)
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            decoded = list(pool.map(partial(source.fitted, size=size), range(len(listing.files))))
        pixels, labels = torch.from_numpy(np.stack(decoded)), torch.tensor(listing.labels)
        facts = {"name": f"{name} {part}", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        parts.append(MemoryImages(pixels, labels, **facts, device=stage.device))
    return ImageData(name, listings[0].classes, size, IMAGENET_MEAN, IMAGENET_STD, *parts)


def noise(stage: Stage, count: int, side: int, classes: int) -> MemoryImages:
    """Noise, the brighter the larger the label is."""
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(100, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    pixels += (15 * (labels % 10)).to(torch.uint8).view(-1, 1, 1, 1)
    return MemoryImages(pixels, labels, name="noise", mean=CIFAR_MEAN, std=CIFAR_STD, device=stage.device)


# The command


STAGES: dict[str, Callable[[Stage], bool]] = {
    "1": step_times,
    "2": partial(wide_network, data="cifar10", family="diracnet"),
    "3": partial(wide_network, data="cifar100", family="diracnet"),
    "3b": partial(wide_network, data="cifar100", family="wrn", as_in="3"),
    "4": sprints,
    "5": photographs,
    "6": twins,
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--data-dir", type=existing, help="folder of the image sets; by default data")
    parser.add_argument("--work", type=Path, help="what is kept between calls; by default in the temporary folder")
    parser.add_argument("--out", type=Path, help="where results go; by default $OUT, or the folder --work")
    parser.add_argument("--minutes", type=float, default=9.0, help="for each stage")
    parser.add_argument(
        "--set", nargs="+", type=setting, default=[], metavar="NAME=VALUE", help="of the recipes of stages 2 to 6"
    )
    parser.add_argument("--airbench", nargs="+", type=existing, default=[], help="programs of cifar10-airbench")
    parser.add_argument("--seeds", type=int, default=5, help="training runs of each network of stage 4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--toy", action="store_true", help="tiny networks, few images: to try the program")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of a process that runs one stage
    options = parser.parse_args(words)
    if options.minutes < 1:
        parser.error(f"--minutes {options.minutes:g} is too short: give at least 1")
    if options.set and "1" in options.stage:
        parser.error("--set changes recipes, and stage 1 has none: name the others with --stage")
    options.work = options.work or Path(tempfile.gettempdir()) / f"diracnets-gpu{'-toy' * options.toy}"
    options.out = options.out or Path(os.environ.get("OUT") or options.work)
    return options


def existing(word: str) -> Path:
    """A path that is there."""
    if not Path(word).exists():
        raise argparse.ArgumentTypeError(f"there is no {word}")
    return Path(word)


def setting(word: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as TOML has it, or a word.

    >>> setting("muon_lr=0.03"), setting("schedule=cosine")
    (('muon_lr', 0.03), ('schedule', 'cosine'))
    """
    name, equals, value = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word} is no NAME=VALUE, such as muon_lr=0.03")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def run(name: str, options: argparse.Namespace) -> int:
    """Run a stage to its end, or until it is stopped; its exit status."""
    torch.backends.cudnn.benchmark = True
    stage = Stage(name, options)
    print(f"stage {stage.key}: {int(stage.left())} s on {stage.facts['circumstances']['device']}", flush=True)
    begun = time.time()
    try:
        finished = STAGES[name](stage)
    except Interrupted as stopped:
        stage.put(stopped=str(stopped))
        print(stopped, flush=True)
        return STOPPED
    except DiracNetsError as failed:  # the images, the settings or the training
        stage.put(failed=str(failed))
        print(failed, flush=True)
        return failed.exit_code
    stage.put(finished=finished, seconds=round(time.time() - begun, 1))
    return 0 if finished else STOPPED


def run_apart(stage: str, options: argparse.Namespace) -> bool:
    """Run one stage in a process of its own, and whether it came to its end."""
    until = time.time() + 60 * options.minutes
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--stage", stage, f"--until={until}"])
    try:
        child.wait(until - SPARE - time.time())
    except subprocess.TimeoutExpired:
        print(f"stage {stage} is asked to stop: its {options.minutes:g} minutes are over", flush=True)
        child.send_signal(signal.SIGTERM)  # training saves its state
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return child.returncode == 0


def main() -> None:
    """Run the stages that are asked for and not finished yet."""
    options = arguments()
    if options.until is not None:
        sys.exit(run(options.stage[0], options))
    write_results(options, results(options))
    unfinished = []
    for stage in options.stage:
        if results(options).get(key_of(stage, options), {}).get("finished"):
            print(f"stage {key_of(stage, options)} was finished before", flush=True)
        elif not run_apart(stage, options):
            unfinished.append(stage)
    if unfinished:
        sys.exit(f"not finished: stage {', '.join(unfinished)}; the same command goes on with what is left")


if __name__ == "__main__":
    main()
