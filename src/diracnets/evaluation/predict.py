"""`predict`: images in, class names and probabilities out, from a model file alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard, card_of
from diracnets.artifacts.load import load
from diracnets.artifacts.network_file import network_file
from diracnets.data.decode import to_input
from diracnets.errors import DataError, FileError, UsageError
from diracnets.evaluation.given import Given, Picture, pictures
from diracnets.runtime.device import choose_device

UNKNOWN = "unknown"  # the answer where the network is not sure enough
Unreadable = Callable[[str, DataError | FileError], None]


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image.

    Args:
        name: the image's file; "image 3" for the fourth one given as a picture or an array, or in a batch, and
            "image 3[0]" for the first one of a batch that is given fourth; "-" for one piped in.
        label: the likeliest class; its number where the model does not know names; "unknown" where its probability is
            below the threshold that was asked for.
        probability: of the likeliest class, 0..1 (the network's own, not calibrated).
        top: the likeliest classes with their probabilities, likeliest first.
    """

    name: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]

    def __repr__(self) -> str:
        unknown = f"{UNKNOWN}: " * (self.label != self.top[0][0])
        return f"<{self.name}: {unknown}{', '.join(f'{label} {probability:.1%}' for label, probability in self.top)}>"

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values, the likeliest classes as objects.

        >>> Prediction("cat.jpg", "cat", 0.9, (("cat", 0.9),)).to_data()["top"]
        [{'class': 'cat', 'probability': 0.9}]
        """
        return {**vars(self), "top": [{"class": label, "probability": value} for label, value in self.top]}


@dataclass(frozen=True)
class Failed:
    """An image without a prediction.

    Args:
        name: as of a `Prediction`.
        error: why it cannot be read.
    """

    name: str
    error: DataError | FileError

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "error": str(self.error)}


def predict(
    model: str | Path | nn.Module,
    images: Given | Iterable[Given],
    *,
    top: int = 5,
    threshold: float = 0.0,
    batch_size: int = 32,
    device: str | None = None,
    on_unreadable: Unreadable | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Prediction]:
    """Classify images.

    Args:
        model: a file that `diracnets.load` reads, or a loaded network in evaluation mode with a `card`.
        images: one or several of: an image file, a folder (searched through for image files), a pattern such as
            "photos/*.jpg", a PIL image, the bytes of a file, a stream of them, "-" for an image piped in; or a tensor,
            [C, H, W], [H, W] or a batch [N, C, H, W], or an array, [H, W, C], [H, W] or a batch [N, H, W, C], of any
            size, C 1, 3 or 4 (with opacity), uint8 from 0 to 255 or floating-point numbers from 0 to 1, not
            normalized. They are scaled, cropped and normalized as in evaluation.
        top: how many classes to give for each image; all where there are fewer.
        threshold: the lowest probability, 0..1, with which a class is the answer; below it the label is "unknown".
            `Evaluation.at_threshold` says what it costs on images of the classes.
        batch_size: images at a time.
        device: for a model from a file, as in `choose_device`: by default the fastest that there is. A loaded network
            is used where it is.
        on_unreadable: called with the name of each image that is missing or cannot be read, and why; there is no
            prediction for it then. By default such an image is an error.
        on_note: called with what is left out of folders. By default that is a warning.

    Returns:
        A prediction for each image, in the order given; those of a folder or pattern sorted by name.

    Raises:
        UsageError: numbers below 1, a threshold that is no probability, a network in training mode, one that does not
            say which images it takes, or that does not classify.
        FileError: a missing or bad model file, a missing image, a pattern that matches nothing.
        DataError: an image that cannot be read, a folder without images, a tensor or an array of another shape, dtype
            or range. The message names it.

    >>> from PIL import Image
    >>> from diracnets.artifacts.card import attach_card
    >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # red, green or blue?
    >>> attach_card(network, ModelCard((3, 8, 8), mean=(0.5,) * 3, std=(0.1,) * 3, classes=("red", "green", "blue")))
    >>> predict(network, Image.new("RGB", (640, 480), "green"))[0].label
    'green'
    """
    predictor = Predictor(model, device=device)
    notes: list[str] = []
    answers = predictor.predict(
        images,
        top=top,
        threshold=threshold,
        batch_size=batch_size,
        on_unreadable=on_unreadable,
        on_note=on_note or notes.append,
    )
    found = list(answers)
    if notes:
        warnings.warn("; ".join(notes), stacklevel=2)
    return found


class Predictor:
    """A network and its card, from an image to an answer: decode, normalize, batch, classify, name.

    Args:
        model: a file that `diracnets.load` reads, or a loaded network in evaluation mode with a `card`.
        device: for a model from a file, as in `choose_device`.

    Raises:
        UsageError: a network in training mode, or one that does not say which images it takes.
        FileError: a missing or bad model file.

    Attributes:
        card: of the network.
    """

    card: ModelCard

    def __init__(self, model: str | Path | nn.Module, *, device: str | None = None) -> None:
        if isinstance(model, nn.Module):
            if device is not None:
                moved = f"move a loaded network with .to({device!r})"
                raise UsageError(f"device {device!r} is for models from a file; {moved}")
            self._network, self._name = model, f"this {type(model).__name__}"
        else:
            model = network_file(model)
            self._network, self._name = load(model, choose_device(device or "auto")), str(model)
        if self._network.training:
            raise UsageError(f"{self._name} is in training mode: call .eval() first")
        card = card_of(self._network)
        if card is None or len(card.input_size) != 3:
            raise UsageError(
                f"{self._name} does not say which size and normalization of images it takes: "
                "set its card = diracnets.ModelCard(input_size, mean, std, classes)"
            )
        self.card = card

    def predict(
        self,
        images: Given | Iterable[Given],
        *,
        top: int = 5,
        threshold: float = 0.0,
        batch_size: int = 32,
        on_unreadable: Unreadable | None = None,
        on_note: Callable[[str], None],
    ) -> Iterator[Prediction]:
        """Classify images, see `diracnets.predict`; each batch when it is asked for."""
        for each in self.results(pictures(images, on_note), top=top, threshold=threshold, batch_size=batch_size):
            if isinstance(each, Prediction):
                yield each
            elif on_unreadable is None:
                raise each.error
            else:
                on_unreadable(each.name, each.error)

    def results(
        self,
        found: Iterable[tuple[str, Picture | DataError | FileError]],
        *,
        top: int = 5,
        threshold: float = 0.0,
        batch_size: int = 32,
    ) -> Iterator[Prediction | Failed]:
        """Classify what `pictures` gives; each batch when it is asked for, in the same order, with what has failed."""
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if not 0 <= threshold <= 1:
            raise UsageError(f"threshold is {threshold}; it must be a probability, 0 to 1")
        waiting: list[tuple[str, Tensor] | Failed] = []
        for name, picture in found:
            try:
                if isinstance(picture, DataError | FileError):
                    raise picture
                waiting.append((name, self.decode(picture, name)))
            except (DataError, FileError) as error:
                waiting.append(Failed(name, error))
            if len(waiting) == batch_size:
                yield from self._answers(waiting, top, threshold)
                waiting = []
        yield from self._answers(waiting, top, threshold)

    def _answers(
        self, waiting: list[tuple[str, Tensor] | Failed], top: int, threshold: float
    ) -> Iterator[Prediction | Failed]:
        inputs = [each[1] for each in waiting if not isinstance(each, Failed)]
        rows = iter(self.probabilities(torch.stack(inputs)) if inputs else ())
        for each in waiting:
            yield each if isinstance(each, Failed) else self.answer(each[0], next(rows), top, threshold)

    def decode(self, picture: Picture, name: str | None = None) -> Tensor:
        """An image as the network takes it: float32 [channels, height, width], normalized.

        Raises:
            DataError, FileError: it cannot be read; the message has `name`, or the path.
        """
        channels, height, width = self.card.input_size
        return to_input(picture, (channels, height, width), self.card.mean, self.card.std, name=name)

    @torch.inference_mode()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, classes], float32, on the CPU.

        Raises:
            UsageError: the network does not classify.
        """
        like = next(self._network.parameters(), inputs)  # an int8 chain has none, and takes float32 of any device
        logits = self._network(inputs.to(like.device, like.dtype))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(self.card.classes) not in (0, logits.shape[1]):
            raise UsageError(f"{self._name} does not classify: it gives no score for each class")
        return logits.float().softmax(dim=1).cpu()

    def answer(self, name: str, probabilities: Tensor, top: int = 5, threshold: float = 0.0) -> Prediction:
        """The likeliest classes by name.

        Args:
            name: of the image.
            probabilities: [classes].
            top: how many.
            threshold: the lowest probability with which a class is the answer.

        Raises:
            DataError: they are not finite.
        """
        if not torch.isfinite(probabilities).all():
            raise DataError(f"{self._name} gives no finite numbers for {name}")
        values, indices = probabilities.topk(min(top, len(probabilities)))
        labels = [self.card.classes[index] if self.card.classes else str(index) for index in indices.tolist()]
        ranked = tuple(zip(labels, values.tolist(), strict=True))
        label, probability = ranked[0]
        return Prediction(name, label if probability >= threshold else UNKNOWN, probability, ranked)
