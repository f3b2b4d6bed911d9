"""`diracnets eval`: accuracy of a trained network, scores by class, and its most confident errors."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import note, stdout, table
from diracnets.errors import MissingExtraError, UsageError
from diracnets.files import written_whole
from diracnets.places import check_folder

if TYPE_CHECKING:
    from diracnets.data.images import ImageData
    from diracnets.evaluation.metrics import Evaluation

_CLASSES_SHOWN = 20
_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


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
    """Also write to this folder: evaluation.json, the confusion matrix (confusion.png), and the images of the most
    confident errors (errors.png)."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON only."""

    def execute(self) -> None:
        """Evaluate, print the results, and write them to `out` if given."""
        if self.worst < 0:
            raise UsageError(f"--worst is {self.worst}; it must be 0 or more")
        if self.out is not None:
            check_folder(self.out)
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
        from diracnets.evaluation.plots import draw_confusion, draw_errors

        numbers, confusion, errors = out / "evaluation.json", out / "confusion.png", out / "errors.png"
        with written_whole(numbers) as part:
            part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        accuracy = f"accuracy {evaluation.top1:.2%} on {evaluation.count:,} images, {data.name}"
        title = f"{'/'.join(self.file.parts[-3:])}: {accuracy}"
        try:
            draw_confusion(evaluation.confusion, data.classes, confusion, title=title)
            if self.worst:
                draw_errors(evaluation.worst, data.val, data.classes, errors, title=title)
        except MissingExtraError as error:
            note(f"wrote {numbers}; no figures: {error}")
        else:
            note(f"wrote {numbers}, {confusion}" + (f" and {errors}" if self.worst else ""))


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
            {
                "class": classes[row.label],
                "images": row.count,
                "predicted": row.predicted,
                "correct": row.correct,
                **{name: _number(getattr(row, name)) for name in ("precision", "recall", "f1")},
            }
            for row in evaluation.per_class
        ],
        "thresholds": [
            {"threshold": threshold, "answered": answered, "accuracy": _number(accuracy)}
            for threshold in _THRESHOLDS
            for answered, accuracy in [evaluation.at_threshold(threshold)]
        ],
        "confusion": evaluation.confusion.tolist(),
        "worst": [
            dataclasses.asdict(mistake) | {"true": classes[mistake.true], "predicted": classes[mistake.predicted]}
            for mistake in evaluation.worst
        ],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def _show(evaluation: Evaluation, data: ImageData, views: str) -> None:
    console, classes = stdout(), data.classes
    top5 = f"top-5 {evaluation.top5:.2%}, " if len(classes) > 5 else ""  # of five, all are among the first five
    console.print(
        f"{data.name}, {evaluation.count:,} held-out images: top-1 {evaluation.top1:.2%}, {top5}"
        f"loss {evaluation.loss:.4f}{'' if views == 'one' else f', views {views}'}\n"
    )
    ranked = sorted(evaluation.per_class, key=lambda row: 2.0 if math.isnan(row.f1) else row.f1)
    shown, title = ranked, "By class, lowest F1 first"
    if len(ranked) > _CLASSES_SHOWN:
        shown = ranked[:_CLASSES_SHOWN]
        title = f"The {_CLASSES_SHOWN} of {len(ranked)} classes with the lowest F1 (--json for all)"
    rows = [
        [classes[row.label], row.count, row.correct, *map(_percent, (row.precision, row.recall, row.f1))]
        for row in shown
    ]
    console.print(title, style="bold")
    console.print(table(["class", "images", "correct", "precision", "recall", "F1"], rows))
    console.print()
    console.print(
        "With predict --threshold: images that have an answer, and the part of these that is right", style="bold"
    )
    chosen = [[f"{each:g}", *map(_percent, evaluation.at_threshold(each))] for each in _THRESHOLDS]
    console.print(table(["threshold", "answered", "accuracy"], chosen))
    if evaluation.worst:
        mistakes = [
            [mistake.name, classes[mistake.true], classes[mistake.predicted], f"{mistake.probability:.1%}"]
            for mistake in evaluation.worst
        ]
        console.print()
        console.print("Most confident errors", style="bold")
        console.print(table(["image", "label", "prediction", "confidence"], mistakes))
