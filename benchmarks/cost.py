"""What a training step with the Dirac parameterization costs, next to other ways to train a chain, and inference.

python benchmarks/cost.py --networks 28-1:128 --precisions float32 bfloat16
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import blocks
import torch
import tyro
from cost_page import CHAIN, QUESTION, TITLE, draw, known_measurements, page, table, with_new
from timing import Work, interleaved
from torch import nn
from tyro.conf import FlagCreatePairsOff, arg

from diracnets import fold
from diracnets.analysis.report import write_report, write_text
from diracnets.errors import DiracNetsError, UsageError
from diracnets.models.build import build_model
from diracnets.models.names import parse
from diracnets.models.network import Network
from diracnets.runtime.device import choose_device
from diracnets.runtime.environment import circumstances

Variant = Literal["dirac", "layer by layer", "composed", "repvgg", "dbb", "paired", "residual"]
OTHERS: tuple[Variant, ...] = ("dirac", "layer by layer", "composed", "repvgg", "dbb", "paired", "residual")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What does a training step cost against the plain network's, in time and memory, and what does inference?

    Steps of all networks are interleaved, and their order turns with every round, so that what else the machine does
    falls on all of them alike. What was measured before, of other networks or circumstances, stays in the table."""

    networks: tuple[str, ...] = ("28-1:128",)
    """Size and batch, as in 28-10:128, or 18:64 for images of ImageNet's size, for which there is no RepVGG."""
    variants: tuple[Variant, ...] = OTHERS
    """What is measured besides the plain network and the folded chain."""
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Arithmetic of convolutions; bfloat16 by autocast."""
    rounds: int = 21
    """Steps, and passes of inference, of each network."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile all networks with torch.compile."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Where cost.json, cost.md and cost.png go."""

    def run(self, say: Callable[[str], None]) -> None:
        """Measure, and write cost.json, cost.md and cost.png.

        Raises:
            UsageError: a size that no network has, or numbers that make no sense.
        """
        if self.rounds < 2:
            raise UsageError(f"rounds is {self.rounds}; at least 2 are needed to tell their spread")
        if not (self.networks and self.precisions):
            raise UsageError("nothing is asked for: give at least one of --networks and of --precisions")
        sizes = [_size(network) for network in self.networks]
        device = choose_device(self.device)
        around = circumstances(device)
        facts: dict[str, Any] = {"study": "cost", "title": TITLE, "question": QUESTION, "measured": []}
        for size, batch in sizes:
            for precision in self.precisions:
                rows = self._measure(size, batch, precision, device)
                if absent := {"plain", *self.variants} - {row["variant"] for row in rows}:
                    say(f"there is no {', '.join(sorted(absent))} of {size}")
                say(table(rows))
                new = {"circumstances": around, "compiled": self.compile, "rounds": self.rounds, "rows": rows}
                facts["measured"] = with_new(known_measurements(self.out / "cost.json"), new)
                write_text(self.out / "cost.json", json.dumps(facts, indent=2))  # kept if stopped
        measured = facts["measured"]
        inches = (11, 4 + 0.8 * len(measured))
        write_report(self.out, facts, page, lambda figure: draw(figure, measured), inches, say)

    def _measure(
        self, size: str, batch: int, precision: Literal["float32", "bfloat16"], device: torch.device
    ) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        names = dict.fromkeys(("plain", *self.variants))
        nets: dict[str, Any] = {
            name: _network(name, size) for name in names if name != "repvgg" or not parse(f"plain-{size}").imagenet
        }
        nets[CHAIN] = fold(_network("dirac", size).eval())
        _, side, _ = nets["plain"].input_size
        classes = nets["plain"].num_classes
        works = {
            name: Work(
                net,
                batch,
                image_size=side,
                classes=classes,
                precision=precision,
                device=device,
                compile=self.compile,
            )
            for name, net in nets.items()
        }
        trained = {name: work for name, work in works.items() if name != CHAIN}
        steps = interleaved({name: work.step for name, work in trained.items()}, self.rounds, device)
        passes = interleaved({name: work.infer for name, work in works.items()}, self.rounds, device)
        place = {"network": size, "batch": batch, "precision": precision}
        weights = sum(p.nbytes for p in nets["plain"].parameters() if p.ndim == 4)
        saved = {name: work.saved_bytes() for name, work in trained.items()}
        rows = []
        for name, work in works.items():
            row = {**place, "variant": name, "parameters": sum(p.numel() for p in work.net.parameters())}
            if name in trained:
                row |= _compared("step", steps[name], steps["plain"])
                row["saved_mb"] = round(saved[name] / 1e6, 2)
                row["saved_beyond_plain_in_weights"] = round((saved[name] - saved["plain"]) / weights, 3)
            row |= _compared("inference", passes[name], passes[CHAIN])
            rows.append(row)
        return rows


def _network(variant: str, size: str) -> Network:
    families = {"plain": "plain", "dirac": "diracnet", "repvgg": "repvgg"}
    families["residual"] = "resnet" if parse(f"plain-{size}").imagenet else "wrn"
    if variant in families:
        return build_model(f"{families[variant]}-{size}")
    made: dict[str, Callable[[int, int], nn.Module]] = {
        "layer by layer": blocks.dirac_block,
        "composed": blocks.composed_block,
        "dbb": blocks.DiverseBlock,
        "paired": blocks.PairedBlock,
    }
    return blocks.network_of(made[variant], size)


def _size(network: str) -> tuple[str, int]:
    """'28-1:128' -> ('28-1', 128)."""
    size, colon, batch = network.partition(":")
    if not colon or not batch.isdecimal() or int(batch) < 2:
        raise UsageError(f"{network!r} does not say size and batch; write it as 28-1:128, with a batch of at least 2")
    if parse(f"plain-{size}").family == "sprint":
        raise UsageError(f"{network}: the other variants have no sprint; write depth and width, as in 28-1:128")
    return size, int(batch)


def _compared(kind: str, seconds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The median, and median and quartiles of the rounds' ratios."""
    low, ratio, high = statistics.quantiles([mine / other for mine, other in zip(seconds, others, strict=True)], n=4)
    return {
        f"{kind}_ms": float(f"{1e3 * statistics.median(seconds):.4g}"),
        f"{kind}_ratio": round(ratio, 4),
        f"{kind}_ratio_quartiles": [round(low, 4), round(high, 4)],
    }


if __name__ == "__main__":
    try:
        tyro.cli(Cost).run(print)
    except DiracNetsError as error:
        sys.exit(f"cost.py: {error}")
