"""The items of any map-style `Dataset`, checked and brought to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from diracnets.data import decode
from diracnets.data.arrays import pixels_of
from diracnets.data.augment import Size
from diracnets.data.decode import Pixels
from diracnets.data.image_file import reported
from diracnets.errors import DataError, DiracNetsError, first_line

FEW = 4  # channels that images usually have, and fewer pixels than the side of any that a network takes


class MapStyle(Protocol):
    """What a `torch.utils.data.Dataset` with numbered items offers, and a list of (image, label) too."""

    def __len__(self) -> int:
        """How many items."""

    def __getitem__(self, index: int, /) -> Any:  # noqa: ANN401
        """A pair of image and label."""


class Items:
    """Some items of a Dataset; implements `diracnets.data.decoder.Source`.

    Args:
        dataset: gives (image, label) for a number. An image is a PIL image, a torch tensor [C, H, W] or [H, W], or a
            numpy array [H, W, C] or [H, W]: uint8, or floats in 0..1, which are rounded to 256 levels.
        numbers: which items.
        name: what to call the Dataset to a user.
        channels: how many all images are to have: grey ones become RGB for 3, but colour is never lost, see `pair`.
            None leaves each image as it comes.
        resize: whether images of another size than asked for are resized, or refused.
    """

    def __init__(
        self, dataset: MapStyle, numbers: Sequence[int], name: str, *, channels: int | None = None, resize: bool = False
    ) -> None:
        self._dataset = dataset
        self._numbers = numbers
        self._name = name
        self._channels = channels
        self._resize = resize

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def numbers(self) -> Sequence[int]:
        """Of the items, within the Dataset."""
        return self._numbers

    def content(self, indices: Sequence[int]) -> bytes:
        """Nothing: reading items may take long, and what they are may be drawn at random."""
        return b""

    def select(self, indices: Sequence[int]) -> Items:
        """Some of these items."""
        numbers = [self._numbers[index] for index in indices]
        return Items(self._dataset, numbers, self._name, channels=self._channels, resize=self._resize)

    def labels(self) -> list[int]:
        """All labels: from the Dataset's `targets` where these are what its items give, else item by item.

        Raises:
            DataError: a label is not a whole number from 0.
        """
        targets = attribute(self._dataset, "targets")
        transformed = attribute(self._dataset, "target_transform") is not None
        if targets is None or transformed or len(targets) != len(self._dataset):
            return self._read_labels(range(len(self)))
        labels = [whole_label(targets[number], self.name(index)) for index, number in enumerate(self._numbers)]
        some = sorted({0, len(self) // 2, len(self) - 1})  # a wrapper may change labels and pass `targets` on as it is
        if self._read_labels(some) != [labels[index] for index in some]:
            return self._read_labels(range(len(self)))
        return labels

    def _read_labels(self, indices: Iterable[int]) -> list[int]:
        return [self.pair(index)[1] for index in indices]

    def name(self, index: int) -> str:
        """As "dataset item 12"."""
        return f"{self._name} item {self._numbers[index]}"

    def pair(self, index: int) -> tuple[Pixels, int]:
        """Pixels, uint8 [H, W, C], as they come, and label.

        Raises:
            DataError: the Dataset fails, gives something else than described above, or an image that is in colour where
                `channels` is 1.
        """
        name = self.name(index)
        with reported(name):
            try:
                item = self._dataset[self._numbers[index]]
            except (OSError, Image.DecompressionBombError, DiracNetsError):  # of an image file
                raise
            except Exception as error:
                kind = type(error).__name__
                raise DataError(f"{name}: the Dataset raised {kind}{_place(error)}: {first_line(error)}") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{name} is a {type(item).__name__}, and should be a pair of image and label")
        return _pixels(item[0], name, self._channels), whole_label(item[1], name)

    def fitted_pair(self, index: int, size: Size) -> tuple[Pixels, int]:
        """As `pair`, with the image for evaluation: uint8 [H, W, C] of `size`.

        Raises:
            DataError: also where the image has another size and may not be resized.
        """
        pixels, label = self.pair(index)
        channels, height, width = size
        if pixels.shape == (height, width, channels):
            return pixels, label
        if pixels.shape[2] != channels:
            raise DataError(
                f"{self.name(index)} has {pixels.shape[2]} channels, and the others have {channels}: "
                "convert all images to one kind"
            )
        if not self._resize:
            raise DataError(
                f"{self.name(index)} has height, width {pixels.shape[:2]}, not {(height, width)}: give image_size"
            )
        return decode.fitted(_picture(pixels, self.name(index)), size), label

    def image(self, index: int) -> Image.Image:
        """The image as it comes, grey or RGB."""
        return _picture(self.pair(index)[0], self.name(index))

    def fitted(self, index: int, size: Size) -> Pixels:
        """The image for evaluation."""
        return self.fitted_pair(index, size)[0]

    def random_part(self, index: int, size: Size, min_scale: float, draws: Sequence[float]) -> Pixels:
        """A random part of the image for training."""
        return decode.random_part(_picture(self.pair(index)[0], self.name(index)), size, min_scale, draws)


def _place(error: Exception) -> str:
    """Where an error came up in a user's own code, as " in line 12 of photos.py"."""
    frames = [frame for frame in extract_tb(error.__traceback__)[1:] if "site-packages" not in frame.filename]
    return f" in line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""


def attribute(dataset: MapStyle, name: str) -> Any:  # noqa: ANN401
    """What torchvision's data sets keep as "targets" or "classes" and the like, through `Subset` too, or None."""
    if not isinstance(dataset, Subset):
        return getattr(dataset, name, None)
    found = attribute(cast(MapStyle, dataset.dataset), name)
    return found if found is None or name != "targets" else [found[index] for index in dataset.indices]


def whole_label(label: object, name: str) -> int:
    """A label as a number: an int, or a tensor or array that holds one.

    Raises:
        DataError: it is none, or negative.
    """
    value = label.item() if isinstance(label, Tensor | np.ndarray | np.generic) and _holds_one(label) else label
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DataError(f"the label of {name} is {label!r}, and should be a whole number from 0")
    return value


def _holds_one(label: Tensor | np.ndarray[Any, Any] | np.generic) -> bool:
    return label.ndim == 0 or (label.ndim == 1 and len(label) == 1)  # type: ignore[arg-type]


def _pixels(image: object, name: str, channels: int | None) -> Pixels:
    if isinstance(image, Image.Image):
        grey = decode.is_grey(image)
        if channels == 1 and not grey:
            raise DataError(
                f"{name} is in colour ({image.mode}), and the images looked at first are grey: convert all to one kind"
            )
        with reported(name):
            return decode.as_array(decode.decoded(image, 1 if grey and channels != 3 else 3))
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(f"the image of {name} is a {type(image).__name__}, and should be a PIL image, tensor or array")
    pixels = pixels_of(image, f"the image of {name}")
    if min(pixels.shape[:2]) <= FEW < pixels.shape[2]:
        kinds = [("a tensor", "[C, H, W]"), ("an array", "[H, W, C]")]
        (kind, axes), (other, _) = kinds if isinstance(image, Tensor) else kinds[::-1]
        height, width, count = pixels.shape
        raise DataError(
            f"the image of {name} has shape {tuple(image.shape)}, which in {kind} is {axes}, {count} channels of "
            f"{height}x{width} pixels: bring its axes into that order, or give {other}"
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 and channels == 3 else pixels


def _picture(pixels: Pixels, name: str) -> Image.Image:
    if pixels.shape[2] not in (1, 3):
        raise DataError(f"{name} has {pixels.shape[2]} channels: only images of 1 or 3 can be shown or resized")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
