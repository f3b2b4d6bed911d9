"""How to fine-tune a small trained network on a few hundred photographs: learning rates, epochs, and what to train.

    python benchmarks/finetune.py --data-dir imagenette --out results/finetune.json

The photographs are four classes of Imagenette with 96 images each to train on, which is what is left of 120 when one in
five is held out. Settings are chosen on other photographs of Imagenette's training set. Two of them are then trained on
four other classes, and tested on images of Imagenette's validation set. A seed decides the photographs, their order,
and the new classifier. A run is evaluated once, after its last epoch. What the output file already holds is kept.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diracnets.analysis.report import markdown_table, mean_and_spread
from diracnets.data.images import ImageData
from diracnets.data.load import load_data
from diracnets.files import written_whole
from diracnets.runtime.device import keep_memory
from diracnets.runtime.environment import circumstances
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe

START = "diracnet-28-1-cifar100"
CHOSEN_ON = ("church", "golf_ball", "parachute", "tench")
TESTED_ON = ("French_horn", "cassette_player", "chain_saw", "garbage_truck")
TRAIN, VAL = 96, 200  # images of each class
BASE = Recipe.load("finetune").replaced(
    model="diracnet-28-1", image_size=32, epochs=10, lr=0.03, precision="float32", eval_every=1000
)


@dataclass(frozen=True)
class Row:
    """What is measured: settings on top of `BASE`.

    Attributes:
        settings: by their short names.
        start: what to start from, if anything.
        tested: whether on the classes and images that nothing was chosen on.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = START
    tested: bool = False


FROZEN = {"lr": 0.1, "freeze": True}
ROWS = {
    **{f"all layers, learning rate {lr}": Row({"lr": lr}) for lr in (0.01, 0.03, 0.1, 0.3)},
    "all layers, learning rate 0.03, 20 epochs": Row({"epochs": 20}),
    "classifier alone, learning rate 0.1": Row(FROZEN),
    "from nothing, learning rate 0.1": Row({"lr": 0.1}, start=None),
    "tested: all layers, learning rate 0.03": Row(tested=True),
    "tested: classifier alone, learning rate 0.1": Row(FROZEN, tested=True),
}


def photographs(source: Path, row: Row, seed: int, folder: Path) -> ImageData:
    """A folder of links to some photographs of Imagenette, as a data set."""
    drawn = random.Random(seed)
    for name in TESTED_ON if row.tested else CHOSEN_ON:
        files = sorted((source / "train" / name).iterdir())
        drawn.shuffle(files)
        others = sorted((source / "val" / name).iterdir()) if row.tested else files[TRAIN : TRAIN + VAL]
        for part, some in (("train", files[:TRAIN]), ("val", others)):
            target = folder / part / name
            target.mkdir(parents=True)
            for file in some:
                (target / file.name).symlink_to(file.resolve())
    return load_data("folder", data_dir=folder, image_size=BASE.data.image_size, device="cpu", workers=0)


def measure(source: Path, row: Row, seed: int) -> dict[str, Any]:
    """One run: its accuracy on the held-out images after the last epoch, and what it took."""
    with tempfile.TemporaryDirectory() as place:
        data = photographs(source, row, seed, Path(place) / "set")
        begun, worked = time.perf_counter(), time.process_time()
        recipe = BASE.replaced(**row.settings, seed=seed)
        run = train(recipe, run=Path(place) / "run", data=data, device="cpu", start=row.start, quiet=True)
    return {
        "seed": seed,
        "accuracy": run.history[-1]["val_accuracy"],
        "images": len(data.val),
        "seconds": round(time.perf_counter() - begun, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
    }


def summary(measured: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in measured:
        found.setdefault(each["row"], []).append(each)
    rows = [
        [
            name,
            mean_and_spread([100 * each["accuracy"] for each in runs], 1),
            str(len(runs)),
            f"{statistics.fmean(each['processor_seconds'] for each in runs):.0f}",
        ]
        for name, runs in found.items()
    ]
    return markdown_table(["what is trained", "accuracy, %", "seeds", "processor seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="Imagenette, with train/ and val/")
    parser.add_argument("--rows", nargs="+", default=["*"], help="patterns of the rows to measure")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_memory()
    measured = json.loads(arguments.out.read_text())["measured"] if arguments.out.exists() else []
    done = {(each["row"], each["seed"]) for each in measured}
    chosen = [name for name in ROWS if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.rows)]
    facts = {"circumstances": circumstances(), "start": START, "recipe": BASE.table()}
    for seed, name in [(seed, name) for seed in range(arguments.seeds) for name in chosen]:
        if (name, seed) not in done:
            measured.append({"row": name, **measure(arguments.data_dir, ROWS[name], seed)})
            print(json.dumps(measured[-1]), flush=True)
        with written_whole(arguments.out) as part:
            part.write_text(json.dumps({**facts, "measured": measured}, indent=2) + "\n")
    print(summary(measured))


if __name__ == "__main__":
    main()
