"""`diracnets predict`: classifies images."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.commands.output import note, stdout, table
from diracnets.data.progress import progress
from diracnets.errors import DataError, UsageError, printable, some_of

LOW = 0.6  # the probability of an answer below which a word is said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diracnets.artifacts.card import ModelCard
    from diracnets.evaluation.predict import Prediction


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images with a trained network.

    They are resized and normalized as the network's file says."""

    file: Positional[Path]
    """A model file (.safetensors), a checkpoint, a run folder (its best checkpoint), or a name from `diracnets models
    --trained`."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE...", help_behavior_hint="")]] = ()
    """Image files, folders, patterns such as 'photos/*.jpg', or - for an image on standard input."""
    top: int = 5
    """How many classes to list for each image."""
    threshold: float = 0.0
    """Answer "unknown" where the highest probability is below this, 0 to 1. `diracnets eval` shows which part of the
    images has an answer then, and how many of the answers are right."""
    batch_size: int = 32
    """Images per batch."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON: a list with one object per image; of one that cannot be read it holds the name and the error."""
    csv: FlagCreatePairsOff[bool] = False
    """Print CSV: one line per image and class, the most likely first."""

    def execute(self) -> None:
        """Print the predictions; images that cannot be read are listed, and are an error at the end (exit code 1)."""
        if not self.images:
            raise UsageError("predict needs images after the model file: files, folders or patterns")
        if self.json and self.csv:
            raise UsageError("--json and --csv cannot be combined; give one of them")
        from diracnets.data.image_file import SUFFIXES
        from diracnets.evaluation.given import pictures
        from diracnets.evaluation.predict import Prediction, Predictor

        if self.file.suffix.lower() in SUFFIXES:
            raise UsageError(f"{self.file} is an image: the model file comes first, and the images after it")
        predictor = Predictor(self.file, device=self.device)
        images = list(pictures(self.images, note))
        results = []
        many = len(images) > self.batch_size
        with progress("classifying") if many else nullcontext(lambda done, total: None) as report:
            for each in predictor.results(images, top=self.top, threshold=self.threshold, batch_size=self.batch_size):
                results.append(each)
                report(len(results), len(images))
        found = [each for each in results if isinstance(each, Prediction)]
        unreadable = [each.error for each in results if not isinstance(each, Prediction)]
        if self.json:
            print(json.dumps([each.to_data() for each in results], indent=2))
        elif found:
            self._print(found)
        if found:
            note(_known(predictor.card, self.threshold))
            if doubt := _doubt(found, self.threshold):
                note(doubt)
        if len(unreadable) == 1 and not found:
            raise unreadable[0]
        if unreadable:
            for error in unreadable:
                note(str(error))
            others = "the others were classified" if found else "none is left to classify"
            raise DataError(f"{len(unreadable)} of {len(results)} images cannot be read; {others}")

    def _print(self, found: list[Prediction]) -> None:
        unsure = self.threshold > 0
        if self.csv:
            lines = csv.writer(sys.stdout, lineterminator="\n")
            lines.writerow(["image", "rank", "label", "probability", *["answer"] * unsure])
            for each in found:
                name = printable(each.name) if sys.stdout.isatty() else each.name
                answer = [each.label] * unsure
                lines.writerows([name, rank, *one, *answer] for rank, one in enumerate(each.top, start=1))
            return
        places = range(max(len(each.top) for each in found))
        rows = [
            [each.name, *[each.label] * unsure, *(f"{label} {probability:.1%}" for label, probability in each.top)]
            for each in found
        ]
        stdout().print(table(["image", *["answer"] * unsure, *(str(place + 1) for place in places)], rows))


def _doubt(found: Sequence[Prediction], threshold: float) -> str | None:
    """How many answers are unknown; without a threshold, how many are of a low probability, and what to do about it."""
    unknown = sum(each.probability < threshold for each in found)
    if threshold:
        count = f"{unknown:,} of {len(found):,} images {'is' if unknown == 1 else 'are'} unknown"
        return f"{count}: no class has a probability of {threshold:g} or more"
    low = sum(each.probability < LOW for each in found)
    if not low:
        return None
    advice = "--threshold P answers unknown below P, and `diracnets eval` shows which P suits"
    if len(found) == 1:
        return f"the answer has a probability below {LOW:g}: it may be wrong, or the image of no class; {advice}"
    count = f"{low:,} of {len(found):,} answers {'has' if low == 1 else 'have'} a probability below {LOW:g}"
    return f"{count}: they may be wrong, or of images of no class; {advice}"


def _known(card: ModelCard, threshold: float) -> str:
    """A reminder that the network itself cannot answer "none of these"."""
    grey = "; it takes grayscale images and ignores colours" if card.input_size[0] == 1 else ""
    if not card.classes:
        return f"the file holds no class names: classes are numbered from 0{grey}"
    return (
        f"the network knows only {len(card.classes)} classes ({some_of(card.classes)}): "
        f"{'unless unknown, ' * (threshold > 0)}it answers with one of them whatever the image shows{grey}"
    )
