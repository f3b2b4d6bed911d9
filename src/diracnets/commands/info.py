"""`diracnets info`: the layers, size and cost of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import FlagCreatePairsOff, Positional

from diracnets.commands.output import say, stdout, table
from diracnets.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from diracnets.evaluation.info import Info as Description


_SECTIONS = {
    "architecture": "architecture",
    "trained on": "data",
    "recipe": "recipe",
    "fold": "fold",
    "origin": "provenance",
}  # of the card


@dataclass(frozen=True)
class Info:
    """Show the layers, parameters, MACs, receptive field, sizes and origin of a network or file."""

    model: Positional[str]
    """The name of a network, such as diracnet-28-1, or of a trained one; or a model file, a checkpoint, or a run folder
    (its best checkpoint, after a list of all its checkpoints)."""
    short: FlagCreatePairsOff[bool] = False
    """Leave out the table of layers and what the file says of its training."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON only."""

    def execute(self) -> None:
        """Print the table of layers, the totals and the model card."""
        from diracnets.evaluation.info import describe

        if self.short and self.json:
            raise UsageError("--short and --json cannot be combined; give one of them")
        checkpoints = [] if self.short else self.checkpoints()
        console = stdout()
        if checkpoints and not self.json:
            console.print(table(["checkpoint", "epochs", "batches", "size", "state"], list(map(_row, checkpoints))))
            console.print()
        info = describe(self.model)
        if self.json:
            listed = {"checkpoints": checkpoints} if checkpoints else {}
            print(json.dumps({**info.to_data(), **listed}, indent=2))
            return
        if not self.short:
            rows = [
                [
                    layer.name,
                    layer.type,
                    _size(layer.output_shape),
                    layer.parameters,
                    layer.multiply_adds,
                    _size(layer.receptive_field) if layer.receptive_field else "all",
                ]
                for layer in info.layers
            ]
            console.print(table(["layer", "type", "output", "parameters", "MACs", "receptive field"], rows))
            console.print()
        for name, value in _totals(info):
            say(f"{name:<16} {value}")
        if info.card is not None and not self.short:
            card = info.card.to_data()
            for title, key in _SECTIONS.items():
                _tree(console, title, card[key] or {})

    def checkpoints(self) -> list[dict[str, Any]]:
        """Those of a run folder, the earliest first, last.pt and best.pt at the end; each is read and verified."""
        run = Path(self.model)
        if not run.is_dir():
            return []
        from diracnets.training.checkpoints import Checkpoints

        return [
            {
                "file": kept.path.relative_to(run).as_posix(),
                "bytes": kept.size,
                "epochs": None if kept.position is None else kept.position.epochs,
                "batches": None if kept.position is None else kept.position.batches,
                "damage": kept.damage,
            }
            for kept in Checkpoints(run).listed()
        ]


def _row(checkpoint: Mapping[str, Any]) -> list[Any]:
    done = ["", ""] if checkpoint["damage"] else [checkpoint["epochs"], checkpoint["batches"]]
    return [checkpoint["file"], *done, _bytes(checkpoint["bytes"]), "damaged" if checkpoint["damage"] else "whole"]


def _totals(info: Description) -> list[tuple[str, str]]:
    folded = "" if info.folded_parameters == info.parameters else f", {info.folded_parameters:,} after folding"
    sizes = ", ".join(f"{_bytes(size)} in {dtype}" for dtype, size in info.weight_bytes.items())
    totals = [
        ("name", f"{info.name} ({info.kind})"),
        ("input", _size(info.input_size)),
        ("parameters", f"{info.parameters:,}{folded}"),
        ("MACs", f"{info.multiply_adds:,} per image"),
        ("receptive field", f"{_size(info.receptive_field)} pixels" if info.receptive_field else "the whole image"),
        ("folded weights", sizes),
    ]
    if info.file_bytes is not None:
        totals.append(("file", _bytes(info.file_bytes)))
    card = info.card
    if card is not None and card.classes:
        more = ", ..." if len(card.classes) > 12 else ""
        totals.append(("classes", f"{len(card.classes)}: {', '.join(card.classes[:12])}{more}"))
    if card is not None:
        totals.append(("normalization", f"mean {_numbers(card.mean)}, std {_numbers(card.std)} for pixels from 0 to 1"))
    return totals


def _tree(console: Console, title: str, values: Mapping[str, Any], indent: int = 0) -> None:
    """Print nested values, one per line; unknown ones are left out."""
    known = {key: value for key, value in values.items() if value is not None}
    if not known:
        return
    console.print(" " * indent + title)
    for key, value in known.items():
        if isinstance(value, Mapping):
            _tree(console, key, value, indent + 2)
        else:
            text = f"{value:.6g}" if isinstance(value, float) else value
            say(f"{' ' * (indent + 2)}{key:<{max(18 - indent, 1)}} {text}")


def _size(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _bytes(count: int) -> str:
    """A size in bytes, kB, MB or GB.

    >>> _bytes(812), _bytes(688_168), _bytes(36_423_050 * 4)
    ('812 bytes', '688.2 kB', '145.7 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
