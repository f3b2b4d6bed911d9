"""Images become shards: tar files in the WebDataset format, and a list of them that timm reads as well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diracnets.data.packed import FORMAT
from diracnets.data.progress import Report
from diracnets.data.random import order
from diracnets.data.shard_index import index_shard
from diracnets.data.shard_list import LIST
from diracnets.errors import FileError, MissingExtraError, UsageError
from diracnets.files import written_folder
from diracnets.places import check_room

SHARD_IMAGES, SHARD_BYTES = 10_000, 256 * 10**6  # of a shard, at most
_BLOCK = 512  # of a tar file: each member has one for its header, and fills whole ones
_RECORD = 10_240  # a tar file fills whole ones of these


@dataclass(frozen=True)
class ToPack:
    """Images to pack, to train on or held out.

    Attributes:
        labels: of each image, indices of classes.
        filenames: what each is called.
        sizes: of each, in bytes.
        read: gives an image's extension, without a dot, and its bytes.
    """

    labels: Sequence[int]
    filenames: Sequence[str]
    sizes: Sequence[int]
    read: Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True)
class Part:
    """The shards of the images to train on, or of those held out.

    Attributes:
        name: "train" or "val".
        images: how many.
        shards: how many.
        size: of all its shards, in bytes.
    """

    name: str
    images: int
    shards: int
    size: int


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        classes: names of the classes, in the order of their labels.
        parts: the images to train on, and those held out.
        notes: what was left out, and what could be seen otherwise.
    """

    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def refuse_limits(shard_images: int, shard_bytes: int) -> None:
    """Refuse limits that are too small, and the lack of webdataset.

    Raises:
        UsageError, MissingExtraError: that.
    """
    if shard_images < 1 or shard_bytes < _RECORD:
        raise UsageError(
            f"a shard must have room for at least 1 image and {_RECORD:,} bytes, "
            f"not {shard_images:,} and {shard_bytes:,}"
        )
    _tar_writer()


def pack_images(
    parts: Mapping[str, ToPack],
    classes: Sequence[str],
    out: Path,
    *,
    shard_images: int = SHARD_IMAGES,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    force: bool = False,
    more: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> tuple[Part, ...]:
    """Write images as shards, their indices, and `_info.json`, as `diracnets.data.pack.pack` describes them.

    Args:
        parts: "train" and "val".
        classes: names.
        out: a folder, which appears when all is written.
        shard_images, shard_bytes, seed, force, report: as for `pack`.
        more: other files to write beside the shards, and their text.

    Raises:
        FileError: `out` cannot be written, or the disk has too little room.
        UsageError, MissingExtraError: as `refuse_limits`.
    """
    refuse_limits(shard_images, shard_bytes)
    sizes = {name: _sizes(part) for name, part in parts.items()}
    check_room(out, sum(map(sum, sizes.values())), "shards")
    total, done = sum(len(each) for each in sizes.values()), 0
    splits: dict[str, Any] = {}
    with written_folder(out, replace=force) as made:
        for name, images in parts.items():
            numbers = order(seed, 0, len(images.labels)).tolist()
            shards = []
            for shard, chosen in enumerate(_divided(numbers, sizes[name], shard_images, shard_bytes)):
                file = made / f"{name}-{shard:06d}.tar"
                with _Hashing(file) as stream, _tar_writer()(stream, encoder=False, mtime=0) as tar:
                    for number in chosen:
                        tar.write(_sample(images, number, classes, key=f"{done:09d}"))
                        done += 1
                        if report is not None:
                            report(done, total)
                shards.append(_described(file, len(chosen), stream))
            splits[name] = _split(name, shards, images, classes)
        (made / LIST).write_text(json.dumps({"format": FORMAT, "classes": classes, "splits": splits}, indent=1) + "\n")
        for name, text in (more or {}).items():
            (made / name).write_text(text, encoding="utf-8")
    return tuple(
        Part(name, split["num_samples"], len(split["shards"]), sum(shard["bytes"] for shard in split["shards"]))
        for name, split in splits.items()
    )


def _tar_writer() -> Any:  # noqa: ANN401
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise MissingExtraError('packing shards needs webdataset: pip install "diracnets[shards]"') from error
    return TarWriter


def _sizes(images: ToPack) -> list[int]:
    """How many bytes each sample will take in a tar file, nearly."""
    names = (len(name.encode(errors="surrogateescape")) for name in images.filenames)
    pairs = zip(images.sizes, names, strict=True)
    return [4 * _BLOCK + _filled(size) + _filled(name + 200) for size, name in pairs]


def _filled(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _divided(numbers: Sequence[int], sizes: Sequence[int], images: int, size: int) -> Iterator[list[int]]:
    """The images of each shard: shards of nearly the same number of images, none over a limit."""
    count = max(-(-len(numbers) // images), -(-sum(sizes) // (size - 2 * _RECORD if size > 3 * _RECORD else size)), 1)
    each = min(images, -(-len(numbers) // count))
    part: list[int] = []
    room = size - _RECORD
    for number in numbers:
        if part and (len(part) == each or sizes[number] > room):
            yield part
            part, room = [], size - _RECORD
        part.append(number)
        room -= sizes[number]
    yield part


def _sample(images: ToPack, number: int, classes: Sequence[str], *, key: str) -> dict[str, Any]:
    label = images.labels[number]
    kind, content = images.read(number)
    facts = {"filename": images.filenames[number], "label": label, "class": classes[label]}
    return {"__key__": key, "cls": str(label).encode(), "json": json.dumps(facts).encode(), kind: content}


def _split(name: str, shards: list[dict[str, Any]], images: ToPack, classes: Sequence[str]) -> dict[str, Any]:
    counts = [0] * len(classes)
    for label in images.labels:
        counts[label] += 1
    return {  # the first four are timm's
        "name": name,
        "num_samples": len(images.labels),
        "filenames": [shard["file"] for shard in shards],
        "shard_lengths": [shard["images"] for shard in shards],
        "class_counts": counts,
        "shards": shards,
    }


def _described(file: Path, images: int, written: _Hashing) -> dict[str, Any]:
    """What the list says of a shard, whose index is written beside it: without it, who has the shard on a server would
    have to download all of it to know what is in it."""
    with file.open("rb") as shard:
        index = index_shard(shard)
    if len(index.names) != images or index.bad or index.cut:
        raise FileError(f"{file.name} was written wrongly ({len(index.names)} of {images} images): pack again")
    beside = file.with_suffix(".index.json")
    beside.write_text(index.to_json(), encoding="utf-8")
    facts = {"file": file.name, "images": images, "bytes": written.size, "sha256": written.sha256}
    return {**facts, "index": beside.name}


class _Hashing:
    """A file that is written once, from one end to the other, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
