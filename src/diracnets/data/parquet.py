"""Images in Parquet files, as the Hugging Face hub has them: read by row group, in any order."""

from __future__ import annotations

import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diracnets.data.batched import TOGETHER
from diracnets.data.encoded import EncodedImages, EncodedSet, hash_of, key_of, stamp_of
from diracnets.data.image_file import ADVICE
from diracnets.data.layout import part_of
from diracnets.data.progress import Report
from diracnets.data.shard_where import refuse_twice
from diracnets.data.split import numbered
from diracnets.data.table import Table, labels_of, open_parquet, reading_parquet, table_of
from diracnets.data.usable import Lost, usable
from diracnets.errors import DataError, FileError, shown, some_of
from diracnets.places import kind_of

KEPT = 256 << 20  # bytes of row groups that a process keeps, if as many as are shuffled together are no more


class ParquetSource(EncodedImages):
    """Reads images out of Parquet files; implements `diracnets.data.decoder.Source`.

    A process keeps the row groups that it read last, so that images near each other are read together.

    Args:
        tables: the files.
        files: [N], of each image, an index into `tables`.
        groups: [N], of each image, its row group within the file.
        rows: [N], of each image, its row within the row group.
        kept: bytes of row groups that a process keeps; it always keeps one.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        files: npt.NDArray[np.int32],
        groups: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int64],
        kept: int,
    ) -> None:
        self._tables = tables
        self._files, self._groups, self._rows = files, groups, rows
        self._kept = kept
        self._read: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._opened: dict[int, Any] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        """What a process that is not forked gets: neither open files nor what was read."""
        return {**self.__dict__, "_read": OrderedDict(), "_opened": {}}

    def name(self, index: int) -> str:
        """The file, and the row in it, counted from 0."""
        table, group = self._tables[int(self._files[index])], int(self._groups[index])
        return table.name_of(sum(table.rows[:group]) + int(self._rows[index]))

    def keys(self) -> npt.NDArray[np.uint64]:
        """By the file's state, the row group and the row."""
        stamps = [stamp_of(table.path) for table in self._tables]
        places = zip(self._files, self._groups, self._rows, strict=True)
        hashes = (key_of(stamps[file], int(group), int(row)) for file, group, row in places)
        return np.fromiter(hashes, np.uint64, len(self))

    def content(self, indices: Sequence[int]) -> bytes:
        """By row, and the size of the row group."""
        chosen = np.asarray(indices, dtype=np.int64)
        places = zip(self._files[chosen], self._groups[chosen], strict=True)
        sizes = (self._tables[file].sizes[group] for file, group in places)
        return hash_of(self._rows[chosen], np.fromiter(sizes, np.int64, len(chosen)))

    def select(self, indices: Sequence[int]) -> ParquetSource:
        """Some of these images."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ParquetSource(self._tables, self._files[chosen], self._groups[chosen], self._rows[chosen], self._kept)

    def bundles(self) -> npt.NDArray[np.int64]:
        """[N], a number for each image: those of one number lie in row groups that can be shuffled together.

        As many row groups make a bundle as fit when `TOGETHER` bundles are kept. They are taken from all over the set,
        in an order that is always the same.
        """
        keys = self._files.astype(np.int64) << 32 | self._groups
        unique, places = np.unique(keys, return_inverse=True)
        sizes = [self._tables[int(key) >> 32].sizes[int(key) & 0xFFFFFFFF] for key in unique]
        each = max(1, self._kept // max(1, TOGETHER * max(sizes, default=1)))
        count = max(1, -(-len(unique) // each))
        mixed = np.random.default_rng(0).permutation(len(unique)) % count
        return mixed[places].astype(np.int64)

    def encoded(self, index: int) -> io.BytesIO:
        """The image's bytes."""
        column = self._row_group(int(self._files[index]), int(self._groups[index]))
        row = int(self._rows[index])
        if row >= len(column):
            raise DataError(f"{self.name(index)} is missing: its file has fewer images than labels, get it again")
        value = column[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise DataError(f"{self.name(index)} holds no image, or only the path of one{ADVICE}")
        return io.BytesIO(value)

    def _row_group(self, file: int, group: int) -> Any:  # noqa: ANN401
        if self._process != os.getpid():  # open files are not shared with the process that this one was forked from
            self._opened, self._process = {}, os.getpid()
        key = file, group
        if key not in self._read:
            table = self._tables[file]
            if file not in self._opened:
                self._opened[file] = open_parquet(table.path)
            with reading_parquet(table.path):
                content = self._opened[file].read_row_group(group, columns=[table.image], use_threads=False)
            self._read[key] = content.column(0)
            while len(self._read) > 1 and sum(column.nbytes for column in self._read.values()) > self._kept:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key]


ParquetSet = EncodedSet[ParquetSource]


def find_rows(
    where: str | Path, *, skip: float = 0.0, workers: int = 0, report: Report | None = None
) -> tuple[ParquetSet, ParquetSet]:
    """The images in Parquet files to train on, and those held out.

    An image is the content of an image file: a column of bytes, or of structs with `bytes`, as `datasets` writes it. A
    label is a number, with names in the file's Hugging Face metadata, or a name.

    Args:
        where: a folder with `train-*.parquet` and `validation-*.parquet` (or `test-*.parquet`), at any depth, or with
            the parts as folders; or with files of other names, or one file, of which one image in five of each class is
            held out, always the same.
        skip: the largest part of the rows that may be unusable, 0 to 1: without a label or an image, or with one that
            `diracnets.data.usable.usable` finds unreadable. They are left out, counted and named in the notes.
        workers: processes that look at the images.
        report: is told how many are looked at, and of how many.

    Raises:
        FileError: there are no such files, or one is damaged.
        DataError: a column of images or of labels is not found; the files do not fit together; a label is of no class;
            more rows than that cannot be used.
        MissingExtraError: pyarrow is not installed.
    """
    where = Path(where)
    parts, notes = parts_of(where)
    refuse_twice(parts["train"], parts.get("val", []))
    tables = {part: [table_of(file) for file in files] for part, files in parts.items()}
    labels = {part: [labels_of(table) for table in each] for part, each in tables.items()}
    first, classes = classes_of([table for each in tables.values() for table in each], labels.values())
    used = f"images are in the column {first.image.partition('.')[0]}, labels in {first.label}"
    notes.append(used + (f"; not used: {some_of(first.others)}" if first.others else ""))
    lost = Lost()
    sets = [_set(tables[part], labels[part], classes, tuple(notes), lost) for part in tables]
    train, val = usable(sets, key_of_row, lost, where=str(where), local=True, skip=skip, workers=workers, report=report)
    few = _classes_in_a_window(train.source.bundles(), train.labels)
    if few < len(classes) / 2:
        note = (
            f"the images are sorted by class: about {few} of {len(classes)} classes are shuffled together; mix the rows"
        )
        train, val = (replace(each, notes=(*each.notes, note)) for each in (train, val))
    return train, val


def key_of_row(name: str) -> str:
    """An image's file and row, without the folders, so that a copy elsewhere has the same images held out."""
    return Path(name).name


def parts_of(where: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files to train on, and those to validate on where there are some."""
    if kind_of(where) == "file":
        return {"train": [where]}, []
    files = sorted(where.rglob("*.parquet")) if kind_of(where) == "folder" else []
    if not files:
        raise FileError(
            f"there are no Parquet files (*.parquet) in {where}: give a folder that holds some, or one file"
        )
    named: dict[str | None, list[Path]] = {}
    for file in files:
        named.setdefault(_part(file, where), []).append(file)
    if list(named) == [None]:
        return {"train": files}, []
    if "train" not in named:
        raise DataError(f"{where} holds {some_of(file.name for file in files)}, and no train-*.parquet")
    parts: dict[str, list[Path]] = {"train": named.pop("train")}
    held = next((part for part in ("val", "test") if part in named), None)
    if held is not None:
        parts["val"] = named.pop(held)
    notes = [f"to validate: {some_of(file.relative_to(where) for file in parts.get('val', []))}"] * (held is not None)
    left = [file.relative_to(where) for each in named.values() for file in each]
    return parts, notes + [f"left out, as not to train or to validate on: {some_of(left)}"] * bool(left)


def _part(file: Path, root: Path) -> str | None:
    """What a file's name, or that of a folder that it lies in, says that it is for."""
    words = [
        re.split(r"[-_.\d]", file.stem)[0],
        *(folder.name for folder in file.parents if folder.is_relative_to(root)),
    ]
    return next((part for part in map(part_of, words) if part is not None), None)


def classes_of(
    tables: Sequence[Table], labels: Iterable[list[list[int | str | None]]]
) -> tuple[Table, tuple[str, ...]]:
    """The first of some files, and the classes of all: as it says, or else by the labels.

    Raises:
        DataError: the files are not of one set.
    """
    first = tables[0]
    for table in tables:
        if (table.label, table.names) != (first.label, first.names):
            raise DataError(f"the labels of {table.path} are not those of {first.path}: give files of one set")
    if first.names:
        return first, first.names
    values = {value for each in labels for column in each for value in column}
    names = sorted(value for value in values if isinstance(value, str))
    numbers = [value for value in values if isinstance(value, int)]
    if names and numbers:
        raise DataError(f"some labels of {first.path} and its like are numbers, some names: give files of one set")
    return first, tuple(names) or numbered(numbers)


def _set(
    tables: list[Table],
    labels: list[list[int | str | None]],
    classes: tuple[str, ...],
    notes: tuple[str, ...],
    lost: Lost,
) -> ParquetSet:
    numbers = {name: number for number, name in enumerate(classes)}
    flat, kept = [], []
    place = 0
    for table, column in zip(tables, labels, strict=True):
        for row, value in enumerate(column):
            number = numbers.get(value) if isinstance(value, str) else value
            if number is None and value is None:
                lost.add(f"{table.name_of(row)} has no label")
            elif number is None or number >= len(classes):
                raise DataError(
                    f"the label of {table.name_of(row)} is {shown(value)}, which is none of the {len(classes)} classes"
                )
            else:
                flat.append(number)
                kept.append(place + row)
        place += len(column)
    if len(set(flat)) < 2:
        some = "images of one class only" if flat else "no images with labels"
        raise DataError(f"{tables[0].path} and its like hold {some}: at least two classes are needed")
    source = source_of(tables)
    return ParquetSet(source if len(kept) == place else source.select(kept), flat, classes, notes)


def source_of(tables: Sequence[Table]) -> ParquetSource:
    """All images of some files."""
    counts = [(file, group, rows) for file, table in enumerate(tables) for group, rows in enumerate(table.rows)]
    files = np.repeat(np.array([file for file, _, _ in counts], np.int32), [rows for _, _, rows in counts])
    groups = np.repeat(np.array([group for _, group, _ in counts], np.int32), [rows for _, _, rows in counts])
    rows = np.concatenate([np.arange(rows) for _, _, rows in counts])
    kept = max(KEPT, TOGETHER * max((max(table.sizes, default=0) for table in tables), default=0))
    return ParquetSource(tables, files, groups, rows, kept)


def _classes_in_a_window(bundles: npt.NDArray[np.int64], labels: list[int]) -> int:
    """How many classes the first images that are shuffled together have."""
    return len(np.unique(np.asarray(labels)[bundles < TOGETHER]))
