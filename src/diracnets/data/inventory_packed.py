"""The images of shards and of Parquet files that are to be looked at, and what is wrong before any is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diracnets.data.inventory import Inventory, Picture, inventory, split
from diracnets.data.layout import part_of
from diracnets.data.parquet import classes_of, key_of_row, parts_of
from diracnets.data.parquet import source_of as source_of_tables
from diracnets.data.shard_files import ShardFiles
from diracnets.data.shard_list import LIST
from diracnets.data.shard_where import find_shards
from diracnets.data.shards import key_of_sample, source_of
from diracnets.data.split import HELD_OUT
from diracnets.data.table import labels_of, table_of
from diracnets.errors import DataError, FileError
from diracnets.places import kind_of, url_in

_PARQUET = ("*.parquet", "*/*.parquet", "*/*/*.parquet")


def inventory_of(where: str | Path) -> Inventory:
    """What is in a folder of images, in shards or in Parquet files, whichever of these it is.

    Args:
        where: as `find_images`, `find_samples` or `find_rows` takes it.

    Raises:
        UsageError, FileError: it is not there, cannot be understood or may not be read.
        DataError: it has no layout of image folders, or its files are not of one set.
        MissingExtraError: pyarrow is needed, and not installed.
    """
    folder = Path(where)
    if folder.suffix == ".parquet" and kind_of(folder) == "file":
        return _parquet(folder)
    if kind_of(folder) != "folder":
        return _shards(where) if ".tar" in str(where) or url_in(where) else inventory(folder)
    if (folder / LIST).is_file() or any(folder.glob("*.tar")):
        return _shards(where)
    if any(next(folder.glob(pattern), None) for pattern in _PARQUET):
        return _parquet(folder)
    if any(part_of(file.parent.name) for file in folder.glob("*/*.tar")):
        return _shards(where)
    return inventory(folder)


def _shards(where: str | Path) -> Inventory:
    """Shards, by what they hold themselves, not by an index that was kept or lies beside them."""
    shards = find_shards(where)
    found = Inventory(notes=list(shards.notes))
    files, keys = ShardFiles(shards), list[str]()
    for part, locations in (("train", shards.train), ("val", shards.val)):
        for location in locations:
            name = _name(location, where)
            try:
                index = files.made_index(location)
            except DataError as error:
                found.find("unreadable", [name], str(error).removeprefix(f"{location} "))
                continue
            for key, why in index.bad:
                found.find("unreadable", [f"{name}/{key}"], why)
            if index.cut is not None:
                found.find("unreadable", [name], index.cut)
            _add(found, part, [f"{name}/{each}" for each in index.names], index.labels, shards.classes)
            source = source_of(files, [location], [index])
            found.sources.append(source)
            keys += [key_of_sample(source.name(number)) for number in range(len(source))]
    return _compared(found, shards.classes, keys)


def _parquet(where: Path) -> Inventory:
    parts, notes = parts_of(where)
    found, tables, labels, keys = Inventory(notes=notes), [], [], list[str]()
    for part, paths in parts.items():
        for path in paths:
            try:
                table = table_of(path)
                column = labels_of(table)
            except FileError as error:
                found.find("unreadable", [_name(path, where)], str(error))
                continue
            tables.append((part, table))
            labels.append(column)
    if not tables:
        return found
    first, classes = classes_of([table for _, table in tables], [labels])
    for (part, table), column in zip(tables, labels, strict=True):
        rows = [row for row, value in enumerate(column) if value is not None]
        for row in (row for row, value in enumerate(column) if value is None):
            found.find("unreadable", [f"{_name(table.path, where)} row {row}"], "it has no label")
        names = [f"{_name(table.path, where)} row {row}" for row in rows]
        _add(found, part, names, [column[row] for row in rows], first.names)
        source = source_of_tables([table]).select(rows)
        found.sources.append(source)
        keys += [key_of_row(source.name(number)) for number in range(len(rows))]
    return _compared(found, first.names and classes, keys)


def _name(file: str | Path, where: str | Path) -> str:
    """Below the folder that is looked through, or the name alone."""
    path = Path(file)
    return path.relative_to(where).as_posix() if path.is_relative_to(where) and path != Path(where) else path.name


def _add(
    found: Inventory,
    part: str,
    names: Sequence[str],
    labels: Sequence[int | str | None],
    classes: tuple[str, ...] | None,
) -> None:
    """More images, and those of them whose class is not listed."""
    for name, label in zip(names, labels, strict=True):
        known = classes is not None and isinstance(label, int) and label < len(classes)
        called = classes[label] if known and classes is not None and isinstance(label, int) else str(label)
        found.pictures.append(Picture(name, called, part))
        if classes is not None and called not in classes:
            found.find("other classes", [called], f"of {name}, not listed")


def _compared(found: Inventory, classes: tuple[str, ...] | None, keys: list[str]) -> Inventory:
    """With what the classes of all images show, and the split that training would make."""
    found.classes = classes or sorted({each.label for each in found.pictures})
    seen = {part: {each.label for each in found.pictures if each.part == part} for part in ("train", "val")}
    if classes is None and (alone := sorted(seen["val"] - seen["train"])):
        found.find("other classes", alone, "in val alone")
    if classes is not None and (empty := [name for name in classes if name not in seen["train"]]):
        found.find("empty class", empty, "no image to train on")
    if len(seen["train"]) < 2:
        found.find("other classes", sorted(seen["train"]), "to train on, two classes are needed")
    if not seen["val"]:
        found.pictures = split(found.pictures, keys)
        found.notes.append(f"to validate: {HELD_OUT}")
    return found
