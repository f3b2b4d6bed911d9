"""The stages of gpu.py: what each measures or trains, and how it keeps to its time."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import statistics
import sys
import time
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import packed
import torch
from timing import Work, interleaved
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def toml_text(table: Mapping[str, Any], name: str = "") -> str:
    """What `tomli_w.dumps` gives, in layout not quite: for machines without that small library."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    heading = [f"[{name}]"] if name and lines else []
    tables = {f"{name}.{key}".lstrip("."): value for key, value in table.items() if isinstance(value, Mapping)}
    return "\n".join([*heading, *lines, "", *(toml_text(value, key) for key, value in tables.items())])


if importlib.util.find_spec("tomli_w") is None:
    sys.modules["tomli_w"] = types.ModuleType("tomli_w")
    sys.modules["tomli_w"].dumps = toml_text  # type: ignore[attr-defined]

import airbench  # noqa: E402

from diracnets import Recipe, evaluate, load, save, train  # noqa: E402
from diracnets.data.augmentation import Augmentation  # noqa: E402
from diracnets.data.images import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, ImageData  # noqa: E402
from diracnets.data.memory import MemoryImages  # noqa: E402
from diracnets.errors import DiracNetsError  # noqa: E402
from diracnets.models.build import build_model  # noqa: E402
from diracnets.runtime.device import choose_device, synchronize  # noqa: E402
from diracnets.runtime.environment import circumstances  # noqa: E402
from diracnets.training.interruption import Interrupted  # noqa: E402
from diracnets.training.run import SAVE_SHARE, Trained  # noqa: E402

STOPPED = 3  # exit status of a stage that was asked to stop
EVALUATIONS = 8  # of each long training run
TRIAL_STEPS = 24  # of an epoch whose speed tells how many epochs there is time for
CAUTION = 0.93  # the part of the time that is planned with: a device slows down as it gets warm
TURN = 3.2  # muon_lr times the root of the number of steps: 3.0 in fast-cifar, 3.6 in sprint-cifar
UPLOAD = 15 << 20  # bytes of a file of weights; larger ones are split
MOST_FILES = 3


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    precision: str = "bfloat16"
    compiler: str = "inductor"
    networks: tuple[tuple[str, tuple[int, ...]], ...] = (("28-10", (128, 512)), ("34-2", (128, 1024)))
    rounds: int = 15
    round_seconds: float = 0.2
    loaded: int = 50_000
    size: str = "28-10"
    batch: int = 512
    most_epochs: int = 200
    fast: tuple[tuple[str, int], ...] = (("", 9), ("", 12), ("-1.5", 9))
    """Widths of sprint, and epochs, that may reach 94%."""
    good: tuple[tuple[str, int], ...] = (("-2", 40), ("-3", 40), ("-4", 30))
    """The same for 96%."""
    width: float = 1.0
    side: int = gpu.SIDE
    first_side: int = 128
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
    fast=(("-0.125", 1),),
    good=(("-0.125", 2),),
    width=0.0625,
    side=gpu.TOY_SIDE,
    first_side=32,
    photograph_epochs=(1, 2),
)


class Stage:
    """One stage while it runs: its place in gpu.json, and its time.

    Args:
        name: "1" to "5".
        options: of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options = name, options
        self.key = gpu.key_of(name, options)
        self.scale = TOY if options.toy else Scale()
        self.device = choose_device(options.device)
        self.end = options.until - gpu.SPARE if options.until else time.time() + 60 * options.minutes
        before = gpu.results(options).get(self.key, {})
        self.rows: list[dict[str, Any]] = before.get("rows", [])  # type: ignore[assignment]
        self.facts = {**before, "toy": options.toy, "circumstances": surroundings(self.device), "rows": self.rows}
        self.facts = {name: fact for name, fact in self.facts.items() if name not in ("stopped", "failed")}

    def left(self) -> float:
        """Seconds until the stage should be over."""
        return self.end - time.time()

    def put(self, **facts: object) -> None:
        """Write these facts, and all rows, to gpu.json."""
        self.facts.update(facts)
        gpu.write_results(self.options, {**gpu.results(self.options), self.key: self.facts})

    def add(self, **row: object) -> None:
        """Write and print a row."""
        self.rows.append(row)
        self.put()
        brief = {name: value for name, value in row.items() if not isinstance(value, dict | list)}
        print("  ".join(f"{name} {short(value)}" for name, value in brief.items()), flush=True)

    def has(self, **row: object) -> bool:
        """Whether there is a row with these values."""
        return any(all(each.get(name) == value for name, value in row.items()) for each in self.rows)

    def settings(self) -> dict[str, Any]:
        """What `--set` gave."""
        return dict(setting(word) for word in self.options.set)


def short(value: object) -> object:
    """A number with the digits that a table needs."""
    return f"{value:.4g}" if isinstance(value, float) else value


def setting(word: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as TOML has it, or a word.

    >>> setting("muon_lr=0.03"), setting("schedule=cosine")
    (('muon_lr', 0.03), ('schedule', 'cosine'))
    """
    name, _, value = word.partition("=")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def surroundings(device: torch.device) -> dict[str, Any]:
    """The circumstances, with those that matter on a GPU."""
    facts = circumstances(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": list(torch.cuda.get_device_capability(device)),
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        }
    return {**facts, "cudnn_benchmark": torch.backends.cudnn.benchmark}


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


# Stage 1: time of a training step


def step_times(stage: Stage) -> bool:
    """The Dirac parameterization against the plain network, in rounds that take turns; and the loader alone."""
    scale = stage.scale
    for name, images, augment, batch in loads(stage):
        if not stage.has(loader=name):
            speed = loader_speed(images, augment, batch, stage.device)
            stage.add(loader=name, batch=batch, images_per_second=round(speed))
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
    works: dict[str, Work] = {}
    if compiled:
        torch.compiler.reset()  # what was compiled for another batch would make the batch's size a variable
    for name, family in (("plain", "plain"), ("dirac", "diracnet")):
        works[name] = Work(build_model(f"{family}-{size}"), batch, precision=scale.precision, device=device)  # type: ignore[arg-type]
        if compiled:
            works[name].run = torch.compile(works[name].net, backend=scale.compiler, dynamic=False)
    calls = {name: partial(several, work.step, 1) for name, work in works.items()}
    first = interleaved(calls, 3, device)  # compiles, chooses kernels, fills the memory
    steps = max(1, math.ceil(scale.round_seconds / statistics.median(first["plain"])))  # the device is kept busy
    calls = {name: partial(several, work.step, steps) for name, work in works.items()}
    times = {name: [each / steps for each in taken] for name, taken in interleaved(calls, scale.rounds, device).items()}
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(times["dirac"], times["plain"], strict=True)], n=4)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "ratio": round(ratio, 4),
        "ratio_low": round(low, 4),
        "ratio_high": round(high, 4),
        "plain_ms": round(1e3 * medians["plain"], 3),
        "dirac_ms": round(1e3 * medians["dirac"], 3),
        "dirac_images_per_second": round(batch / medians["dirac"]),
        "rounds": scale.rounds,
        "steps_per_round": steps,
        "operations": {name: operations(work) for name, work in works.items()},
    }


def several(call: Callable[[], None], times: int) -> None:
    """Call several times without waiting in between, as training does."""
    for _ in range(times):
        call()


def operations(work: Work) -> dict[str, Any]:
    """How many operations the device does in a step, how long it is busy with them, and what takes longest."""
    cuda = work.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as measured:
        work.step()
        synchronize(work.device)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    events = [event for event in measured.events() if event.device_type == kind]
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]  # which span operations
    longest: dict[str, float] = {}
    for event in events:
        longest[event.name] = longest.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3
    return {
        "count": len(events),
        "busy_ms": round(sum(longest.values()), 3),
        "longest_ms": {
            name[:80]: round(taken, 3) for name, taken in sorted(longest.items(), key=lambda item: -item[1])[:8]
        },
    }


def loads(stage: Stage) -> list[tuple[str, MemoryImages, Augmentation, int]]:
    """Noise of CIFAR's size and of photographs', and how it is augmented."""
    sets = []
    for name, count, side, recipe in (
        ("cifar", stage.scale.loaded, 32, Recipe.load("fast-cifar")),
        ("photographs", stage.scale.loaded // 8, stage.scale.side, Recipe.load("fast-imagenet")),
    ):
        pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, device=stage.device)
        images = MemoryImages(
            pixels, torch.arange(count) % 10, name=name, mean=CIFAR_MEAN, std=CIFAR_STD, device=stage.device
        )
        sets.append((name, images, recipe.data.augment, stage.scale.batch))
    return sets


def loader_speed(images: MemoryImages, augment: Augmentation, batch: int, device: torch.device) -> float:
    """Images a second of whole epochs, the median of four after one to warm up."""
    speeds = []
    for epoch in range(5):
        synchronize(device)
        begun = time.perf_counter()
        for _ in images.batches(batch, epoch=epoch, augment=augment):
            pass
        synchronize(device)
        speeds.append(len(images) / (time.perf_counter() - begun))
    return statistics.median(speeds[1:])


# Stages 2, 3, 3b and 5: as many epochs as there is time for


def wide(stage: Stage, model: str, classes: int, epochs: int) -> Recipe:
    """The fast recipe for networks ten times as wide, and large batches."""
    steps = epochs * math.ceil(50_000 / stage.scale.batch)
    recipe = Recipe.load("fast-cifar").replaced(
        model=model,
        epochs=epochs,
        batch_size=stage.scale.batch,
        lr=0.3,
        classifier_lr=0.05 if classes == 10 else 0.1,
        muon_lr=round(TURN / math.sqrt(steps), 4),
        cutout=12 if classes == 10 else 8,
        precision=stage.scale.precision,
        eval_every=math.ceil(epochs / EVALUATIONS),
    )
    return recipe.replaced(**stage.settings())


def cifar_stage(stage: Stage, data: str, family: str, as_in: str | None = None) -> bool:
    """One network on CIFAR-10 or CIFAR-100."""
    images = cifar(stage, data)
    shape = partial(wide, stage, f"{family}-{stage.scale.size}", len(images.classes))
    most = stage.scale.most_epochs
    if as_in is not None:  # the epochs of the network that it is to be compared with
        rows: Any = gpu.results(stage.options).get(gpu.key_of(as_in, stage.options), {}).get("rows")
        most = min(most, rows[-1]["epochs"]) if rows else most
    trained_in_time(stage, f"{family}-{data}", images, shape, most)
    return True


def photographs(stage: Stage) -> bool:
    """DiracNet-18 on Imagenette: by the recipe of the package, and for longer with Muon."""
    images = in_memory(stage, "imagenette", IMAGENET_MEAN, IMAGENET_STD)
    scale, side = stage.scale, stage.scale.side
    common = {"width": scale.width, "precision": scale.precision, "image_size": side}
    quick, most = scale.photograph_epochs

    def shipped(epochs: int) -> Recipe:
        return Recipe.load("fast-imagenet").replaced(**common, epochs=epochs, eval_every=math.ceil(epochs / 4))

    def with_muon(epochs: int) -> Recipe:
        fast = Recipe.load("fast-cifar").settings()
        steps = epochs * math.ceil(len(images.train) / fast["batch_size"])
        augment = Augmentation(crop="resized", min_scale=0.25, flip="alternating", cutout=side // 4)
        recipe = Recipe.load("fast-cifar").replaced(
            **common,
            model="diracnet-18",
            augment=augment,
            progressive_size=scale.first_side,
            epochs=epochs,
            muon_lr=round(TURN / math.sqrt(steps), 4),
            eval_every=math.ceil(epochs / EVALUATIONS),
        )
        return recipe.replaced(**stage.settings())

    if not stage.has(run="fast-imagenet"):
        trained_in_time(stage, "fast-imagenet", images, shipped, quick, keep=False)
    if not stage.has(run="muon"):
        trained_in_time(stage, "muon", images, with_muon, most)
    return True


def trained_in_time(
    stage: Stage, name: str, data: ImageData, shape: Callable[[int], Recipe], most: int, *, keep: bool = True
) -> None:
    """Train by `shape(epochs)`, for as many epochs as there is time for and at most `most`, and add a row.

    A run that was cut off goes on in its folder, by the recipe that it was begun with.
    """
    folder = stage.options.work / "runs" / f"{stage.key} {name}".replace(" ", "_").replace("=", "-")
    resume = (folder / "last.pt").exists()
    if resume:
        recipe = Recipe.load(folder / "recipe.toml")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        recipe = shape(epochs_in_time(stage, folder.with_name(folder.name + "-trial"), data, shape, most))
    epochs = recipe.settings()["epochs"]
    print(f"{name}: {'going on with ' * resume}{epochs} epochs, {int(stage.left())} s left", flush=True)
    history: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any]) -> None:
        history.append(row)
        if "val_accuracy" in row:
            stage.put(**{f"progress of {name}": history})
            print(f"  epoch {row['epoch']}/{epochs}: error {error(row['val_accuracy'])}%, "
                  f"{row['images_per_second']:.0f} images/s, {int(stage.left())} s left", flush=True)  # fmt: skip

    begun = time.time()
    trained = train(
        recipe, run=folder, data=data, device=str(stage.device), resume=resume, on_epoch=on_epoch, quiet=True
    )
    stage.facts.pop(f"progress of {name}", None)
    settings = recipe.settings()
    if settings["select_on"] is not None:
        data = data.selecting_on(settings["select_on"])
    if settings["num_train"] is not None:
        data = data.with_fewer(settings["num_train"])
    stage.add(
        run=name,
        network=settings["model"],
        data=data.name,
        train_images=len(data.train),
        error_of="test images" if data.test is None else "images held out of the training set",
        epochs=epochs,
        error=error(trained.accuracy),
        error_views=error(evaluate(trained.net, data.val, views="mirror-shift").top1),
        seconds=round(sum(row["seconds"] for row in trained.history), 1),
        seconds_in_all=round(time.time() - begun, 1),
        images_per_second=round(statistics.median(row["images_per_second"] for row in trained.history)),
        seed=settings["seed"],
        parameters=sum(parameter.numel() for parameter in trained.net.parameters()),
        recipe=recipe.table(),
        memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2) if stage.device.type == "cuda" else None,
        weights=kept_weights(stage, trained, f"{name}-{settings['model']}") if keep else [],
        history=trained.history,
    )


def error(accuracy: float) -> float:
    """Percent that are wrong."""
    return round(100 * (1 - accuracy), 2)


def epochs_in_time(stage: Stage, folder: Path, data: ImageData, shape: Callable[[int], Recipe], most: int) -> int:
    """How many epochs there is time for, by the speed of a few steps on small and on whole images.

    What is not a step is measured too: evaluations, statistics of the averaged network, folding, checkpoints.
    """
    shutil.rmtree(folder, ignore_errors=True)
    recipe = shape(most)
    settings = recipe.settings()
    smaller = settings["progressive_size"] is not None
    trial = recipe.replaced(
        epochs=4, eval_every=2, select_on=None, num_train=None, **({"progressive_fraction": 0.5} if smaller else {})
    )
    few = replace(data, train=data.with_fewer(min(len(data.train), TRIAL_STEPS * settings["batch_size"])).train)
    moments: list[float] = []
    rows: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any]) -> None:
        moments.append(time.perf_counter())
        rows.append(row)

    begun = time.perf_counter()
    train(trial, run=folder, data=few, device=str(stage.device), on_epoch=on_epoch, quiet=True)
    end = time.perf_counter()
    shutil.rmtree(folder)
    epoch, evaluation, start, finish = rests(begun, moments, end, [row["seconds"] for row in rows])
    fraction = settings["progressive_fraction"] if smaller else 0.0
    count = settings["num_train"] or len(data.train) - (settings["select_on"] or 0)
    small, whole = (count / rows[index]["images_per_second"] for index in (1, 3))
    each = (fraction * small + (1 - fraction) * whole) / (1 - SAVE_SHARE) + epoch
    once = start + finish + (EVALUATIONS + 6) * evaluation  # at the end, views of the images are evaluated too
    epochs = max(1, min(most, int((CAUTION * stage.left() - once) / each)))
    print(f"an epoch takes {small:.2f} s on small images, {whole:.2f} s on whole ones; once {once:.1f} s", flush=True)
    return epochs


def rests(begun: float, moments: list[float], end: float, seconds: list[float]) -> tuple[float, float, float, float]:
    """Seconds of a trial of four epochs that are no steps: of an epoch, an evaluation, the start and the finish.

    The second and the fourth epoch are evaluated.
    """
    between = [later - earlier - taken for (earlier, later), taken in zip(pairwise(moments), seconds[1:], strict=True)]
    epoch = max(0.0, between[1])
    return epoch, max(0.0, between[0] - epoch), max(0.0, moments[0] - begun - seconds[0]), end - moments[-1]


def kept_weights(stage: Stage, trained: Trained, name: str) -> list[str]:
    """The chain in float16 as a model file in `--out`, split where it is large (`cat` joins it), or nothing."""
    if trained.model_file is None:
        return []
    chain = load(trained.model_file)
    if sum(2 * parameter.numel() for parameter in chain.parameters()) > MOST_FILES * UPLOAD:
        return []
    stage.options.out.mkdir(parents=True, exist_ok=True)
    for earlier in stage.options.out.glob(f"{name}.safetensors*"):
        earlier.unlink()
    whole = stage.options.work / f"{name}.safetensors"
    save(chain.half(), whole, card=chain.card)
    content = whole.read_bytes()
    whole.unlink()
    parts = [content[first : first + UPLOAD] for first in range(0, len(content), UPLOAD)]
    names = [whole.name if len(parts) == 1 else f"{whole.name}.{number}" for number in range(1, len(parts) + 1)]
    for file, part in zip(names, parts, strict=True):
        (stage.options.out / file).write_bytes(part)
    return names


# Stage 4: time to an accuracy


def sprints(stage: Stage) -> bool:
    """Networks of the sprint family with several seeds, in turn, and the programs of cifar10-airbench."""
    images, scale = cifar(stage, "cifar10"), stage.scale
    taken: dict[tuple[str, int], float] = {}
    warm: set[str] = set()
    complete = True
    for networks in (scale.fast, scale.good):
        for seed in range(stage.options.seeds):
            for width, epochs in networks:
                recipe = sprint_recipe(stage, f"diracnet-sprint{width}", epochs, seed)
                settings = recipe.settings()
                if stage.has(network=settings["model"], epochs=settings["epochs"], seed=seed):
                    continue
                if stage.left() < 1.2 * taken.get((width, epochs), 0.0) or stage.left() < 0:
                    complete = False  # others may be faster
                    continue
                begun = time.time()
                if width not in warm:
                    warm.add(width)
                    sprint(stage, images, recipe.replaced(epochs=2, eval_every=2))  # to warm up, and not counted
                trained = sprint(stage, images, recipe)
                row = sprint_row(recipe, trained, images)
                if row["accuracy"] > max((each["accuracy"] for each in stage.rows if "recipe" in each), default=-1.0):
                    stage.facts["weights"] = kept_weights(stage, trained, "best-sprint")
                stage.add(**row)
                taken[width, epochs] = time.time() - begun
        if networks is scale.fast:
            complete = others(stage, images) and complete
    stage.put(summary=summary(stage.rows), reached={f"{goal:.0%}": fastest(stage.rows, goal) for goal in (0.94, 0.96)})
    for row in stage.facts["summary"]:
        print("  ".join(f"{name} {short(value)}" for name, value in row.items()), flush=True)
    return complete


def sprint_recipe(stage: Stage, model: str, epochs: int, seed: int) -> Recipe:
    """The package's recipe, its angle for that many steps; more augmentation for many epochs."""
    recipe = Recipe.load("sprint-cifar")
    batch = min(recipe.settings()["batch_size"], 50_000 if not stage.options.toy else stage.scale.batch)
    steps = epochs * math.ceil(50_000 / batch)
    changed = {"pad": 4, "cutout": 12} if epochs >= 20 else {}
    return recipe.replaced(
        model=model,
        epochs=epochs,
        batch_size=batch,
        muon_lr=round(3.6 / math.sqrt(steps), 4),
        seed=seed,
        precision=stage.scale.precision,
        eval_every=epochs,
        **changed,
    ).replaced(**stage.settings())


def sprint(stage: Stage, images: ImageData, recipe: Recipe) -> Trained:
    """Train once."""
    folder = stage.options.work / "runs" / "sprint"
    shutil.rmtree(folder, ignore_errors=True)
    return train(recipe, run=folder, data=images, device=str(stage.device), quiet=True)


def sprint_row(recipe: Recipe, trained: Trained, images: ImageData) -> dict[str, Any]:
    """What a run came to. Seconds are of training and of BatchNorm statistics, without evaluation."""
    settings = recipe.settings()
    if settings["select_on"] is not None:
        images = images.selecting_on(settings["select_on"])
    return {
        "network": settings["model"],
        "epochs": settings["epochs"],
        "seed": settings["seed"],
        "seconds": round(sum(row["seconds"] for row in trained.history), 3),
        "accuracy": round(trained.accuracy, 4),
        "accuracy_views": round(evaluate(trained.net, images.val, views="mirror-shift").top1, 4),
        "parameters": sum(parameter.numel() for parameter in trained.net.parameters()),
        "recipe": recipe.table(),
    }


def others(stage: Stage, images: ImageData) -> bool:
    """Run the programs of cifar10-airbench as they are; say plainly where there is none."""
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


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds of each network."""
    kinds = dict.fromkeys((row["network"], row["epochs"]) for row in rows)
    lines = []
    for network, epochs in kinds:
        alike = [row for row in rows if (row["network"], row["epochs"]) == (network, epochs)]
        line: dict[str, Any] = {"network": network, "epochs": epochs, "runs": len(alike)}
        for name in ("seconds", "accuracy", "accuracy_views"):
            values = [row[name] for row in alike]
            line[name] = round(statistics.fmean(values), 5)
            line[f"{name}_spread"] = round(statistics.stdev(values), 5) if len(values) > 1 else None
        lines.append(line)
    return lines


def fastest(rows: list[dict[str, Any]], goal: float) -> list[dict[str, Any]]:
    """What reaches an accuracy with views in the mean, the fastest first."""
    return sorted((row for row in summary(rows) if row["accuracy_views"] >= goal), key=lambda row: row["seconds"])


# Data


def cifar(stage: Stage, name: str) -> ImageData:
    """CIFAR-10 or CIFAR-100 on the device."""
    return in_memory(stage, name, CIFAR_MEAN, CIFAR_STD)


def in_memory(stage: Stage, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageData:
    """A set as one tensor on the device; a toy without data gets noise."""
    store = stage.options.work / "data"
    sets: dict[str, MemoryImages] = {}
    classes: tuple[str, ...] = ()
    for part in ("train", "test"):
        if stage.options.toy and not stage.options.data_dir:
            pixels, labels, classes = toy_images(name, 96 if part == "train" else 32, stage.scale.side)
        else:
            pixels, labels, classes = packed.load(name, part, store)
        sets[part] = MemoryImages(
            torch.from_numpy(pixels),
            torch.from_numpy(labels),
            name=f"{name} {part}",
            mean=mean,
            std=std,
            device=stage.device,
        )
    height, width = pixels.shape[1:3]
    return ImageData(name, classes, (3, height, width), mean, std, sets["train"], sets["test"])


def toy_images(name: str, count: int, side: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Noise, the brighter the larger the label is."""
    classes = 100 if name == "cifar100" else 10
    side = side if name == "imagenette" else 32
    labels = np.arange(count) % classes
    noise = np.random.default_rng(count).integers(0, 100, (count, side, side, 3))
    return (noise + 15 * (labels % 10)[:, None, None, None]).astype(np.uint8), labels, tuple(map(str, range(classes)))


STAGES: dict[str, Callable[[Stage], bool]] = {
    "1": step_times,
    "2": partial(cifar_stage, data="cifar10", family="diracnet"),
    "3": partial(cifar_stage, data="cifar100", family="diracnet"),
    "3b": partial(cifar_stage, data="cifar100", family="wrn", as_in="3"),
    "4": sprints,
    "5": photographs,
}
