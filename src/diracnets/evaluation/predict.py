"""`predict`: images in, class names and probabilities out, from a model file alone."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard, card_of
from diracnets.artifacts.load import load
from diracnets.data.decode import SUFFIXES, to_input
from diracnets.errors import DataError, FileError, UsageError
from diracnets.runtime.device import choose_device

Picture = str | Path | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image.

    Args:
        name: the image's file, or "image 3" for the fourth one given as a picture.
        label: the likeliest class; its number where the model does not know names.
        probability: of that class, 0..1 (the network's own, not calibrated).
        top: the likeliest classes with their probabilities, likeliest first.
    """

    name: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


def predict(
    model: str | Path | nn.Module,
    images: Picture | Iterable[Picture],
    *,
    top: int = 5,
    batch_size: int = 32,
    device: str | None = None,
    on_unreadable: Callable[[str, DataError | FileError], None] | None = None,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: a file that `diracnets.load` reads, or a loaded network in evaluation mode with a `card`.
        images: one or several of: an image file, a folder (searched through for image files), a pattern such as
            "photos/*.jpg", a PIL image. They are scaled, cropped and normalized as in evaluation.
        top: how many classes to give for each image; all where there are fewer.
        batch_size: images at a time.
        device: for a model from a file, as in `choose_device`: by default the fastest that there is. A loaded network
            is used where it is.
        on_unreadable: called with the name of each image that cannot be read, and why; there is no prediction for it
            then. By default such an image is an error.

    Returns:
        A prediction for each image, in the order given; those of a folder or pattern sorted by name.

    Raises:
        UsageError: numbers below 1, a network in training mode, one that does not say which images it takes, or that
            does not classify.
        FileError: a missing or bad model file, a missing image, a pattern that matches nothing.
        DataError: an image that cannot be read, a folder without images. The message names it.

    >>> from diracnets.artifacts.card import attach_card
    >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # red, green or blue?
    >>> attach_card(network, ModelCard((3, 8, 8), mean=(0.5,) * 3, std=(0.1,) * 3, classes=("red", "green", "blue")))
    >>> predict(network, Image.new("RGB", (640, 480), "green"))[0].label
    'green'
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if isinstance(model, nn.Module):
        if device is not None:
            raise UsageError(f"device {device!r} is for models from a file; move a loaded network with .to({device!r})")
        network, called = model, f"this {type(model).__name__}"
    else:
        network, called = load(model, choose_device(device or "auto")), str(model)
    if network.training:
        raise UsageError(f"{called} is in training mode: call .eval() first")
    card = card_of(network)
    if card is None or len(card.input_size) != 3:
        raise UsageError(f"{called} does not say which size and normalization of images it takes")
    inputs = _inputs(list(_pictures(images)), card, on_unreadable)
    found: list[Prediction] = []
    while batch := list(islice(inputs, batch_size)):
        probabilities = _probabilities(network, torch.stack([image for _, image in batch]), card, called)
        for (name, _), row in zip(batch, probabilities, strict=True):
            if not torch.isfinite(row).all():
                raise DataError(f"{called} gives no finite numbers for {name}")
            found.append(_prediction(name, row, top, card.classes))
    return found


def _inputs(
    pictures: Iterable[tuple[str, Picture]],
    card: ModelCard,
    on_unreadable: Callable[[str, DataError | FileError], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    """The name of each image that can be read, and what the network gets of it."""
    channels, height, width = card.input_size
    for name, picture in pictures:
        try:
            image = to_input(picture, (channels, height, width), card.mean, card.std)
        except (DataError, FileError) as error:
            if on_unreadable is None:
                raise
            on_unreadable(name, error)
        else:
            yield name, image


@torch.inference_mode()
def _probabilities(network: nn.Module, inputs: Tensor, card: ModelCard, called: str) -> Tensor:
    """[batch, channels, height, width] -> [batch, classes], float32, on the CPU."""
    like = next(network.parameters(), inputs)
    logits = network(inputs.to(like.device, like.dtype))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(card.classes) not in (0, logits.shape[1]):
        raise UsageError(f"{called} does not classify: it gives no score for each class")
    return logits.float().softmax(dim=1).cpu()


def _prediction(name: str, probabilities: Tensor, top: int, classes: tuple[str, ...]) -> Prediction:
    values, indices = probabilities.topk(min(top, len(probabilities)))
    labels = [classes[index] if classes else str(index) for index in indices.tolist()]
    ranked = tuple(zip(labels, values.tolist(), strict=True))
    return Prediction(name, ranked[0][0], ranked[0][1], ranked)


def _pictures(images: Picture | Iterable[Picture]) -> Iterator[tuple[str, Picture]]:
    """Each image with its name, folders and patterns spelled out."""
    given = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    for index, picture in enumerate(given):
        if isinstance(picture, Image.Image):
            yield f"image {index}", picture
        elif isinstance(picture, str | Path):
            for path in _files(picture):
                yield str(path), path
        else:
            raise UsageError(f"image {index} is a {type(picture).__name__}, neither a path nor a PIL image")


def _files(given: str | Path) -> Iterator[Path]:
    path = Path(given)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)) and file.is_file())
        if not files:
            raise DataError(f"the folder {path} holds no images ({', '.join(sorted(SUFFIXES))})")
        yield from files
    elif not path.exists() and glob.has_magic(str(given)):
        matches = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute ones)
        if not matches:
            raise FileError(f"no file matches {given}")
        for match in matches:
            yield from _files(Path(match))
    elif not path.exists():
        raise FileError(f"there is no image {path}")
    else:
        yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
