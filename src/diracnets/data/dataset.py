"""Any map-style `Dataset` of (image, label) as data: read into memory where it is small, streamed where it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diracnets.data.augment import Size
from diracnets.data.decode import TINY
from diracnets.data.images import ImageData, Images
from diracnets.data.items import Items, MapStyle, attribute
from diracnets.data.memory import MemoryImages
from diracnets.data.split import HELD_OUT, hold_out, numbered
from diracnets.data.stream import StreamedImages
from diracnets.errors import DataError, UsageError, some_of

DATASET = "dataset"  # what data is called that has no name
_MEMORY = 1 << 30  # bytes of pixels that a set in memory may have
_MEASURED = 256  # images of a streamed set that its normalization is measured on
_LOOKED_AT = 64  # images of each set that decide whether it is grayscale or in colour
_TWICE = 32  # images of each set that are read twice, to see whether they stay the same


def load_dataset(
    data: MapStyle | tuple[MapStyle, MapStyle],
    *,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
) -> ImageData:
    """Data from one Dataset, of which a fifth is held out, or from two: to train on, and held out.

    A Dataset may transform its images at random, as torchvision's and albumentations' transforms do: its randomness is
    then its own, and resuming not bit-exact, as the notes say. `Augmentation`'s is the run's. Up to 1 GiB of pixels are
    read into memory, unless `image_size` is over 64 or the images change; other sets are read by worker processes.
    Class names are the Dataset's `classes` where it has them. Of images some of which are grey and some in colour, all
    are taken in colour. The normalization is measured on the images to train on (on 256 of them if they are streamed).

    Args:
        data: see `diracnets.data.items.Items` for what images may be.
        image_size: side in pixels to bring images to; None takes images that are all of one size as they are.
        device: where the batches will be.
        workers: processes that read sets too large for memory.

    Raises:
        UsageError: not a map-style Dataset, or not two.
        DataError: an image or label cannot be used, there are no images, or there is one class only.
    """
    datasets = data if isinstance(data, tuple) else (data,)
    if len(datasets) not in (1, 2):
        raise UsageError(f"data must be one Dataset or a pair of them, not {len(datasets)}")
    names = ("training", "validation") if len(datasets) == 2 else (DATASET,)
    whole = [_items(dataset, name) for dataset, name in zip(datasets, names, strict=True)]
    height, width, _ = whole[0].pair(0)[0].shape
    channels, mixed = _channels(whole)
    size = (channels, image_size or height, image_size or width)
    small = (image_size is None or image_size <= TINY) and sum(map(len, whole)) * math.prod(size) <= _MEMORY
    sets = [
        _read(_items(dataset, name, channels=channels, resize=image_size is not None), size, small=small)
        for dataset, name in zip(datasets, names, strict=True)
    ]
    classes = _classes(datasets[0], sets)
    notes = ["some images are grey and some in colour: all are taken in colour"] * mixed + _notes(sets)
    if len(sets) == 1:
        notes.append(f"to validate: {HELD_OUT}")
        parts = hold_out(sets[0].labels, [str(number) for number in range(len(sets[0].labels))], classes)
        sets = [sets[0].select(part) for part in parts]
    if without := sorted(set(range(len(classes))) - set(sets[0].labels)):
        notes.append(f"classes without an image to train on: {some_of(classes[label] for label in without)}")
    mean, std = _statistics(sets[0], size)
    train, val = (_images(each, size, mean, std, device, workers) for each in sets)
    return ImageData(DATASET, classes, size, mean, std, train, val, tuple(notes))


@dataclass(frozen=True)
class _Set:
    items: Items
    labels: list[int]
    pixels: Tensor | None  # uint8 [N, H, W, C] of a set in memory
    changing: bool = False

    def select(self, indices: list[int]) -> _Set:
        pixels = None if self.pixels is None else self.pixels[indices]
        return _Set(self.items.select(indices), [self.labels[index] for index in indices], pixels, self.changing)


def _items(dataset: MapStyle, name: str, *, channels: int | None = None, resize: bool = False) -> Items:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(f"{type(dataset).__name__} is no map-style Dataset: it needs __len__ and __getitem__")
    if len(dataset) == 0:
        raise DataError(f"the {name} set is empty: give it images")
    return Items(dataset, range(len(dataset)), name, channels=channels, resize=resize)


def _channels(sets: Sequence[Items]) -> tuple[int, bool]:
    """How many channels images have, and whether grey and colour are mixed: by a look at some, from all over the sets.

    What the first one has may be an exception. Others that appear only later are an error when they are read.
    """
    found = []
    for items in sets:
        step = -(-len(items) // _LOOKED_AT)
        found += [items.pair(index)[0].shape[2] for index in range(0, len(items), step)]
    mixed = {1, 3} <= set(found)
    return (3 if mixed else found[0]), mixed


def _read(items: Items, size: Size, *, small: bool) -> _Set:
    if changing := _changes(items):
        small = False  # else every image would stay as it was read first
    if not small:
        return _Set(items, items.labels(), None, changing)
    channels, height, width = size
    pixels = torch.empty(len(items), height, width, channels, dtype=torch.uint8)
    labels = []
    for index in range(len(items)):
        image, label = items.fitted_pair(index, size)
        pixels[index] = torch.from_numpy(image)
        labels.append(label)
    return _Set(items, labels, pixels)


def _changes(items: Items) -> bool:
    """Whether some image is another one when it is read again: the Dataset has random transforms."""
    some = range(0, len(items), -(-len(items) // _TWICE))
    return any(not np.array_equal(items.pair(index)[0], items.pair(index)[0]) for index in some)


def _notes(sets: Sequence[_Set]) -> list[str]:
    """What to say of sets that change."""
    notes = []
    if sets[0].changing:
        notes.append(
            "the Dataset transforms its images at random: its randomness is its own, so that a resumed run sees others "
            "than it would have seen, and is not bit-exact; the recipe's augmentation comes on top"
        )
    if sets[-1].changing:
        notes.append(
            "images to validate on are transformed at random too, and accuracies vary with them: to avoid that, give "
            "a pair of Datasets, the second one without random transforms"
        )
    return notes


def _classes(dataset: MapStyle, sets: Sequence[_Set]) -> tuple[str, ...]:
    if len(set(sets[0].labels)) < 2:
        raise DataError("all images have the same label: at least two classes are needed")
    names = attribute(dataset, "classes")
    if names is None:
        return numbered(label for each in sets for label in each.labels)
    for each in sets:
        for index, label in enumerate(each.labels):
            if label >= len(names):
                raise DataError(f"the label of {each.items.name(index)} is {label}, and there are {len(names)} classes")
    return tuple(str(name) for name in names)


def _statistics(each: _Set, size: Size) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pixels = each.pixels
    if pixels is None:
        step = -(-len(each.items) // _MEASURED)
        pixels = torch.from_numpy(
            np.stack([each.items.fitted(index, size) for index in range(0, len(each.items), step)])
        )
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(size[0]):
        share = torch.bincount(pixels[..., channel].flatten(), minlength=256).double()
        share /= share.sum()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(max(math.sqrt(float(share @ (levels - mean) ** 2)), 1 / 255))  # a constant channel stays finite
    return tuple(means), tuple(stds)


def _images(
    each: _Set,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    workers: int | None,
) -> Images:
    labels = torch.tensor(each.labels)
    if each.pixels is None:
        return StreamedImages(each.items, labels, size=size, mean=mean, std=std, device=device, workers=workers)
    name, numbers = each.items.name(0).rpartition(" ")[0], each.items.numbers
    return MemoryImages(each.pixels, labels, name=name, mean=mean, std=std, device=device, numbers=numbers)
