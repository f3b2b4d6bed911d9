"""The time that CIFAR-10 takes to 94%: a recipe of ours and the Muon network of cifar10-airbench, on one machine.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/airbench.py --airbench cifar10-airbench --data-dir data --out results/airbench.json

That program is taken as it is, from its own file, and made for a GPU; on the way into Python its half precision becomes
float32 or bfloat16 autocast, its device the one at hand, and nothing is compiled, as ours is not. Nothing else is
changed: network, optimizer, schedule, augmentation and test-time augmentation are its own. Both train one after the
other in each round, in a process that keeps the memory that it frees, and the times are those of the training, of
batch norms' statistics too, without evaluation. Accuracies are of all test images, plain and averaged over views.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from diracnets import Recipe, evaluate, load_data, train
from diracnets.analysis.report import write_text
from diracnets.data.images import ImageData
from diracnets.runtime.device import keep_memory
from diracnets.runtime.environment import circumstances

PROGRAM = "airbench94_muon.py"
WORDS = {  # of that program, and what stands for them on any device; each must be there
    'torch.device("cuda")': "DEVICE",
    ".half()": ".float()",
}


class Event:
    """What `torch.cuda.Event` is to the program: a clock."""

    def __init__(self, enable_timing: bool = True) -> None:
        self.time = 0.0

    def record(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a clock has to wait for what was asked for before
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return (end.time - self.time) * 1000


def their_program(checkout: Path, device: torch.device) -> types.ModuleType:
    """The program as a module."""
    text = (checkout / PROGRAM).read_text()
    for word, ours in WORDS.items():
        if word not in text:
            raise SystemExit(f"{checkout / PROGRAM} does not hold {word}: it is of another version")
        text = text.replace(word, ours)
    module = types.ModuleType("airbench")
    module.__dict__["DEVICE"] = device
    vision = types.ModuleType("torchvision")  # of which it uses this alone
    transforms = types.ModuleType("torchvision.transforms")
    transforms.Normalize = Normalize  # type: ignore[attr-defined]
    vision.transforms = transforms  # type: ignore[attr-defined]
    guests = {"torchvision": vision, "torchvision.transforms": transforms}
    with (
        patch.dict(sys.modules, guests),
        patch.object(torch, "compile", lambda function: function),
        patch.object(sys, "argv", [str(checkout / PROGRAM)]),
    ):
        exec(compile(text, PROGRAM, "exec"), module.__dict__)
    return module


class Normalize:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean.to(images)) / self.std.to(images)


def theirs(module: types.ModuleType, images: ImageData, precision: str, seed: int) -> dict[str, Any]:
    """Train their network once."""
    device = module.__dict__["DEVICE"]
    torch.manual_seed(seed)
    net = module.CifarNet().to(device, memory_format=torch.channels_last)
    net.forward = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")(net.forward)
    rows: list[dict[str, Any]] = []
    module.print_training_details = lambda variables, is_final_entry: rows.append(dict(variables))
    stop = (lambda: None) if device.type == "cpu" else torch.cuda.synchronize
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(torch.cuda, "Event", Event),
        patch.object(torch.cuda, "synchronize", stop),
    ):
        write_images(images, Path(folder) / "cifar10")
        before = Path.cwd()
        os.chdir(folder)
        try:
            module.main(seed, net)
        finally:
            os.chdir(before)
    last = rows[-1]
    return {
        "network": f"cifar10-airbench, {PROGRAM}",
        "epochs": len(rows) - 1,
        "seconds": rows[-2]["time_seconds"],
        "accuracy": last["val_acc"],
        "accuracy_views": last["tta_val_acc"],
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }


def write_images(images: ImageData, folder: Path) -> None:
    """Write the images as the programs keep them, so that they do not download them."""
    folder.mkdir()
    for name, part in (("train", images.train), ("test", images.val)):
        pixels = torch.cat([batch.cpu() for batch, _, _ in part.batches(1000)])
        std, mean = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.std, images.mean))
        whole = ((pixels * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        content = {"images": whole.contiguous(), "labels": part.labels, "classes": list(images.classes)}
        torch.save(content, folder / f"{name}.pt")


def unchanged(program: Path, images: ImageData, runs: int, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Run a program of cifar10-airbench as it is, in a process of its own, until it has trained often enough.

    Its first run, which compiles, does not count. It wants a GPU; where torchvision is not installed it gets the one
    class of it that it uses.

    Args:
        program: its file.
        images: CIFAR-10.
        runs: that count.
        seconds: after which it is stopped.

    Returns:
        What it printed of each run: seconds of training, and accuracies of the test images, plain and averaged over
        views; and the end of its output if there were fewer runs.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(images, folder / "cifar10")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if importlib.util.find_spec("torchvision") is None:
            (folder / "guests" / "torchvision").mkdir(parents=True)
            (folder / "guests" / "torchvision" / "__init__.py").write_text("")
            (folder / "guests" / "torchvision" / "transforms.py").write_text(
                "import torch\n\n\n" + inspect.getsource(Normalize)
            )
            paths = [str(folder / "guests"), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        process = subprocess.Popen(
            [sys.executable, str(program.resolve())],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its compiler's processes end with it
        )
        stop = threading.Timer(seconds, os.killpg, [process.pid, signal.SIGKILL])
        stop.start()
        lines: list[str] = []
        try:
            for line in process.stdout or ():
                lines.append(line)
                if len(runs_of(lines)) > runs:
                    break
        finally:
            stop.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    found = runs_of(lines)[1 : runs + 1]
    rows = [{"network": program.name, "seed": number, **row} for number, row in enumerate(found)]
    return rows, "" if len(rows) == runs else "".join(lines[-20:])


def runs_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The finished runs in what a program printed: a table with a row an epoch, and one of the last evaluation."""
    names: list[str] = []
    runs: list[dict[str, Any]] = []
    seconds, epochs = 0.0, 0
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "tta_val_acc" in cells:
            names = cells
        if not names or len(cells) != len(names) or cells == names:
            continue
        row = dict(zip(names, cells, strict=True))
        clock = row.get("time_seconds") or row.get("total_time_seconds") or "nan"
        if row["epoch"] != "eval":
            seconds, epochs = float(clock), epochs + 1
        else:  # whose time has the evaluation in it
            accuracies = {"accuracy": float(row["val_acc"]), "accuracy_views": float(row["tta_val_acc"])}
            runs.append({"epochs": epochs, "seconds": seconds, **accuracies})
            epochs = 0
    return runs


def ours(recipe: Recipe, images: ImageData, device: str) -> dict[str, Any]:
    """Train ours once."""
    with tempfile.TemporaryDirectory() as folder:
        trained = train(recipe, run=folder, data=images, device=device, quiet=True)
    views = evaluate(trained.net, images.val, views="mirror-shift")
    return {
        "network": recipe.model.name,
        "recipe": recipe.table(),
        "epochs": recipe.optimization.epochs,
        "seconds": sum(row["seconds"] for row in trained.history),
        "accuracy": trained.accuracy,
        "accuracy_views": views.top1,
        "parameters": sum(parameter.numel() for parameter in trained.net.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--airbench", type=Path, help="a checkout of cifar10-airbench; none: ours alone")
    parser.add_argument("--recipe", default="sprint-cifar")
    parser.add_argument("--epochs", type=int, help="of our recipe; by default its own")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=1, help="training runs of each, with random seeds 0, 1, ...")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_memory()
    recipe = Recipe.load(options.recipe)
    epochs = options.epochs or recipe.optimization.epochs
    recipe = recipe.replaced(data="cifar10", precision=options.precision, epochs=epochs, eval_every=epochs)
    images = load_data("cifar10", data_dir=options.data_dir, device=options.device)
    module = their_program(options.airbench, torch.device(options.device)) if options.airbench else None
    measured = []
    for seed in range(options.rounds):
        measured.append({"seed": seed, **ours(recipe.replaced(seed=seed), images, options.device)})
        print(_line(measured[-1]), flush=True)
        if module is not None:
            measured.append({"seed": seed, **theirs(module, images, options.precision, seed)})
            print(_line(measured[-1]), flush=True)
        if options.out:  # after each round: a measurement that is stopped is not lost
            facts = {"circumstances": circumstances(options.device), "precision": options.precision}
            write_text(options.out, json.dumps({**facts, "measured": measured}, indent=2))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['network']}, seed {row['seed']}: {row['accuracy']:.2%}, {row['accuracy_views']:.2%} with views, "
        f"{row['epochs']} epochs, {row['seconds'] / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
