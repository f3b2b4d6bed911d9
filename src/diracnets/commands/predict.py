"""`diracnets predict`: images in, names out."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.commands.files import network_file
from diracnets.commands.output import note, stdout, table
from diracnets.errors import DataError, FileError, UsageError, printable, some_of

if TYPE_CHECKING:
    from diracnets.artifacts.card import ModelCard
    from diracnets.evaluation.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images with a model file, a checkpoint or a trained network that comes with diracnets.

    The file says how to scale and normalize them."""

    file: Positional[Path]
    """Model file (.safetensors) or checkpoint, a run folder, for its best checkpoint, or a name that `diracnets models
    --trained` lists."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="")]] = ()
    """Image files, folders of them, patterns such as 'photos/*.jpg', or - for an image that is piped in."""
    top: int = 5
    """How many classes to list for each image."""
    batch_size: int = 32
    """Images at a time."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON: a list with an object for each image."""
    csv: FlagCreatePairsOff[bool] = False
    """Print CSV: a line for each image and class, the likeliest first."""

    def execute(self) -> None:
        """Print the predictions; images that cannot be read are named, left out, and in the end an error."""
        if not self.images:
            raise UsageError("predict needs images after the model file: files, folders or patterns")
        if self.json and self.csv:
            raise UsageError("--json and --csv exclude each other; leave one out")
        from diracnets.evaluation.predict import Predictor

        predictor = Predictor(network_file(self.file), device=self.device)
        unreadable: list[DataError | FileError] = []
        answers = predictor.predict(
            self.images,
            top=self.top,
            batch_size=self.batch_size,
            on_unreadable=lambda _, error: unreadable.append(error),
            on_note=note,
        )
        if found := list(answers):
            self._print(found)
            note(_known(predictor.card))
        if len(unreadable) == 1 and not found:
            raise unreadable[0]
        if unreadable:
            for error in unreadable:
                note(str(error))
            others = "the others are classified" if found else "nothing is left to classify"
            raise DataError(f"{len(unreadable)} of {len(unreadable) + len(found)} images cannot be read; {others}")

    def _print(self, found: list[Prediction]) -> None:
        if self.json:
            print(json.dumps([asdict(prediction) for prediction in found], indent=2))
            return
        if self.csv:
            lines = csv.writer(sys.stdout, lineterminator="\n")
            lines.writerow(["image", "rank", "label", "probability"])
            for each in found:
                name = printable(each.name) if sys.stdout.isatty() else each.name
                lines.writerows([name, rank, *one] for rank, one in enumerate(each.top, start=1))
            return
        places = range(max(len(each.top) for each in found))
        rows = [[each.name, *(f"{label} {probability:.1%}" for label, probability in each.top)] for each in found]
        stdout().print(table(["image", *(str(place + 1) for place in places)], rows))


def _known(card: ModelCard) -> str:
    """What an answer cannot say: that an image shows something else."""
    grey = "; it takes grey images, and sees no colours" if card.input_size[0] == 1 else ""
    if not card.classes:
        return f"the file does not name the network's classes: they are numbered from 0{grey}"
    return (
        f"the network knows {len(card.classes)} classes only ({some_of(card.classes)}): "
        f"whatever an image shows, one of them is the answer{grey}"
    )
