"""Write `docs/results.md` from the files in `results/`, so that every number on the page was measured.

python benchmarks/pages.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diracnets.analysis.report import machine_name, markdown_table, mean_and_spread, write_text
from diracnets.studies.cifar import PUBLISHED, cifar_study
from diracnets.studies.depth import FAMILIES, depth_study
from diracnets.studies.grid import Study
from diracnets.studies.groups import Group, groups_of, percents
from diracnets.studies.records import read_records

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "results"
SAME_FILTERS, DIRAC = (FAMILIES[name][0] for name in ("plain-identity", "diracnet-deep"))
DEPTH_BUDGET = {"epochs": 4, "num_train": 8000}
NETWORKS = {  # of the first table: row of the study, and what to call it
    "cifar10-wrn-28-1-fast-cifar": "Wide ResNet-28-1 (skip connections)",
    "cifar10-diracnet-28-1-fast-cifar": "**DiracNet-28-1** (none, folds to a chain)",
    "cifar10-plain-28-1-fast-cifar-identity": "plain, initialized to the DiracNet's filters",
    "cifar10-plain-28-1-fast-cifar-usual": "plain, usual initialization",
}
RAW = {
    "cifar.jsonl": "errors on CIFAR-10 and CIFAR-100 (`diracnets study cifar`)",
    "depth.jsonl": "accuracy against depth and learning rate (`diracnets study depth`)",
    "init.jsonl": "which initializations work (`diracnets study init`)",
    "signal.json": "the signal before training, layer by layer (`diracnets study signal`)",
    "lens.json": "the layers of the trained DiracNet-28-1 (`diracnets study lens diracnet-28-1-cifar10`)",
    "lens-1000-layers-earlier-start/lens.json": "the layers of 1,000 trained with an earlier, larger bias",
    "prune.json": "layers removed from the DiracNet-28-1 (`diracnets study prune diracnet-28-1-cifar10`)",
    "random_part.json": "how far training takes filters from the identity, by learning rate",
    "cost.json": "time and memory of a training step (`python benchmarks/cost.py`)",
    "airbench.json": "the sprint network next to cifar10-airbench's (`python benchmarks/airbench.py`)",
    "fold_time.json": "time and exactness of folding (`python benchmarks/fold_time.py`)",
    "unbranch.json": "residual networks as chains that compute the same (`python benchmarks/unbranch.py`)",
    "chain_agreement.json": "the folded chain against its network on test images (`python benchmarks/agreement.py`)",
    "authors_agreement.json": "the authors' checkpoints against what their program computes (the same)",
    "kernels.json": "which of torch's CPU convolutions crash or are wrong (`python benchmarks/kernels.py`)",
    "faults.json": "runs that are killed, stopped and starved, and resumed (`python benchmarks/faults.py`)",
    "plan.json": "`diracnets plan` against steps and published rates (`python benchmarks/plan_check.py`)",
    "plan_run.json": "the same against a whole run",
    "input.json": "images decoded per second (`python benchmarks/input.py`)",
    "parallel.json": "a step of two processes on a CPU against one (`python benchmarks/parallel.py`)",
    "fuzz.json": "damaged and hostile files that were read, and what was found (`python benchmarks/fuzz.py`)",
    "runtimes.json": "chains and residual networks on each runtime (`python benchmarks/runtimes.py`)",
    "runtimes.md": "the same as tables",
    "curve.json": "accuracy against latency and memory (`python benchmarks/curve.py`)",
    "curve.md": "the same as a table and a figure",
    "quantize.json": "accuracy in int8 and with fewer bits (`python benchmarks/quantize.py`)",
    "twin.json": "what brings a chain to the accuracy of its residual twin, in 4 and in 24 epochs",
    "spike.json": "does a shorter diagonal, by training, make rounding easier?",
    "c.json": "C code on all test images: accuracy, flash, RAM (`python benchmarks/c_code.py`)",
    "c_latency.json": "C code beside TensorFlow Lite Micro and LiteRT (`python benchmarks/c_latency.py`)",
    "finetune.json": "how to fine-tune on 384 photographs (`python benchmarks/finetune.py`)",
    "augment.json": "images augmented per second (`python benchmarks/augment.py`)",
    "recipe_search.json": "short runs by which fast-cifar and sprint-cifar were chosen; their script was not kept",
    "deep_start_search.json": "short runs by which the deep initialization was chosen; their script was not kept",
}


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text(encoding="utf-8")))


def found(study: Study) -> list[Group]:
    return groups_of(study, read_records(RESULTS / f"{study.name}.jsonl"))


def the_group(groups: Sequence[Group], row: str, **settings: object) -> Group | None:
    """The group of that row whose runs have these settings; None if nothing was trained."""
    return next(
        (each for each in groups if each.row == row and all(each.settings[k] == v for k, v in settings.items())), None
    )


def at_rate(study: Study, group: Group | None, rate: float | None = None) -> str:
    """Mean and spread at a learning rate, or at the best one."""
    if group is None:
        return ""
    runs = group.runs if rate is None else group.by_rate.get(rate, [])
    return mean_and_spread(percents(study, runs), 2 if study.measure == "error" else 1)


def equal_recipe() -> str:
    """Networks of one size by one recipe."""
    study = cifar_study()
    groups = found(study)
    rows = []
    for row, title in NETWORKS.items():
        full, short = the_group(groups, row, epochs=56), the_group(groups, row, epochs=4)
        minutes = f"{statistics.fmean(run.result['seconds'] for run in full.runs) / 60:.0f}" if full else ""
        best = f"{at_rate(study, short)} at {short.rate:g}" if short and len(short.by_rate) > 1 else ""
        rows.append([title, at_rate(study, full, 0.02) or "not trained", at_rate(study, short, 0.02), best, minutes])
    columns = ["network", "error, %, 56 epochs", "4 epochs, 3 seeds", "4 epochs, best rate", "minutes, 56 epochs"]
    return markdown_table(columns, rows)


def depth_cell(groups: Sequence[Group], study: Study, family: str, depth: int, rate: float | None = None) -> str:
    kind, _, initialization = family.partition("-")
    row = f"cifar10-{kind}-{depth}-0.5" + f"-{initialization}" * bool(initialization)
    group = the_group(groups, row, **DEPTH_BUDGET)
    text = at_rate(study, group, rate)
    return f"{text} ({group.rate:g})" if group and text and rate is None else text


def by_depth() -> str:
    """Accuracy of chains and residual networks by depth."""
    study = depth_study()
    groups = found(study)
    columns = ["layers", "Dirac, rate 0.2", "plain, same filters, best rate", "plain, same filters, rate 0.2"]
    rows = [
        [
            f"{depth:,}",
            depth_cell(groups, study, "diracnet-deep", depth, 0.2),
            depth_cell(groups, study, "plain-identity", depth),
            depth_cell(groups, study, "plain-identity", depth, 0.2),
            depth_cell(groups, study, "wrn", depth),
        ]
        for depth in (28, 52, 100, 196, 400, 1000)
    ]
    return markdown_table([*columns, "residual, best rate"], rows)


def cost() -> str:
    """Ratios of a training step and of inference."""
    rows = []
    for measurement in read("cost.json")["measured"]:
        by_variant = {row["variant"]: row for row in measurement["rows"]}
        plain = by_variant["plain"]
        ratios = {
            name: "{:.2f} ({:.2f} to {:.2f})".format(row["step_ratio"], *row["step_ratio_quartiles"])
            for name, row in by_variant.items()
            if "step_ratio" in row
        }
        rows.append(
            [
                f"{plain['network']}, batch {plain['batch']}, {plain['precision']}",
                machine_name(measurement["circumstances"]),
                *(ratios.get(name, "") for name in ("dirac", "residual", "repvgg")),
                f"{by_variant['residual']['inference_ratio']:.2f}" if "residual" in by_variant else "",
            ]
        )
    columns = ["size", "on", "Dirac", "residual", "RepVGG", "inference, residual / folded chain"]
    return markdown_table(columns, rows)


def exactness() -> str:
    """How exact folding is, and how long it takes."""
    return markdown_table(
        ["network", "seconds", "parameters", "after the fold", "relative difference, float64", "float32"],
        [
            [
                row["network"],
                f"{row['seconds']:.2f}",
                f"{row['parameters_before']:,}",
                f"{row['parameters_after']:,}",
                f"{row['max_rel_float64']:.0e}",
                f"{row['max_rel']:.0e}",
            ]
            for row in read("fold_time.json")["measured"]
        ],
    )


def unbranched() -> str:
    """What residual networks cost as chains, one sentence each."""
    rows = []
    for row in read("unbranch.json")["measured"]:
        params, work = (row[f"{what}_after"] / row[f"{what}_before"] for what in ("parameters", "multiply_adds"))
        low, high = row["time_ratio_quartiles"]
        rows.append(
            f"- {row['network']}: {params:.2f} times the parameters, {work:.2f} times the multiply-adds, "
            f"{row['time_ratio']:.2f} times\n  the time ({low:.2f} to {high:.2f}); the difference is "
            f"{row['max_rel_float64']:.0e} in float64, {row['max_rel']:.0e} in float32."
        )
    return "\n".join(rows)


def single_runs() -> str:
    """Runs that stand alone, one seed each."""
    names = {
        "cifar100-diracnet-sprint-sprint-cifar": "CIFAR-100, diracnet-sprint, sprint-cifar",
        "imagenette-diracnet-18-fast-imagenet": "Imagenette, DiracNet-18, fast-imagenet",
        "imagenette-diracnet-18-paper-imagenet": "Imagenette, DiracNet-18, the paper's recipe, shortened",
        "cifar10-diracnet-28-1-sgd": "CIFAR-10, DiracNet-28-1, an earlier fast-cifar with SGD",
    }
    rows = []
    groups = found(cifar_study())
    if group := the_group(groups, "cifar100-diracnet-28-1-fast-cifar", epochs=56):
        run = group.runs[0]
        accuracy, minutes = 100 * run.result["accuracy"], run.result["seconds"] / 60
        rows.append(["CIFAR-100, DiracNet-28-1, fast-cifar", "56", f"{accuracy:.2f}", f"{minutes:.0f}"])
    for folder, title in names.items():
        history = [json.loads(line) for line in (RESULTS / folder / "metrics.jsonl").read_text().splitlines()]
        minutes = sum(row["seconds"] for row in history) / 60
        link = f"[{title}](../results/{folder}/)"
        rows.append([link, str(len(history)), f"{100 * history[-1]['val_accuracy']:.2f}", f"{minutes:.0f}"])
    return markdown_table(["run", "epochs", "accuracy, %", "minutes"], rows)


def race() -> str:
    """The sprint network and airbench's, in one sentence."""
    content = read("airbench.json")
    theirs = [row for row in content["measured"] if row["network"].startswith("cifar10-airbench")]
    ours = [row for row in content["measured"] if row not in theirs]
    each = [
        f"{100 * statistics.fmean(row['accuracy_views'] for row in rows):.2f}% in "
        f"{statistics.fmean(row['seconds'] for row in rows) / 60:.1f} minutes"
        for rows in (ours, theirs)
    ]
    return (
        f"`diracnet-sprint` has {each[0]}, cifar10-airbench\n  (`airbench94_muon.py`) {each[1]}, on the same "
        f"{machine_name(content['circumstances'])};\n  one seed each, averaged over mirrored and shifted images"
    )


def page() -> str:
    """The whole page."""
    cifar, depth = cifar_study(), depth_study()
    cifar_groups, depth_groups = found(cifar), found(depth)
    full = {row: at_rate(cifar, the_group(cifar_groups, row, epochs=56), 0.02) for row in NETWORKS}
    wrn, dirac, plain, _ = full.values()
    deep = [depth_cell(depth_groups, depth, "diracnet-deep", layers, 0.2) for layers in (28, 400, 1000)]
    plain_400 = depth_cell(depth_groups, depth, "plain-identity", 400).partition(" (")[0]
    published = {key: text.partition(" (")[0] for key, text in PUBLISHED.items()}
    agreement, authors = read("chain_agreement.json")["measured"][0], read("authors_agreement.json")["measured"]
    raw = "\n".join(f"- [{name}](../results/{name}): {what}" for name, what in RAW.items())
    return f"""# Results

Written by `python benchmarks/pages.py` from the files in [results/](../results/), so every number of ours was measured:
on two CPU cores, none on a GPU yet.

**The recipes and learning rates for these numbers were chosen in short runs on the test images that are reported
here**, so a little of each number may be luck. Since then, learning rates are chosen on images held out of the training
set (`--select-on`), and tables say so.

## What is not reached

- **The paper's errors.** DiracNet-28-10 with {published["cifar10", "diracnet-28-10"]}% on CIFAR-10 and
  {published["cifar100", "diracnet-28-10"]}% on CIFAR-100, DiracNet-28-5 with {published["cifar10", "diracnet-28-5"]}%
  on CIFAR-10, DiracNet-18 and 34 on ImageNet: not trained yet, for they need a GPU. (These numbers of the paper are
  quoted from memory or from others.)
- **A chain as good as a residual network.** At 28 layers and equal recipe, skip connections are still better: {wrn}%
  error against {dirac}% (first table). `--init carriers` closes about half of that in up to 24 epochs
  ([twin.json](../results/twin.json)).
- **A clear lead over plain convolutions.** Plain convolutions that are initialized to the DiracNet's own filters come
  within a point: {plain}% error against {dirac}% at 28 layers, and {plain_400}% accuracy against {deep[1]}% at 400
  layers, at the learning rate that suits them (second table). The initialization makes the depth trainable; the
  parameterization makes one learning rate suit all depths.
- **94% on CIFAR-10 faster than cifar10-airbench.** {race()}.
- **A training step within 1.02 of the plain network's on a GPU**: not measured.

What is reached: DiracNet-28-1 has an error below 8.5% in less than an hour on a CPU, a chain of 1,000 layers
({deep[2]}%) is as good as one of 28 ({deep[0]}%) in the same few epochs, and folding is exact.

## At equal recipe and full length: CIFAR-10, 28 layers, 0.37 million parameters

Error on the test images by `fast-cifar` (Muon, learning rate of filters 0.02); 56 epochs, one seed. "4 epochs" is the
same recipe cut short: mean and standard deviation of three seeds. One processor thread, bfloat16.

{equal_recipe()}

## Depth

Accuracy in percent on CIFAR-10 by `deep-cifar`: width 0.5, 4 epochs on 8,000 training images, one seed where no spread
is given; the best learning rate, chosen on the test images, in brackets. "Same filters" are ordinary convolutions that
are initialized to what the Dirac convolutions compute. [How and why](depth.md).

{by_depth()}

## What a training step costs

Time of a step as a multiple of the plain network's, medians of interleaved rounds with quartiles. Inference compares
the residual network with the folded chain of the DiracNet.

{cost()}

## How exact folding is

The largest difference between network and folded chain, relative to the largest output; the time includes the check.
A trained DiracNet-28-1 and its chain predict the same class for {100 * agreement["same_prediction"]:.0f}% of the
{agreement["images"]:,} test images of CIFAR-10. The authors' checkpoints give the outputs of their own program within
{max(row["largest_logit_difference"] for row in authors):.0e}.

{exactness()}

## Residual networks as chains

What `unbranch` makes of residual networks with random weights, against the network with folded batch norms: time of one
image on one processor thread in float32, medians of interleaved rounds with quartiles, and the largest difference
relative to the largest output.

{unbranched()}

## Single runs

One seed each; a folder holds the recipe, environment, metrics and learning curve.

{single_runs()}

## All measurements

{raw}"""


if __name__ == "__main__":
    write_text(PAGE, page())
