"""What cost.py measured: kept from call to call, as a page and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from textwrap import fill
from typing import TYPE_CHECKING, Any

from diracnets.analysis.report import environment_line, machine_name, markdown_table
from diracnets.errors import FileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "What training and inference cost"
QUESTION = "What does a step of training cost, against the same plain network's, and what does inference?"
VARIANTS: dict[str, str] = {  # in the order of the table
    "plain": "ordinary convolutions",
    "dirac": "Dirac convolutions, the weights of all layers computed together; over small maps, in bfloat16 on a CPU "
    "with AMX, they also compute their filters' gradient faster than ordinary ones do",
    "layer by layer": "Dirac convolutions, each computes its own, as in a model that `diracify` changed",
    "composed": "the formula as it is written, with a dense identity, differentiated by autograd",
    "repvgg": "RepVGG: 3x3, 1x1 and identity, each with a batch norm",
    "dbb": "diverse branch blocks: four branches with six convolutions",
    "paired": "VanillaNet's pairs: a second, 1x1 convolution after each, with an activation that fades",
    "residual": "the wide ResNet of the same depth and width, which stays as it is at inference",
}
CHAIN = "folded chain"
TICKS = (0.25, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)


def known_measurements(path: Path) -> list[dict[str, Any]]:
    """What cost.json holds, nothing where there is none: networks side by side, with how they were measured.

    Raises:
        FileError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [dict(measurement) for measurement in content["measured"] if _place(measurement)]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FileError(f"{path} does not hold measurements of cost.py; mend or delete it") from error


def with_new(known: Sequence[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """All measurements, the new one instead of one of the same networks in the same circumstances."""
    return [*(each for each in known if _place(each) != _place(new)), new]


def page(facts: Mapping[str, Any], *, picture: bool) -> str:
    """The study in Markdown."""
    used = {row["variant"] for measurement in facts["measured"] for row in measurement["rows"]}
    parts = [f"# {TITLE}", QUESTION]
    parts.append("\n".join(f"- *{name}*: {text}" for name, text in VARIANTS.items() if name in used))
    if picture:
        parts.append("![Time of a step and of inference](cost.png)")
    parts.append(
        "Medians of interleaved rounds, and of the rounds' ratios, with the quartiles of these in brackets; "
        "channels_last, random images. "
        "*Saved activations* are what the forward pass of an eager training step keeps for the backward pass, "
        "parameters not counted; *beyond plain*, how much more than the plain network that is, in multiples of the "
        "size of all its filters. "
        f"Inference is against the {CHAIN}; no other network is folded for it."
    )
    for measurement in facts["measured"]:
        parts.append(table(measurement["rows"]))
        parts.append(
            f"{measurement['rounds']} rounds, {_how(measurement)}; {environment_line(measurement['circumstances'])}"
        )
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a variant, in Markdown."""
    columns = [
        "network",
        "batch",
        "precision",
        "variant",
        "parameters",
        "step, ms",
        "against plain",
        "saved activations, MB",
        "beyond plain",
        "inference, ms",
        "against the chain",
    ]
    return markdown_table(columns, map(_line, rows))


def draw(figure: Figure, measured: Sequence[Mapping[str, Any]]) -> None:
    """Ratios with their quartiles, logarithmic: of a step to the plain network's, of inference to the chain's."""
    used = {row["variant"] for measurement in measured for row in measurement["rows"]}
    names = [name for name in VARIANTS if name in used]
    apart = 0.7 / len(measured)
    where = list(dict.fromkeys(map(_circumstances, measured)))
    marks = [f" ({letter})" for letter, _ in zip(ascii_lowercase, where, strict=False)] if len(where) > 1 else [""]
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, against in zip(panels, ("step", "inference"), ("plain", CHAIN), strict=True):
        for number, measurement in enumerate(measured):
            rows = measurement["rows"]
            shown = [row for row in rows if f"{kind}_ratio" in row and row["variant"] != against]
            ratios = [row[f"{kind}_ratio"] for row in shown]
            low, high = zip(*(row[f"{kind}_ratio_quartiles"] for row in shown), strict=True)
            at = [names.index(row["variant"]) + (number - (len(measured) - 1) / 2) * apart for row in shown]
            label = f"{rows[0]['network']}, batch {rows[0]['batch']}, {rows[0]['precision']}"
            label += marks[where.index(_circumstances(measurement))]
            axes.hlines(at, low, high, color=f"C{number}", alpha=0.5)
            axes.plot(ratios, at, "o", color=f"C{number}", markersize=4, label=label)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        least, largest = axes.get_xlim()
        axes.set_xticks([tick for tick in TICKS if least <= tick <= largest])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel(f"{kind}, times that of {against}")
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    told = "; ".join(f"{mark[1:]} {place}".lstrip() for mark, place in zip(marks, where, strict=True))
    caption = f"Medians of interleaved rounds with their quartiles: {told}"
    figure.suptitle(fill(caption, int(figure.get_figwidth() * 16)), fontsize=8, color="gray")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _place(measurement: Mapping[str, Any]) -> tuple[object, ...]:
    row = measurement["rows"][0]
    return (
        machine_name(measurement["circumstances"]),
        measurement["compiled"],
        *(row[name] for name in ("network", "batch", "precision")),
    )


def _circumstances(measurement: Mapping[str, Any]) -> str:
    return f"{_how(measurement)}, {machine_name(measurement['circumstances'])}"


def _how(measurement: Mapping[str, Any]) -> str:
    return "compiled by torch.compile" if measurement["compiled"] else "eager"


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
