"""What the Dirac parameterization costs in training, beside other ways to train a chain, and what its chain saves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diracnets.errors import UsageError
from diracnets.studies.picture import save_picture
from diracnets.studies.report import markdown_table, told, write_json, write_text

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import nn

Variant = Literal["dirac", "layer by layer", "composed", "repvgg", "dbb", "paired", "residual"]
TITLE = "What training and inference cost"
QUESTION = "What does a step of training cost, against the same plain network's, and what does inference?"
VARIANTS: dict[str, str] = {  # in the order of the table
    "plain": "ordinary convolutions",
    "dirac": "Dirac convolutions, the weights of all layers computed together",
    "layer by layer": "Dirac convolutions, each computes its own, as in a model that `diracify` changed",
    "composed": "the formula as it is written, with a dense identity, differentiated by autograd",
    "repvgg": "RepVGG: 3x3, 1x1 and identity, each with a batch norm",
    "dbb": "diverse branch blocks: four branches with six convolutions",
    "paired": "VanillaNet's pairs: a second, 1x1 convolution behind each, with an activation that fades",
    "residual": "the wide ResNet of the same depth and width, which stays as it is at inference",
}
CHAIN = "folded chain"
OTHERS: tuple[Variant, ...] = ("dirac", "layer by layer", "composed", "repvgg", "dbb", "paired", "residual")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What does a training step cost against the plain network's, in time and memory, and what does inference?

    Steps of all networks are interleaved, and their order turns with every round, so that what else the machine does
    falls on all of them alike."""

    networks: tuple[str, ...] = ("28-1:128",)
    """Depth, width and batch, as in 28-10:128."""
    variants: tuple[Variant, ...] = OTHERS
    """What is measured beside the plain network and the folded chain."""
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
        sizes = [_size(network) for network in self.networks]
        from diracnets.training.devices import choose_device
        from diracnets.training.environment import circumstances

        device = choose_device(self.device)
        rows: list[dict[str, Any]] = []
        for size, batch in sizes:
            for precision in self.precisions:
                rows += self._measure(size, batch, precision, device)
                say(_table(rows[-len(self.variants) - 2 :]))
        facts = {
            "study": "cost",
            "title": TITLE,
            "question": QUESTION,
            "circumstances": circumstances(device),
            "compiled": self.compile,
            "rounds": self.rounds,
            "rows": rows,
        }
        write_json(self.out / "cost.json", facts)
        drawn = save_picture(self.out / "cost.png", lambda figure: draw(figure, rows), 10, 5, say)
        write_text(self.out / "cost.md", page(facts, picture=drawn))

    def _measure(
        self, size: str, batch: int, precision: Literal["float32", "bfloat16"], device: torch.device
    ) -> list[dict[str, Any]]:
        import torch

        from diracnets.nn.fold import fold
        from diracnets.studies.timing import Work, interleaved

        torch.manual_seed(0)
        nets = {name: _network(name, size) for name in dict.fromkeys(("plain", *self.variants))}
        nets[CHAIN] = fold(_network("dirac", size).eval())
        works = {
            name: Work(net, batch, precision=precision, device=device, compile=self.compile)
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


def page(facts: Mapping[str, Any], *, picture: bool) -> str:
    """The study in Markdown."""
    used = {row["variant"] for row in facts["rows"]}
    parts = [f"# {TITLE}", QUESTION]
    parts.append("\n".join(f"- *{name}*: {text}" for name, text in VARIANTS.items() if name in used))
    if picture:
        parts.append("![Time of a step and of inference](cost.png)")
    parts.append(_table(facts["rows"]))
    how = "compiled by torch.compile" if facts["compiled"] else "eager"
    parts.append(
        f"Medians of {facts['rounds']} interleaved rounds, {how}, channels_last, random images of 32x32; in brackets "
        "the quartiles of the rounds' ratios. *Kept for backward* is what the forward pass of a training step holds "
        "beside the parameters; *beyond plain*, how much more than the plain network's that is, in sizes of all its "
        f"filters. Inference is against the {CHAIN}. {told(facts['circumstances'])}"
    )
    return "\n\n".join(parts)


def draw(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Ratios as bars: of a step to the plain network's, and of inference to the chain's."""
    places = list(dict.fromkeys((row["network"], row["batch"], row["precision"]) for row in rows))
    names = [name for name in (*VARIANTS, CHAIN) if any(row["variant"] == name for row in rows)]
    height = 0.8 / len(places)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, against in zip(panels, ("step", "inference"), ("plain", CHAIN), strict=True):
        for number, place in enumerate(places):
            here = [row for row in rows if (row["network"], row["batch"], row["precision"]) == place]
            ratios = {row["variant"]: row[f"{kind}_ratio"] for row in here if f"{kind}_ratio" in row}
            at = [names.index(name) + number * height for name in ratios]
            label = f"{place[0]}, batch {place[1]}, {place[2]}"
            axes.barh(at, list(ratios.values()), height, label=label)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{kind}, times that of {against}")
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=8)


def _network(variant: str, size: str) -> nn.Module:
    from diracnets.models.registry import create_model
    from diracnets.studies import blocks

    families = {"plain": "plain", "dirac": "diracnet", "repvgg": "repvgg", "residual": "wrn"}
    if variant in families:
        return create_model(f"{families[variant]}-{size}")
    made: dict[str, Callable[[int, int], nn.Module]] = {
        "layer by layer": blocks.dirac_block,
        "composed": blocks.composed_block,
        "dbb": blocks.DiverseBlock,
        "paired": blocks.PairedBlock,
    }
    return blocks.network_of(made[variant], size)


def _size(network: str) -> tuple[str, int]:
    """'28-1:128' -> ('28-1', 128)."""
    from diracnets.models.names import parse

    size, colon, batch = network.partition(":")
    if not colon or not batch.isdecimal() or int(batch) < 2:
        raise UsageError(f"{network!r} does not say size and batch; write it as 28-1:128, with a batch of at least 2")
    if parse(f"plain-{size}").factor is None:
        raise UsageError(f"{size} has no width; write {size}-1")
    return size, int(batch)


def _compared(kind: str, seconds: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Median, the ratio of medians, and the quartiles of the rounds' ratios."""
    quartiles = statistics.quantiles([mine / other for mine, other in zip(seconds, others, strict=True)], n=4)
    return {
        f"{kind}_ms": float(f"{1e3 * statistics.median(seconds):.4g}"),
        f"{kind}_ratio": round(statistics.median(seconds) / statistics.median(others), 4),
        f"{kind}_ratio_quartiles": [round(quartiles[0], 4), round(quartiles[2], 4)],
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        "network",
        "batch",
        "precision",
        "variant",
        "parameters",
        "step, ms",
        "against plain",
        "kept for backward, MB",
        "beyond plain",
        "inference, ms",
        "against the chain",
    ]
    return markdown_table(columns, map(_line, rows))


def _line(row: Mapping[str, Any]) -> list[str]:
    step = "step_ms" in row
    return [
        row["network"],
        str(row["batch"]),
        row["precision"],
        row["variant"],
        f"{row['parameters']:,}",
        f"{row['step_ms']:.1f}" if step else "",
        _ratio(row, "step") if step else "",
        f"{row['saved_mb']:,.1f}" if step else "",
        f"{row['saved_beyond_plain_in_weights']:.2f}" if step else "",
        f"{row['inference_ms']:.1f}",
        _ratio(row, "inference"),
    ]


def _ratio(row: Mapping[str, Any], kind: str) -> str:
    low, high = row[f"{kind}_ratio_quartiles"]
    return f"{row[f'{kind}_ratio']:.3f} ({low:.3f} to {high:.3f})"
