"""Images in shards, tar files in the WebDataset format: read by place, so that any image can be had in any order."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diracnets.data.batched import TOGETHER
from diracnets.data.encoded import EncodedImages, EncodedSet, hash_of, key_of
from diracnets.data.progress import Report
from diracnets.data.shard_cache import LIMIT, ShardCache
from diracnets.data.shard_files import ShardFiles
from diracnets.data.shard_index import Label, ShardIndex
from diracnets.data.shard_list import Where
from diracnets.data.shard_where import find_shards
from diracnets.data.split import numbered
from diracnets.data.usable import Lost, usable
from diracnets.errors import DataError, some_of
from diracnets.places import url_in


class ShardSource(EncodedImages):
    """Reads images out of shards; implements `diracnets.data.decoder.Source`.

    Args:
        files: the shards.
        locations: paths or URLs of shards.
        shards: [N], of each image, an index into `locations`.
        names: [N], of each image, within its shard, as bytes.
        offsets: [N], of each image's bytes.
        sizes: [N], in bytes.
    """

    def __init__(
        self,
        files: ShardFiles,
        locations: Sequence[str],
        shards: npt.NDArray[np.int32],
        names: npt.NDArray[np.bytes_],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> None:
        self._files = files
        self._locations = locations
        self.shards = shards
        self._names, self._offsets, self._sizes = names, offsets, sizes  # arrays: forked workers would copy objects

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, index: int) -> str:
        """The shard, and the image's name in it."""
        return f"{self._locations[self.shards[index]]}/{os.fsdecode(self._names[index])}"

    def keys(self) -> npt.NDArray[np.uint64]:
        """By the shard's state, and the place in it."""
        stamps = [self._files.stamp(location) for location in self._locations]
        places = zip(self.shards, self._offsets, strict=True)
        return np.fromiter((key_of(stamps[shard], int(offset)) for shard, offset in places), np.uint64, len(self))

    def content(self, indices: Sequence[int]) -> bytes:
        """By name and size: to read shards may mean to download them."""
        chosen = np.asarray(indices, dtype=np.int64)
        return hash_of(self._names[chosen], self._sizes[chosen])

    def select(self, indices: Sequence[int]) -> ShardSource:
        """Some of these images."""
        chosen = np.asarray(indices, dtype=np.int64)
        columns = (self.shards[chosen], self._names[chosen], self._offsets[chosen], self._sizes[chosen])
        return ShardSource(self._files, self._locations, *columns)

    def bring(self, shard: int, stopped: Callable[[], bool]) -> None:
        """Download the shard of this number, where it is remote and there is no copy of it.

        Raises:
            FileError: it cannot be had.
        """
        self._files.bring(self._locations[shard], stopped)

    def encoded(self, index: int) -> io.BytesIO:
        """The image's bytes."""
        place = self._locations[self.shards[index]]
        return io.BytesIO(self._files.content(place, int(self._offsets[index]), int(self._sizes[index])))


ShardSet = EncodedSet[ShardSource]


def find_samples(
    where: str | Path,
    *,
    skip: float = 0.0,
    workers: int = 0,
    report: Report | None = None,
    cache: ShardCache | None = None,
) -> tuple[ShardSet, ShardSet]:
    """The images in shards to train on, and those held out.

    Args:
        where: see `diracnets.data.shard_where.find_shards`.
        skip: the largest part of the samples that may be unusable, 0 to 1: without an image or label, with one too
            many, lost since a shard is damaged or cut off, or with an image that `diracnets.data.usable.usable` finds
            unreadable. They are left out, counted and named in the notes.
        workers: processes that look at the images.
        report: is told how many shards have been looked into, or images looked at, and of how many.
        cache: for remote shards.

    Raises:
        UsageError, FileError, MissingExtraError: `where` is not as it should be.
        DataError: more samples than that cannot be used, the labels of some shards are numbers and those of others
            names, a label is of no class, or there is one class only.
    """
    found = find_shards(where)
    files = ShardFiles(found, cache)
    parts = [part for part in (found.train, found.val) if part]
    total = sum(map(len, parts))
    indices: list[list[ShardIndex]] = []
    for part in parts:
        indices.append([])
        for location in part:
            indices[-1].append(files.index(location))
            if report is not None:
                report(sum(map(len, indices)), total)
    lost, notes = _lost(found, parts, indices)
    if not any(index.names for part in indices for index in part):
        raise DataError(f"there are no samples in the shards{': ' * bool(lost.why)}{some_of(lost.why, limit=3)}")
    classes = found.classes or _classes([label for part in indices for index in part for label in index.labels])
    if len(parts) == 2:
        notes.append(f"{len(parts[0]):,} shards to train on, {len(parts[1]):,} to validate on")
    sizes = [index.size for part in indices for index in part]
    remote = any(url_in(location) for part in parts for location in part)
    room = remote and files.has_room(min(2 * TOGETHER, len(sizes)), max(sizes))
    if remote and not room:
        notes.append(
            f"the copies of {min(2 * TOGETHER, len(sizes))} shards of up to {max(sizes):,} bytes do not fit into "
            f"{LIMIT}: shards are waited for, and downloaded more than once an epoch"
        )
    sets = [
        ShardSet(*_set(files, part, index, classes), classes, tuple(notes), ahead=room)
        for part, index in zip(parts, indices, strict=True)
    ]
    return usable(
        sets, key_of_sample, lost, where=str(where), local=not remote, skip=skip, workers=workers, report=report
    )


def key_of_sample(name: str) -> str:
    """An image's shard and name in it, without the folders, so that a copy elsewhere has the same images held out."""
    return Path(name).parent.name + "/" + Path(name).name


def _lost(where: Where, parts: list[list[str]], indices: list[list[ShardIndex]]) -> tuple[Lost, list[str]]:
    """What cannot be used, and a note on what is no sample."""
    lost = Lost()
    for part, found in zip(parts, indices, strict=True):
        for location, index in zip(part, found, strict=True):
            for key, why in index.bad:
                lost.add(f"{location}/{key}: {why}")
            stated = where.stated[location].images if location in where.stated else None
            missing = max(0, (stated or 0) - len(index.names) - len(index.bad))
            if index.cut is not None or missing:
                missing = max(1, missing)
                lost.add(
                    f"{location} {index.cut or 'holds less than is listed'}, {missing:,} or more are lost", missing
                )
    others = sum(index.others for found in indices for index in found)
    notes = [f"{others:,} groups of files with neither image nor label are no samples"] * bool(others)
    pairs = (pair for part, found in zip(parts, indices, strict=True) for pair in zip(part, found, strict=True))
    if empty := [location for location, index in pairs if not index.names and not index.bad]:
        notes.append(f"shards without a sample: {some_of(empty, limit=3)}")
    return lost, notes


def _classes(labels: list[Label]) -> tuple[str, ...]:
    """The classes, by the labels alone."""
    names = sorted({label for label in labels if isinstance(label, str)})
    numbers = {label for label in labels if isinstance(label, int)}
    if names and numbers:
        raise DataError(
            f"some labels are numbers ({min(numbers)}, ...) and some are names ({names[0]}, ...): list the classes, "
            "one a line, in classes.txt beside the shards"
        )
    classes = tuple(names) or numbered(numbers)
    if len(set(labels)) < 2:
        raise DataError(f"all samples have the same label, {classes[-1]!r}: at least two classes are needed")
    return classes


def _set(
    files: ShardFiles, locations: list[str], indices: list[ShardIndex], classes: tuple[str, ...]
) -> tuple[ShardSource, list[int]]:
    numbers = {name: number for number, name in enumerate(classes)}
    labels: list[int] = []
    for location, index in zip(locations, indices, strict=True):
        for name, label in zip(index.names, index.labels, strict=True):
            number = label if isinstance(label, int) else numbers.get(label, -1)
            if not 0 <= number < len(classes):
                raise DataError(
                    f"the label of {location}/{name} is {label!r}, which is none of the {len(classes)} classes"
                )
            labels.append(number)
    return source_of(files, locations, indices), labels


def source_of(files: ShardFiles, locations: Sequence[str], indices: Sequence[ShardIndex]) -> ShardSource:
    """All images of some shards."""
    counts = [len(index.names) for index in indices]
    return ShardSource(
        files,
        locations,
        np.repeat(np.arange(len(locations), dtype=np.int32), counts),
        np.array([os.fsencode(name) for index in indices for name in index.names], dtype=np.bytes_),
        np.array([offset for index in indices for offset in index.offsets], dtype=np.int64),
        np.array([size for index in indices for size in index.sizes], dtype=np.int64),
    )
