"""What a Parquet file of images holds: which column is the images, which their labels, and what its classes are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diracnets.data.tree import composed
from diracnets.errors import DataError, DiracNetsError, FileError, MissingExtraError, some_of

_IMAGES, _LABELS = (
    ("image", "img"),
    ("label", "labels", "fine_label", "class"),
)  # names of columns, the first one counts


@dataclass(frozen=True)
class Table:
    """A Parquet file of images.

    Attributes:
        path: of the file.
        image: name of the column that holds the images, as one of bytes.
        label: name of the column of labels.
        names: of the classes, where the file says them.
        rows: of each row group, how many.
        sizes: of each row group, in bytes before compression.
        others: columns that are not used.
    """

    path: Path
    image: str
    label: str
    names: tuple[str, ...] | None
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    others: tuple[str, ...]

    def name_of(self, row: int) -> str:
        """What to call a row to a user."""
        return f"{self.path} row {row}"


def table_of(path: Path) -> Table:
    """What is in a file.

    Raises:
        FileError: it cannot be read.
        DataError: which columns are the images and the labels cannot be seen.
        MissingExtraError: pyarrow is not installed.
    """
    with reading_parquet(path):
        file = open_parquet(path)
        schema, facts = file.schema_arrow, file.metadata
        features = _features(schema.metadata or {}, path)
        image, label = _columns(schema, features, path)
        struct = str(schema.field(image).type).startswith("struct")
        column = f"{image}.bytes" if struct else image
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        names = features.get(label, {}).get("names")
        return Table(
            path,
            column,
            label,
            tuple(composed(str(name)) for name in names) if isinstance(names, list) else None,
            tuple(group.num_rows for group in groups),
            tuple(group.total_byte_size for group in groups),  # of a damaged file, to ask for a column ends the process
            tuple(name for name in schema.names if name not in (image, label)),
        )


def _features(metadata: dict[bytes, bytes], path: Path) -> dict[str, dict[str, Any]]:
    """What `datasets` has written about the columns."""
    try:
        found = (
            json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"] if b"huggingface" in metadata else {}
        )
        return {str(name): feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} has Hugging Face metadata that cannot be read: {error}") from error


def _columns(schema: Any, features: dict[str, dict[str, Any]], path: Path) -> tuple[str, str]:  # noqa: ANN401
    """The columns of images and of labels."""
    images = [name for name, feature in features.items() if feature.get("_type") == "Image" and name in schema.names]
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    with_bytes = [
        name for name, kind in kinds.items() if re.match(r"(large_)?binary|struct<.*bytes: (large_)?binary", kind)
    ]
    image = _chosen(_IMAGES, [name for name in images if name in with_bytes] or with_bytes, "images", path, kinds)
    labels = [
        name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names
    ]
    plain = [name for name in _LABELS if re.match(r"u?int|(large_)?string|dictionary", kinds.get(name, ""))]
    return image, _chosen(_LABELS, labels or plain, "labels", path, kinds)


def _chosen(usual: Sequence[str], found: list[str], what: str, path: Path, kinds: dict[str, str]) -> str:
    for name in usual:
        if name in found:
            return name
    if len(found) != 1:
        there = some_of((f"{name} ({kind})" for name, kind in kinds.items()), limit=10)
        wrong = f"more than one column of {what}" if found else f"no column of {what}"
        raise DataError(f"{path} has {wrong}: it has {there}; name the one to use {usual[0]!r}")
    return found[0]


def labels_of(table: Table) -> list[int | str | None]:
    """The label of each row: a number from 0, the name of a class, or None where it has none (null, or -1).

    Raises:
        FileError: the file cannot be read.
    """
    with reading_parquet(table.path):
        column = open_parquet(table.path).read(columns=[table.label], use_threads=False).column(0)
        values: list[Any] = column.to_pylist()
    return [
        composed(value) if isinstance(value, str) else value if isinstance(value, int) and value >= 0 else None
        for value in values
    ]


def open_parquet(path: Path) -> Any:  # noqa: ANN401
    """A file, as `pyarrow.parquet.ParquetFile`.

    Raises:
        FileError: it cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError('Parquet files need pyarrow: pip install "diracnets[parquet]"') from error
    with reading_parquet(path):
        return ParquetFile(path, pre_buffer=False)


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises while a file is read into a FileError."""
    try:
        yield
    except DiracNetsError:
        raise
    except Exception as error:  # it raises almost anything
        raise FileError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
