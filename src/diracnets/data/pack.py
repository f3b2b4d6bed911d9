"""A folder of images becomes shards: tar files in the WebDataset format."""

from __future__ import annotations

from pathlib import Path

from diracnets.data.folder import Listing, find_images
from diracnets.data.image_file import SUFFIXES, opened, suffix_of
from diracnets.data.pack_images import SHARD_BYTES, SHARD_IMAGES, Packed, ToPack, pack_images, refuse_limits
from diracnets.data.packed import refuse_existing
from diracnets.data.progress import Report
from diracnets.data.tree import composed
from diracnets.files import reading, size_of


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    shard_images: int = SHARD_IMAGES,
    shard_bytes: int = SHARD_BYTES,
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
    refuse_limits(shard_images, shard_bytes)
    folder, out = Path(folder), Path(out)
    refuse_existing(out, force=force)
    train, val = find_images(folder)
    parts = {"train": _to_pack(train, folder), "val": _to_pack(val, folder)}
    made = pack_images(
        parts,
        train.classes,
        out,
        shard_images=shard_images,
        shard_bytes=shard_bytes,
        seed=seed,
        force=force,
        report=report,
    )
    return Packed(train.classes, made, train.notes)


def _to_pack(listing: Listing, folder: Path) -> ToPack:
    def read(number: int) -> tuple[str, bytes]:
        file = listing.files[number]
        with reading(file):
            return _kind(file), file.read_bytes()

    sizes = [size_of(file) for file in listing.files]
    names = [composed(file.relative_to(folder).as_posix()) for file in listing.files]
    return ToPack(listing.labels, names, sizes, read)


def _kind(file: Path) -> str:
    """The extension of an image within a tar file: JPEG has many, of which WebDataset's decoders know two."""
    suffix = file.suffix.lower()
    if suffix in (".jpe", ".jfif"):
        return "jpg"
    if suffix in SUFFIXES:
        return suffix[1:]
    with opened(file) as image:
        return suffix_of(image)[1:]
