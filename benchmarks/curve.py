"""Accuracy against latency and against memory, of whatever is trained: chains and residual networks.

python benchmarks/curve.py runs/wrn-16-1 runs/wrn-28-1 diracnet-28-1-cifar10 runs/diracnet-28-2 --data-dir DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro
from tyro.conf import Positional, arg

from diracnets import bench, evaluate, load
from diracnets.analysis.report import environment_line, markdown_table, write_report
from diracnets.artifacts.card import card_of
from diracnets.artifacts.network_file import network_file
from diracnets.deploy.activations import live_activations
from diracnets.deploy.subject import subject_of
from diracnets.errors import DiracNetsError, UsageError
from diracnets.evaluation.own_data import own_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Accuracy against latency and memory"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What accuracy does a millisecond, or a kilobyte of activations, buy: of a chain and of a residual network?

    The networks should come from one recipe, several widths of each kind; what is compared is what is given."""

    models: Positional[tuple[str, ...]]
    """Trained networks: run folders, checkpoints, model files, or names of trained ones."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The images that they were trained on; by default where their training runs found them."""
    backend: Literal["torch", "torch.compile", "onnx", "openvino"] = "onnx"
    """What runs them, in float32."""
    rounds: int = 11
    """How often each is timed."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Where curve.json, curve.md and curve.png go."""

    def run(self, say: Callable[[str], None]) -> None:
        """Evaluate and time all networks, and write the three files.

        Raises:
            UsageError: no networks, or one that has no data.
            FileError: a network cannot be read.
        """
        files = {name: network_file(Path(name)) for name in self.models}
        if not files:
            raise UsageError("no trained network is given")
        table = bench(
            {name: str(file) for name, file in files.items()},
            backends=[self.backend],
            precisions=["float32"],
            batches=(1,),
            rounds=self.rounds,
            say=say,
        )
        rows = [
            {
                **_facts(name, files[name], self.data_dir),
                "reason": row.reason,
                "milliseconds": _milliseconds(row.latency),
            }
            for name, row in zip(files, table.rows, strict=True)
        ]
        around = table.facts["circumstances"]
        facts = {"study": "curve", "title": TITLE, "backend": self.backend, "rows": rows, "circumstances": around}
        write_report(self.out, facts, page, lambda figure: draw(figure, facts), (10, 4.5), say)


def page(facts: Mapping[str, Any], *, picture: bool) -> str:
    """The curve in Markdown."""
    columns = ["network", "accuracy, %", "ms an image", "activations, thousand numbers", "parameters", "reason"]
    cells = [
        [
            row["name"],
            f"{100 * row['accuracy']:.2f}",
            "" if row["milliseconds"] is None else f"{row['milliseconds']:.4g}",
            f"{row['activations'] / 1e3:.1f}",
            f"{row['parameters']:,}",
            row["reason"],
        ]
        for row in facts["rows"]
    ]
    parts = [f"# {TITLE}", f"Float32, {facts['backend']}, one image at a time; all test images."]
    shown = ["![Accuracy against latency and memory](curve.png)"] if picture else []
    return "\n\n".join([*parts, *shown, markdown_table(columns, cells), environment_line(facts["circumstances"])])


def draw(figure: Figure, facts: Mapping[str, Any]) -> None:
    """Error against milliseconds and against activations; a colour for each family of networks."""
    labels = {"milliseconds": f"ms an image, {facts['backend']}", "activations": "numbers of activations at a time"}
    for axes, (key, label) in zip(figure.subplots(1, 2, sharey=True), labels.items(), strict=True):
        for family in dict.fromkeys((row["family"], row["kind"]) for row in facts["rows"]):
            rows = [row for row in facts["rows"] if (row["family"], row["kind"]) == family and row[key] is not None]
            rows.sort(key=lambda row: (row[key], row["accuracy"]))
            errors = [100 - 100 * row["accuracy"] for row in rows]
            axes.plot([row[key] for row in rows], errors, "o-", label=f"{family[0]} ({family[1]})")
            for row, error in zip(rows, errors, strict=True):
                axes.annotate(Path(row["name"]).name, (row[key], error), fontsize=7)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=7, labelrotation=30)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("error, %")


def _facts(name: str, file: Path, data_dir: Path | None) -> dict[str, Any]:
    model = load(file)
    data = own_data(file, card_of(model), data_dir=data_dir, device=torch.device("cpu"))
    subject = subject_of(model, name)
    return {
        "name": name,
        "family": str(card_of(model).architecture["name"]).partition("-")[0],
        "kind": "chain" if subject.is_chain else "residual",
        "accuracy": evaluate(model, data.val).top1,
        "images": len(data.val),
        "activations": max(live.numbers for live in live_activations(subject.model, subject.card.input_size)),
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "multiply_adds": subject.multiply_adds,
    }


def _milliseconds(latency: Mapping[int, Any]) -> float | None:
    return 1e3 * latency[1].seconds if latency else None


if __name__ == "__main__":
    try:
        tyro.cli(Curve).run(print)
    except DiracNetsError as error:
        sys.exit(f"curve.py: {error}")
