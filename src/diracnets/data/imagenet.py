"""ImageNet (ILSVRC 2012) from its three original archives, to a folder of images or to shards, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from diracnets.data.imagenet_files import (
    Synset,
    check_hash,
    classes_in,
    content_of,
    images_of,
    opened_archive,
    read_devkit,
    validation_images,
    words_of,
)
from diracnets.data.pack_images import Packed, ToPack, pack_images
from diracnets.data.packed import refuse_existing
from diracnets.data.progress import Report
from diracnets.data.tar import Member
from diracnets.errors import UsageError
from diracnets.files import size_of, writing, written_whole
from diracnets.places import check_room

WORDS = "words.txt"  # of each class, beside the images
_SOURCE = "source.json"


def unpack_imagenet(
    train: str | Path,
    val: str | Path,
    devkit: str | Path,
    out: str | Path,
    *,
    check_hashes: bool = True,
    report: Report | None = None,
) -> dict[str, int]:
    """Unpack ImageNet to `out`/train/<wnid>/*.JPEG and `out`/val/<wnid>/*.JPEG, which `--data folder` reads.

    What is unpacked lies in a hidden folder beside `out` until all is there; after an interruption, a second call goes
    on behind the last complete class. `words.txt` says what the classes are.

    Args:
        train: ILSVRC2012_img_train.tar, a tar file of one tar file for each class.
        val: ILSVRC2012_img_val.tar.
        devkit: ILSVRC2012_devkit_t12.tar.gz, with the labels of the validation images.
        out: a new folder.
        check_hashes: refuse archives whose MD5 is not that of the originals; of the training images it takes minutes.
        report: is told how many classes are unpacked, and of how many; the validation images count as one.

    Returns:
        How many images there are: "train" and "val".

    Raises:
        UsageError: `out` is there.
        FileError: an archive cannot be read or is not the original one; `out` cannot be written, or has no room.
        DataError: an archive does not hold what it should; the message names it.
        MissingExtraError: scipy is not installed, which reads a file of the development kit.
    """
    train, val, devkit, out = Path(train), Path(val), Path(devkit), Path(out)
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} is there already: choose a new folder")
    part = out.absolute().with_name(f".{out.name}.part")
    if check_hashes:  # before it is read: its classes are in a format with code of its own to read it
        check_hash(devkit, "development kit")
    synsets, truth = read_devkit(devkit)
    facts = {str(file.absolute()): size_of(file) for file in (train, val, devkit)}
    try:
        goes_on = part.exists() and json.loads((part / _SOURCE).read_text()) == facts
    except (OSError, ValueError):
        goes_on = False
    if not goes_on:
        if check_hashes:
            check_hash(train, "training images")
            check_hash(val, "validation images")
        check_room(out, sum(facts.values()), "images")
    with writing(out):
        if not goes_on:
            shutil.rmtree(part, ignore_errors=True)
            (part / "train").mkdir(parents=True)
            with written_whole(part / _SOURCE) as file:
                file.write_text(json.dumps(facts))
        counts = {
            "train": _unpack_train(train, part / "train", synsets, report),
            "val": _unpack_val(val, part / "val", [synsets[number] for number in truth]),
        }
        if report is not None:
            report(len(synsets) + 1, len(synsets) + 1)
        (part / WORDS).write_text(words_of(synsets), encoding="utf-8")
        (part / _SOURCE).unlink()
        if hasattr(os, "sync"):
            os.sync()  # of a million files at once
        part.rename(out)
    return counts


def pack_imagenet(
    train: str | Path,
    val: str | Path,
    devkit: str | Path,
    out: str | Path,
    *,
    check_hashes: bool = True,
    report: Report | None = None,
) -> Packed:
    """Pack ImageNet into shards without unpacking it: the bytes that `unpack_imagenet` and `pack` give.

    Images are read from their places in the archives in random order, which a disk that turns is slow at. `out` appears
    when all is written; after an interruption, it is begun again.

    Args:
        train, val, devkit, check_hashes: as for `unpack_imagenet`.
        out: a new folder for shards, as `diracnets.data.pack.pack` makes them, and words.txt.
        report: is told how many images are packed, and of how many.

    Raises:
        UsageError, FileError, DataError: as `unpack_imagenet` and `pack`.
        MissingExtraError: scipy or webdataset is not installed.
    """
    train, val, devkit, out = Path(train), Path(val), Path(devkit), Path(out)
    refuse_existing(out, force=False)
    if check_hashes:
        check_hash(devkit, "development kit")
    synsets, truth = read_devkit(devkit)
    if check_hashes:
        check_hash(train, "training images")
        check_hash(val, "validation images")
    with opened_archive(train) as first, opened_archive(val) as second:
        listed = [
            (synset, image)
            for synset, member in classes_in(first, train, synsets)
            for image in images_of(first, train, synset, member)
        ]
        held_out = list(validation_images(second, val, [synsets[number] for number in truth]))
        classes = tuple(sorted(synset.wnid for synset in synsets.values()))
        parts = {"train": _to_pack(first, "train", listed, classes), "val": _to_pack(second, "val", held_out, classes)}
        made = pack_images(parts, classes, out, more={WORDS: words_of(synsets)}, report=report)
    return Packed(classes, made, ())


def _to_pack(archive: BinaryIO, part: str, images: list[tuple[Synset, Member]], classes: tuple[str, ...]) -> ToPack:
    """Images of an archive, in the order in which they would lie in folders."""
    images = sorted(images, key=lambda each: (each[0].wnid, each[1].name))
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    return ToPack(
        labels=[numbers[synset.wnid] for synset, _ in images],
        filenames=[f"{part}/{synset.wnid}/{image.name}" for synset, image in images],
        sizes=[image.size for _, image in images],
        read=lambda number: ("jpeg", content_of(archive, images[number][1])),
    )


def _unpack_train(file: Path, folder: Path, synsets: dict[int, Synset], report: Report | None) -> int:
    """A folder for each class, which appears when all of its images are there."""
    wnids = []
    with opened_archive(file) as archive:
        for synset, member in classes_in(archive, file, synsets):
            if not (folder / synset.wnid).exists():
                part = folder / f".{synset.wnid}"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                for image in images_of(archive, file, synset, member):
                    _write(archive, image, part / image.name)
                part.rename(folder / synset.wnid)
            wnids.append(synset.wnid)
            if report is not None:
                report(len(wnids), len(synsets) + 1)
    return sum(1 for wnid in wnids for _ in os.scandir(folder / wnid))


def _unpack_val(file: Path, folder: Path, labels: list[Synset]) -> int:
    """A folder for each class, which all appear at once."""
    if folder.exists():
        return len(labels)
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    for wnid in {synset.wnid for synset in labels}:
        (part / wnid).mkdir(parents=True)
    with opened_archive(file) as archive:
        for synset, image in validation_images(archive, file, labels):
            _write(archive, image, part / synset.wnid / image.name)
    part.rename(folder)
    return len(labels)


def _write(archive: BinaryIO, image: Member, path: Path) -> None:
    path.write_bytes(content_of(archive, image))
