"""Images in shards, tar files in the WebDataset format: read by place, so that any image can be had in any order."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diracnets.data.encoded import EncodedImages
from diracnets.data.images import TOGETHER
from diracnets.data.progress import Report
from diracnets.data.shard_cache import LIMIT, ShardCache
from diracnets.data.shard_files import ShardFiles
from diracnets.data.shard_index import Label, ShardIndex
from diracnets.data.shard_where import Where, find_shards
from diracnets.data.split import HELD_OUT, hold_out
from diracnets.errors import DataError, some_of
from diracnets.files import url_in

_NAMED = 10  # of the samples that cannot be used
_CHECKED = 20_000  # images of local shards: of larger sets, only the headers of the tar files are read before training


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


@dataclass(frozen=True)
class ShardSet:
    """Labelled images in shards.

    Attributes:
        source: gives the images.
        labels: of each image, indices into `classes`.
        classes: names of the classes.
        notes: a line for each thing that a user should know.
        spare: how many more samples may turn out to be unusable.
        ahead: whether shards are remote, and there is room to bring the next ones while some are used.
    """

    source: ShardSource
    labels: list[int]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    spare: int = 0
    ahead: bool = False


def find_samples(
    where: str | Path, *, skip: float = 0.0, report: Report | None = None, cache: ShardCache | None = None
) -> tuple[ShardSet, ShardSet]:
    """The images in shards to train on, and those held out.

    Args:
        where: see `diracnets.data.shard_where.find_shards`.
        skip: the largest part of the samples that may be unusable, 0 to 1: without an image or label, with one too
            many, or lost since a shard is damaged or cut off. They are left out, counted and named in the notes. With
            up to 20,000 images in local shards, headers and ends of the images are looked at too. Above 0, those to
            validate on are decoded, once.
        report: is told how many shards have been looked into, and of how many.
        cache: for remote shards.

    Raises:
        UsageError, FileError, MissingExtraError: `where` is not as it should be.
        DataError: more samples than that cannot be used, the labels of some shards are numbers and those of others
            names, a label is of no class, or there is one class only.
    """
    found = find_shards(where)
    files = ShardFiles(found, cache)
    parts = [part for part in (found.train, found.val) if part]
    indices = [[ShardIndex(0)] * len(part) for part in parts]
    total = sum(map(len, parts))

    def look(number: int, check: int) -> None:
        for n, location in enumerate(parts[number]):
            indices[number][n] = files.index(location, check)
            if report is not None:
                report(n + 1 + len(parts[0]) * number, total)

    for number in range(len(parts)):
        look(number, 0)
    few = sum(len(index.names) for part in indices for index in part) <= _CHECKED
    for number, part in enumerate(parts):
        if few and not any(map(url_in, part)):
            look(number, 1)
        if number == 1 and skip:  # accuracies are of the same images each time: none may be found to be bad later
            look(number, 2)
    spare, said = _skipped(found, parts, indices, skip)
    notes = [*found.notes, *said]
    classes = found.classes or _classes([label for part in indices for index in part for label in index.labels])
    sets = [_set(files, part, index, classes) for part, index in zip(parts, indices, strict=True)]
    if len(sets) == 1:
        notes.append(f"to validate: {HELD_OUT}")
        source = sets[0].source
        keys = [Path(source.name(n)).parent.name + "/" + Path(source.name(n)).name for n in range(len(source))]
        sets = [
            ShardSet(source.select(part), [sets[0].labels[n] for n in part], classes)
            for part in hold_out(sets[0].labels, keys, classes)
        ]
    else:
        notes.append(f"{len(parts[0]):,} shards to train on, {len(parts[1]):,} to validate on")
    sizes = [index.size for part in indices for index in part]
    remote = any(url_in(location) for part in parts for location in part)
    room = remote and files.has_room(min(2 * TOGETHER, len(sizes)), max(sizes))
    if remote and not room:
        notes.append(
            f"the copies of {min(2 * TOGETHER, len(sizes))} shards of up to {max(sizes):,} bytes do not fit into "
            f"{LIMIT}: shards are waited for, and downloaded more than once an epoch"
        )
    train, val = (ShardSet(each.source, each.labels, classes, tuple(notes), spare, room) for each in sets)
    return train, val


def _skipped(
    where: Where, parts: list[list[str]], indices: list[list[ShardIndex]], skip: float
) -> tuple[int, list[str]]:
    """How many more may turn out to be bad, and a note on what cannot be used, unless that is too much."""
    bad: list[str] = []
    lost = good = 0
    for part, found in zip(parts, indices, strict=True):
        for location, index in zip(part, found, strict=True):
            good += len(index.names)
            lost += len(index.bad)
            bad += [f"{location}/{key}: {why}" for key, why in index.bad]
            stated = where.stated[location].images if location in where.stated else None
            missing = max(0, (stated or 0) - len(index.names) - len(index.bad))
            if index.cut is not None or missing:
                missing = max(1, missing)
                lost += missing
                bad.append(f"{location} {index.cut or 'holds less than is listed'}, {missing:,} or more are lost")
    if not good:
        raise DataError(f"there are no samples in the shards{': ' * bool(bad)}{some_of(bad, limit=3)}")
    others = sum(index.others for found in indices for index in found)
    notes = [f"{others:,} groups of files with neither image nor label are no samples"] * bool(others)
    spare = int(skip * (lost + good)) - lost
    if not lost:
        return spare, notes
    named = "; ".join(bad[:_NAMED]) + (f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")
    share = f"{lost:,} of {lost + good:,} samples ({lost / (lost + good):.2%})"
    if spare < 0:
        raise DataError(
            f"{share} cannot be used, and {skip:.2%} may be left out: {named}: "
            "mend the shards, or allow more (--skip-unreadable)"
        )
    return spare, [*notes, f"{share} are left out: {named}"]


def _classes(labels: list[Label]) -> tuple[str, ...]:
    """The classes, by the labels alone."""
    names = sorted({label for label in labels if isinstance(label, str)})
    numbers = {label for label in labels if isinstance(label, int)}
    if names and numbers:
        raise DataError(
            f"some labels are numbers ({min(numbers)}, ...) and some are names ({names[0]}, ...): list the classes, "
            "one a line, in classes.txt beside the shards"
        )
    classes = tuple(names) or tuple(str(number) for number in range(1 + max(numbers)))
    if len(set(labels)) < 2:
        raise DataError(f"all samples have the same label, {classes[-1]!r}: at least two classes are needed")
    return classes


def _set(files: ShardFiles, locations: list[str], indices: list[ShardIndex], classes: tuple[str, ...]) -> ShardSet:
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
    counts = [len(index.names) for index in indices]
    source = ShardSource(
        files,
        locations,
        np.repeat(np.arange(len(locations), dtype=np.int32), counts),
        np.array([os.fsencode(name) for index in indices for name in index.names], dtype=np.bytes_),
        np.array([offset for index in indices for offset in index.offsets], dtype=np.int64),
        np.array([size for index in indices for size in index.sizes], dtype=np.int64),
    )
    return ShardSet(source, labels, classes)
