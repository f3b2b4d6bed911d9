"""Write `docs/results.md` from the files in `results/`, so that every number on the page was measured.

python benchmarks/pages.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diracnets.studies.overview import reached, study_pages
from diracnets.studies.report import markdown_table, told, write_text

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
Row = dict[str, Any]


def table(columns: dict[str, Callable[[Row], object]], rows: Iterable[Row]) -> str:
    return markdown_table(list(columns), [[value(row) for value in columns.values()] for row in rows])


def fold_time(result: Row) -> str:
    return table(
        {
            "network": lambda row: row["network"],
            "seconds": lambda row: f"{row['seconds']:.2f}",
            "parameters": lambda row: f"{row['parameters_before']:,} -> {row['parameters_after']:,}",
            "relative difference, float64": lambda row: f"{row['max_rel_float64']:.1e}",
            "float32": lambda row: f"{row['max_rel']:.1e}",
        },
        result["measured"],
    )


def agreement(result: Row) -> str:
    return table(
        {
            "network": lambda row: row.get("checkpoint") or f"{row['network']} on {row['data']}",
            "images": lambda row: f"{row['images']:,}",
            "same prediction": lambda row: f"{row['same_prediction']:.2%}",
            "largest difference of a logit": lambda row: f"{row['largest_logit_difference']:.1e}",
            "largest logit": lambda row: f"{row['largest_logit']:.2f}",
        },
        result["measured"],
    )


def augment(result: Row) -> str:
    return table(
        {
            "batch": lambda row: row["batch_size"],
            "images a second, median of epochs": lambda row: f"{row['images_per_second_median']:,}",
            "slowest to fastest": lambda row: (
                f"{row['images_per_second_slowest']:,} to {row['images_per_second_fastest']:,}"
            ),
        },
        result["measured"],
    )


def recipe_search(result: Row) -> str:
    return table(
        {
            "network": lambda row: row["network"],
            "epochs": lambda row: row["epochs"],
            "batch": lambda row: row["batch_size"],
            "what was set": lambda row: ", ".join(f"{name} {value}" for name, value in row["settings"].items()),
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
            "with mirrored images": lambda row: f"{row['accuracy_mirror']:.2%}" if "accuracy_mirror" in row else "",
            "also shifted": lambda row: f"{row['accuracy_views']:.2%}" if "accuracy_views" in row else "",
        },
        sorted(result["measured"], key=lambda row: (row["network"], row["epochs"], row["accuracy"])),
    )


def deep_start_search(result: Row) -> str:
    return table(
        {
            "layers": lambda row: row["layers"],
            "steps": lambda row: row["steps"],
            "beta": lambda row: row["beta"],
            "bias": lambda row: row["bias"],
            "of the last norm": lambda row: row["last_bias"],
            "and its scale": lambda row: row["last_scale"],
            "rate": lambda row: row["rate"],
            "of alpha and beta": lambda row: row["rate_of_scales"],
            "of the norms": lambda row: row["rate_of_norms"],
            "precision": lambda row: row["precision"],
            "seed": lambda row: row["seed"],
            "loss": lambda row: f"{row['loss']:.3f}",
        },
        result["measured"],
    )


def random_part(result: Row) -> str:
    return table(
        {
            "network": lambda row: row["model"],
            "rate": lambda row: f"{row['rate']:g}",
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
            "beta at the start, by the rule": lambda row: row["random_part_at_start"],
            "trained, the median layer": lambda row: f"{row['random_part_median']:.3f}",
            "the least": lambda row: f"{row['random_part_least']:.3f}",
            "the most": lambda row: f"{row['random_part_most']:.3f}",
        },
        result["rows"],
    )


def race(result: Row) -> str:
    return table(
        {
            "network": lambda row: row["network"],
            "seed": lambda row: row["seed"],
            "parameters": lambda row: f"{row['parameters']:,}",
            "epochs": lambda row: row["epochs"],
            "minutes": lambda row: f"{row['seconds'] / 60:.1f}",
            "accuracy": lambda row: f"{row['accuracy']:.2%}",
            "averaged over views": lambda row: f"{row['accuracy_views']:.2%}",
            "precision": lambda row: result["precision"],
        },
        result["measured"],
    )


def runs() -> str:
    parts = []
    for folder in sorted(path.parent for path in RESULTS.glob("*/metrics.jsonl")):
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        environment = json.loads((folder / "environment.json").read_text())[0]  # of the first start
        parts.append(
            {
                "run": f"[{folder.name}](../results/{folder.name}/)",
                "epochs": len(history),
                "accuracy": f"{history[-1]['val_accuracy']:.2%}",
                "minutes": f"{sum(row['seconds'] for row in history) / 60:.1f}",
                "images a second, fastest epoch": f"{max(row['images_per_second'] for row in history):.0f}",
                "device": environment["device"],
                "torch": environment["versions"]["torch"],
                "command": f"`diracnets {' '.join(environment['command'][1:])}`",
            }
        )
    return table({key: lambda row, key=key: row[key] for key in parts[0]}, parts) if parts else ""


SEARCHED = """By a script that is not kept, of this package's layers, images and augmentation, and, where no accuracy
with mirrored images is given, by `diracnets train`; the rate falls to zero in each run. Muon turns the filters. One
seed and little time each: differences under a point say little. The six wide blocks have the shape and, where it says
so, the rates of cifar10-airbench, with ReLUs. Rows of sprint-cifar that name what was changed have all else as it is
in the package, by a script that changes its parts; the same recipe differed by up to 0.4 points between two
runs of one seed on one and on two threads."""

STARTED = """By a script that is not kept: the recipe deep-cifar, but for what the columns say, on 8,000 images of
CIFAR-10 at 16x16 pixels, width 0.5, batches of 128, the rate falling to zero at the last step (but for the one of 20
steps, which was broken off from 63). Loss is that of training with label smoothing 0.1, over the last third of the
steps or less; two seeds differed by 0.04."""

FROM_LENS = """The part of a layer's filters that is no identity, against that which is: the root of 1 / identity - 1,
with the identity that `diracnets study lens` tells of each layer. The runs are those of the study of depth with the
deep start (the plain networks with the Dirac network's filters), seed 0; RUN stands for each of them in turn, and what
was made of their lens.json, by a script that is not kept, is medians and extremes alone."""

SECTIONS = {
    "random_part.json": ("How far training takes filters from the identity, by rate", random_part),
    "airbench.json": ("The fastest chain beside cifar10-airbench's, one after the other on one machine", race),
    "fold_time.json": ("How long a fold takes, its check included, and how exact it is", fold_time),
    "chain_agreement.json": ("The folded chain against its network, on all test images", agreement),
    "authors_agreement.json": ("The authors' checkpoints against the logits that their program gave", agreement),
    "recipe_search.json": (
        "What was tried for fast-cifar and sprint-cifar: short runs on CIFAR-10, one seed",
        recipe_search,
    ),
    "deep_start_search.json": ("What was tried for the deep start: losses of short runs", deep_start_search),
    "augment.json": ("Augmented CIFAR images a second, without a network", augment),
}
TEXT = """# Results

Made by `python benchmarks/pages.py` from the files in `results/`, which the program wrote. The machines are noisy, so
ratios were measured side by side in one run."""
TRAININGS = """Each folder holds the run's recipe, environment, metrics and curve. One seed each; accuracy is that of
the last epoch, on all held-out images. Minutes are those of training without evaluation, whatever else the machine did
meanwhile; the fastest epoch tells what it does undisturbed. A recipe may have changed since: the folder's
recipe.toml is what was
trained."""


def page() -> str:
    parts = [TEXT, "## What is reached, and what is not yet", reached(RESULTS), *study_pages(RESULTS, "../results")]
    for name, (title, render) in SECTIONS.items():
        if (RESULTS / name).exists():
            result = json.loads((RESULTS / name).read_text())
            parts += [f"## {title}", told(result["circumstances"]), render(result)]
            parts += [FROM_LENS] * (name == "random_part.json")
            parts += [SEARCHED] * (name == "recipe_search.json")
            parts += [STARTED] * (name == "deep_start_search.json")
    return "\n\n".join([*parts, "## Single trainings", TRAININGS, runs()])


if __name__ == "__main__":
    write_text(PAGE, page())
