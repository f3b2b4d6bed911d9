"""An image folder becomes shards: tar files in the WebDataset format, and a list of them that timm reads as well."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diracnets.data.decode import SUFFIXES, opened, suffix_of
from diracnets.data.folder import Listing, find_images
from diracnets.data.packed import FORMAT, refuse_existing
from diracnets.data.progress import Report
from diracnets.data.random import order
from diracnets.data.shard_index import index_shard
from diracnets.data.shard_where import LIST
from diracnets.data.tree import composed
from diracnets.errors import FileError, MissingExtraError, UsageError
from diracnets.files import written_folder

_BLOCK = 512  # of a tar file: each member has one for its header, and fills whole ones
_RECORD = 10_240  # a tar file fills whole ones of these


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
    """What `pack` has written.

    Attributes:
        classes: names of the classes, in the order of their labels.
        parts: the images to train on, and those held out.
        notes: what was left out of the folder, and what could be seen otherwise.
    """

    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    shard_images: int = 10_000,
    shard_bytes: int = 256 * 10**6,
    seed: int = 0,
    force: bool = False,
    report: Report | None = None,
) -> Packed:
    """Pack a folder of images into shards in the WebDataset format, and list them in `_info.json`.

    A sample is three members with one key, its number: the image, its bytes as they are; `cls`, its label as digits;
    and `json`, with `filename`, `label` and `class`. Images are packed in random order, so that each shard has some of
    most classes. Beside each shard lies an index of it, for use from a server. The same folder and seed give the same
    bytes. `out` appears when all is written.

    Args:
        folder: read as `diracnets.data.folder.find_images` does, which also says what is held out.
        out: a new folder.
        shard_images: images per shard, at most.
        shard_bytes: size of a shard, at most; an image that is larger has a shard of its own.
        seed: of the order.
        force: replace the shards in `out`. A folder that holds anything else is never replaced.
        report: is told how many images are packed, and of how many.

    Raises:
        UsageError: `out` is there, or a limit is too small.
        DataError: `folder` is not as it should be; see `find_images`.
        FileError: a file cannot be read, `out` cannot be written, or the disk has too little room.
        MissingExtraError: webdataset is not installed.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/d.png"):
    ...     (root / "pets" / name).parent.mkdir(parents=True)
    ...     Image.new("RGB", (32, 32)).save(root / "pets" / name)
    >>> pack(root / "pets", root / "shards").classes
    ('cat', 'dog')
    >>> sorted(file.name for file in (root / "shards").iterdir())
    ['_info.json', 'train-000000.index.json', 'train-000000.tar', 'val-000000.index.json', 'val-000000.tar']
    """
    if shard_images < 1 or shard_bytes < _RECORD:
        raise UsageError(
            f"a shard must have room for at least 1 image and {_RECORD:,} bytes, "
            f"not {shard_images:,} and {shard_bytes:,}"
        )
    _tar_writer()
    folder, out = Path(folder), Path(out)
    refuse_existing(out, force=force)
    listings = dict(zip(("train", "val"), find_images(folder), strict=True))
    sizes = {name: _sizes(listing.files) for name, listing in listings.items()}
    _check_room(out, sum(sum(each) for each in sizes.values()))
    total = sum(len(each.files) for each in listings.values())
    classes, done = listings["train"].classes, 0
    splits: dict[str, Any] = {}
    with written_folder(out, replace=force) as made:
        for name, listing in listings.items():
            numbers = order(seed, 0, len(listing.files)).tolist()
            shards = []
            for shard, part in enumerate(_divided(numbers, sizes[name], shard_images, shard_bytes)):
                file = made / f"{name}-{shard:06d}.tar"
                with _Hashing(file) as stream, _tar_writer()(stream, encoder=False, mtime=0) as tar:
                    for number in part:
                        tar.write(_sample(listing, number, folder, key=f"{done:09d}"))
                        done += 1
                        if report is not None:
                            report(done, total)
                shards.append(_described(file, len(part), stream))
            splits[name] = _split(name, shards, listing, classes)
        (made / LIST).write_text(json.dumps({"format": FORMAT, "classes": classes, "splits": splits}, indent=1) + "\n")
    parts = tuple(
        Part(name, split["num_samples"], len(split["shards"]), sum(shard["bytes"] for shard in split["shards"]))
        for name, split in splits.items()
    )
    return Packed(classes, parts, listings["train"].notes)


def _tar_writer() -> Any:  # noqa: ANN401
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise MissingExtraError('packing shards needs webdataset: pip install "diracnets[shards]"') from error
    return TarWriter


def _sizes(files: Sequence[Path]) -> list[int]:
    """How many bytes each sample will take in a tar file, nearly."""
    try:
        return [4 * _BLOCK + _filled(file.stat().st_size) + _filled(len(os.fsencode(file)) + 200) for file in files]
    except OSError as error:
        raise FileError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _filled(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _check_room(out: Path, needed: int) -> None:
    """Refuse at once what would fill the disk after hours."""
    there = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise FileError(f"{there} has {free:,} bytes left, and the shards need {needed:,}: pack elsewhere")


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


def _sample(listing: Listing, number: int, folder: Path, *, key: str) -> dict[str, Any]:
    file, label = listing.files[number], listing.labels[number]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error
    facts = {
        "filename": composed(file.relative_to(folder).as_posix()),
        "label": label,
        "class": listing.classes[label],
    }
    return {"__key__": key, "cls": str(label).encode(), "json": json.dumps(facts).encode(), _kind(file): content}


def _kind(file: Path) -> str:
    """The extension of an image within a tar file: JPEG has many, of which WebDataset's decoders know two."""
    suffix = file.suffix.lower()
    if suffix in (".jpe", ".jfif"):
        return "jpg"
    if suffix in SUFFIXES:
        return suffix[1:]
    with opened(file) as image:
        return suffix_of(image)[1:]


def _split(name: str, shards: list[dict[str, Any]], listing: Listing, classes: Sequence[str]) -> dict[str, Any]:
    counts = [0] * len(classes)
    for label in listing.labels:
        counts[label] += 1
    return {  # the first four are timm's
        "name": name,
        "num_samples": len(listing.files),
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
