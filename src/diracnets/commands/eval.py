"""`diracnets eval`: accuracy of a trained network, by class, and its most confident errors."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import note, stdout, table
from diracnets.errors import UsageError
from diracnets.files import written_whole

if TYPE_CHECKING:
    from diracnets.data.images import ImageData
    from diracnets.evaluation.metrics import Evaluation

_CLASSES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a trained network on the held-out images of a data set."""

    file: Positional[Path]
    """A model file (.safetensors), a checkpoint, a run folder (its best checkpoint), or a name from `diracnets models
    --trained`."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100, folder, shards or parquet; by default the data the network was trained on."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of the images, or where the shards are; by default the one that the file's training run used."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""
    batch_size: int = 256
    """Images per batch."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Worker processes that decode images from a folder, shards or Parquet; by default one per core, at most 4."""
    views: Literal["one", "mirror", "mirror-shift"] = "one"
    """Test-time augmentation. mirror: average the predictions for each image and its mirror image; mirror-shift: also
    for both shifted by a pixel."""
    worst: int = 10
    """How many of the most confident errors to list."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Also write evaluation.json and the confusion matrix, confusion.png, to this folder."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON only."""

    def execute(self) -> None:
        """Evaluate, print the results, and write them to `out` if given."""
        if self.worst < 0:
            raise UsageError(f"--worst is {self.worst}; it must be 0 or more")
        from diracnets.artifacts.card import card_of
        from diracnets.artifacts.load import load
        from diracnets.evaluation.metrics import evaluate
        from diracnets.evaluation.own_data import own_data
        from diracnets.runtime.device import choose_device

        device = choose_device(self.device)
        file = network_file(self.file)
        model = load(file, device)
        card = card_of(model)
        data = own_data(file, card, data=self.data, data_dir=self.data_dir, device=device, workers=self.workers)
        for line in data.notes:
            note(line)
        evaluation = evaluate(model, data.val, batch_size=self.batch_size, views=self.views, worst=self.worst)
        summary = _summary(evaluation, data, file, self.views)
        if self.json:
            print(json.dumps(summary, indent=2))
        else:
            _show(evaluation, data, self.views)
            if self.out is None:
                note("for the confusion matrix, add --out FOLDER (a figure) or --json (its numbers)")
        if self.out is not None:
            self._write(summary, evaluation, data, self.out)

    def _write(self, summary: dict[str, Any], evaluation: Evaluation, data: ImageData, out: Path) -> None:
        from diracnets.training.plots import draw_confusion

        with written_whole(out / "evaluation.json") as part:
            part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        draw_confusion(evaluation.confusion, data.classes, out / "confusion.png")
        note(f"wrote {out / 'evaluation.json'} and {out / 'confusion.png'}")


def _summary(evaluation: Evaluation, data: ImageData, file: Path, views: str) -> dict[str, Any]:
    """Plain values for JSON, with class names instead of numbers."""
    classes = data.classes
    return {
        "file": str(file),
        "data": data.name,
        "images": evaluation.count,
        "views": views,
        "top1": evaluation.top1,
        "top5": evaluation.top5 if len(classes) > 5 else None,
        "loss": evaluation.loss,
        "classes": [
            {"class": classes[row.label], "images": row.count, "correct": row.correct} for row in evaluation.per_class
        ],
        "confusion": evaluation.confusion.tolist(),
        "worst": [
            dataclasses.asdict(mistake) | {"true": classes[mistake.true], "predicted": classes[mistake.predicted]}
            for mistake in evaluation.worst
        ],
    }


def _show(evaluation: Evaluation, data: ImageData, views: str) -> None:
    console, classes = stdout(), data.classes
    top5 = f"top-5 {evaluation.top5:.2%}, " if len(classes) > 5 else ""  # of five, all are among the first five
    console.print(
        f"{data.name}, {evaluation.count:,} held-out images: top-1 {evaluation.top1:.2%}, {top5}"
        f"loss {evaluation.loss:.4f}{'' if views == 'one' else f', views {views}'}\n"
    )
    ranked = sorted(evaluation.per_class, key=lambda row: row.accuracy if row.count else 2.0)
    shown, title = ranked, "By class, lowest accuracy first"
    if len(ranked) > _CLASSES_SHOWN:
        shown = ranked[:_CLASSES_SHOWN]
        title = f"The {_CLASSES_SHOWN} of {len(ranked)} classes with the lowest accuracy (--json for all)"
    rows = [[classes[row.label], row.count, row.correct, f"{row.accuracy:.2%}"] for row in shown]
    console.print(title, style="bold")
    console.print(table(["class", "images", "correct", "accuracy"], rows))
    if evaluation.worst:
        mistakes = [
            [mistake.name, classes[mistake.true], classes[mistake.predicted], f"{mistake.probability:.1%}"]
            for mistake in evaluation.worst
        ]
        console.print()
        console.print("Most confident errors", style="bold")
        console.print(table(["image", "label", "prediction", "confidence"], mistakes))
