"""Folded chains against residual networks and RepVGG on the runtimes that users have, side by side.

python benchmarks/runtimes.py                  # about an hour on two quiet cores; stop and start it as you like
python benchmarks/runtimes.py --groups wrn-28-1,diracnet-28-1,repvgg-28-1 --rounds 5
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from diracnets import bench
from diracnets.analysis.report import environment_line, machine_name, markdown_table, write_text
from diracnets.deploy.activations import Live, live_activations
from diracnets.deploy.subject import Subject, subject_of
from diracnets.errors import DiracNetsError, FileError
from diracnets.runtime.environment import circumstances

TITLE = "Chains against residual networks on runtimes"
Backend = Literal["torch", "torch.compile", "onnx", "openvino"]


@dataclass(frozen=True, kw_only=True)
class Runtimes:
    """How fast is the folded chain against residual networks in their best form, and how much memory does it need?

    All networks of a group run in turns, each in a process of its own; the order turns with every round. Ratios are to
    the first network of the group. Weights are random: they decide nothing here. What was measured before, of other
    groups, backends, precisions or machines, stays in the file."""

    groups: tuple[str, ...] = ("resnet-18,diracnet-18,repvgg-a0", "resnet-34,diracnet-34,repvgg-b0")
    """Networks to run side by side, with commas between; the first one is what the others are compared with."""
    backends: tuple[Backend, ...] = ("onnx", "openvino", "torch.compile")
    """What runs them."""
    precisions: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32", "int8")
    """int8 on ONNX Runtime and OpenVINO alone, by ONNX Runtime's quantizer."""
    batches: tuple[int, ...] = (1, 16)
    """Images at a time."""
    rounds: int = 11
    """How often each is timed."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Where runtimes.json and runtimes.md go."""

    def run(self, say: Callable[[str], None]) -> None:
        """Measure what the file does not hold yet, and write it after each group, backend and precision.

        Raises:
            UsageError: no such network, or numbers that make no sense.
            FileError: the file is damaged, or cannot be written.
        """
        path = self.out / "runtimes.json"
        facts, around = _known(path), circumstances()
        for group in self.groups:
            networks: list[Subject] = []
            asked = [(backend, precision) for backend in self.backends for precision in self.precisions]
            for backend, precision in asked:
                place = {"group": group, "backend": backend, "precision": precision}
                if any(_place(each) == _place({**place, "circumstances": around}) for each in facts["measured"]):
                    say(f"known: {group}, {backend}, {precision}")
                    continue
                networks = networks or [subject_of(network) for network in group.split(",")]
                for subject in networks:
                    facts["activations"].setdefault(subject.name, _activations(subject))
                load = round(os.getloadavg()[0], 1)  # what else the machine does
                table = bench(
                    networks,
                    backends=[backend],
                    precisions=[precision],
                    batches=self.batches,
                    rounds=self.rounds,
                    say=say,
                )
                facts["measured"].append({**place, "load": load, **table.to_data()})
                write_text(path, json.dumps(facts, indent=2))  # kept if stopped
        write_text(self.out / "runtimes.md", page(facts))
        say(f"wrote runtimes.json and runtimes.md to {self.out}")


def _busy(measured: Mapping[str, Any]) -> str:
    load = measured.get("load")
    return "other work on the machine, not recorded how much" if load is None else f"load average {load} at the start"


def page(facts: Mapping[str, Any]) -> str:
    """The measurements in Markdown."""
    parts = [
        f"# {TITLE}",
        "Medians of interleaved rounds, and of the rounds' ratios to the first network of a group, with the quartiles "
        "of these in brackets. The ratio of *processor time* counts what the process itself computed, so that other "
        "work on the machine changes it less. *Of peak*: multiply-adds in a second of processor time, as a part of "
        "those of a float32 matrix product in the same rounds. *RAM*: the most memory that the process held while it "
        "ran, beyond what it held before the network was loaded; weights included.",
    ]
    for measured in facts["measured"]:
        rows = [line for row in measured["rows"] for line in _lines(row)]
        columns = ["network", "images", "ms", "ratio", "ratio of processor time", "of peak", "RAM, MB", "reason"]
        around = environment_line(measured["circumstances"])
        parts += [
            f"## {measured['group'].replace(',', ', ')}: {measured['backend']}, {measured['precision']}",
            markdown_table(columns, rows),
            f"{measured['rounds']} rounds, {_busy(measured)}; {around}",
        ]
    parts += [
        "## Activations",
        "The least memory for activations of one image, in thousands of numbers, when each is given back after its "
        "last use, a ReLU and an addition write over their input, and other operations have outputs of their own.",
        markdown_table(
            ["network", "peak", "at", "peak after the first pooling", "million MACs"],
            [
                [
                    name,
                    *_peak(row["peak"]),
                    f"{row['behind_pooling']['numbers'] / 1e3:,.1f}",
                    f"{row['multiply_adds'] / 1e6:,.0f}",
                ]
                for name, row in facts["activations"].items()
            ],
        ),
    ]
    return "\n\n".join(parts)


def _lines(row: Mapping[str, Any]) -> list[list[str]]:
    if row["reason"]:
        return [[row["network"], "", "", "", "", "", "", row["reason"]]]
    return [
        [
            row["network"],
            batch,
            f"{1e3 * timing['seconds']:.4g}",
            _ratio(timing["ratio"], timing["ratio_quartiles"]),
            _ratio(timing["processor_ratio"], timing["processor_ratio_quartiles"]),
            f"{timing['of_peak']:.2f}",
            f"{row['running_bytes'][batch] / 1e6:.1f}",
            "",
        ]
        for batch, timing in row["latency"].items()
    ]


def _ratio(middle: float, quartiles: Sequence[float]) -> str:
    return f"{middle:.3f} ({quartiles[0]:.3f} to {quartiles[1]:.3f})"


def _peak(live: Mapping[str, Any]) -> tuple[str, str]:
    return f"{live['numbers'] / 1e3:,.1f}", f"{live['step']}, {'x'.join(map(str, live['shape']))}"


def _activations(subject: Subject) -> dict[str, Any]:
    """The peak of the whole network, and of what follows the pooling of an ImageNet stem, if it has one."""
    found = live_activations(subject.model, subject.card.input_size)

    def largest(steps: Sequence[Live]) -> dict[str, Any]:
        return asdict(max(steps, key=lambda live: live.numbers))

    pooled = next((index for index, live in enumerate(found) if live.step == "max_pool2d"), None)
    behind = found if pooled is None or subject.card.input_size[-1] < 64 else found[pooled + 1 :]
    return {"peak": largest(found), "behind_pooling": largest(behind), "multiply_adds": subject.multiply_adds}


def _known(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"study": "runtimes", "title": TITLE, "measured": [], "activations": {}}
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for each in facts["measured"]:
            _place(each)
        return {**facts, "activations": dict(facts["activations"])}
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} does not hold measurements of runtimes.py; mend or delete it") from error


def _place(measured: Mapping[str, Any]) -> tuple[object, ...]:
    return (*(measured[key] for key in ("group", "backend", "precision")), machine_name(measured["circumstances"]))


if __name__ == "__main__":
    try:
        tyro.cli(Runtimes).run(print)
    except DiracNetsError as error:
        sys.exit(f"runtimes.py: {error}")
