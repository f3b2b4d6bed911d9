"""The images that a trained network is for: by default those that it was trained on, and never others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.data.load import STREAMED, data_names, load_data
from diracnets.data.tree import composed
from diracnets.errors import DataError, FileError, UsageError


def own_data(
    file: Path,
    card: ModelCard | None,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    device: torch.device,
    workers: int | None = None,
) -> ImageData:
    """Load the images for a network, normalized as it wants them.

    Args:
        file: that the network was read from; its run folder, where it lies in one, says where the images are.
        card: of the network, where it has one.
        data: a name of `data_names`; by default what the network was trained on.
        data_dir: where the images are; by default where they were for the run that the file lies in.
        device: where the images are to be.
        workers: processes that decode images of a folder or of shards.

    Raises:
        UsageError: it is not known what the network was trained on, or where that is; or the network is for images of
            other classes or another size, so that numbers would mean nothing.
        DataError, FileError: images or files that cannot be read.
    """
    known = None if card is None or card.data is None else card.data.name
    name = data or known
    if name is None or (data is None and name not in data_names()):
        was = "does not say what it was trained on" if name is None else f"was trained on {name}"
        raise UsageError(f"{file} {was}: give --data ({', '.join(data_names())}), and --data-dir for where it is")
    where = data_dir
    if where is None and name == known and (recorded := RunRecord.read(file.parent).data_dir):
        where = Path(recorded)
    if where is None and name in STREAMED:
        raise UsageError(f"which {name} to evaluate on is not known: give --data-dir")
    size = card.input_size[-1] if card and name in STREAMED else None
    skip = _skipped(card) if name in STREAMED else 0.0
    try:
        images = load_data(name, data_dir=where, image_size=size, device=device, workers=workers, skip_unreadable=skip)
    except (DataError, FileError) as error:
        if data_dir is not None or name == "digits":
            raise
        raise type(error)(f"{error}; give --data-dir if the images are elsewhere") from error
    if card is not None:
        _check(card, images, file)
        images = images.normalized(card.mean, card.std)
    return images


def _skipped(card: ModelCard | None) -> float:
    """Which part of the images might be left out of training as unreadable."""
    settings = dict(card.recipe or {}).get("data") if card is not None else None
    skip = settings.get("skip_unreadable") if isinstance(settings, Mapping) else None
    return skip if isinstance(skip, float) and 0 <= skip < 1 else 0.0


def _check(card: ModelCard, data: ImageData, file: Path) -> None:
    """Refuse images that the network was not made for: its numbers would mean nothing."""
    classes = tuple(map(composed, card.classes))  # earlier versions took names as the file system has them
    if classes and classes != data.classes:
        pairs = zip(classes, data.classes, strict=False)
        first = next((f"{mine!r} where {data.name} has {theirs!r}" for mine, theirs in pairs if mine != theirs), "")
        counts = f"{len(card.classes)} classes where {data.name} has {len(data.classes)}"
        raise UsageError(f"{file} has other classes than {data.name}: {first or counts}; choose its own data")
    if card.input_size != data.input_size:
        sizes = ["x".join(map(str, size)) for size in (card.input_size, data.input_size)]
        raise UsageError(f"{file} takes images of {sizes[0]}, those of {data.name} are {sizes[1]}; choose its own data")
