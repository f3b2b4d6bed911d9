"""ImageNet (ILSVRC 2012) from its three original archives to a folder of images, whole or not at all, and resumable."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diracnets.data.progress import Report
from diracnets.data.tar import Member, files_in, members
from diracnets.download import Checksum
from diracnets.errors import DataError, FileError, MissingExtraError, UsageError, some_of
from diracnets.files import written_whole

# As the organizers published them, by what they hold.
ORIGINALS = {
    "training images": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "validation images": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "development kit": ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
WORDS = "words.txt"  # of each class, beside the images
_SOURCE = "source.json"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_LARGEST, _LARGEST_OF_KIT = 1 << 28, 1 << 24  # bytes of an image, and of a file of the development kit


@dataclass(frozen=True)
class Synset:
    """A class of ImageNet.

    Attributes:
        wnid: its name in WordNet, such as "n01440764".
        words: what it is, in words.
        images: to train on, where the development kit says it.
    """

    wnid: str
    words: str
    images: int | None


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
        _check_hash(devkit, "development kit")
    synsets, truth = _devkit(devkit)
    facts = {str(file.absolute()): _size(file) for file in (train, val, devkit)}
    try:
        goes_on = part.exists() and json.loads((part / _SOURCE).read_text()) == facts
    except (OSError, ValueError):
        goes_on = False
    if not goes_on:
        if check_hashes:
            _check_hash(train, "training images")
            _check_hash(val, "validation images")
        _check_room(out, sum(facts.values()))
    try:
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
        lines = (f"{synset.wnid} {synset.words}\n" for synset in sorted(synsets.values(), key=lambda each: each.wnid))
        (part / WORDS).write_text("".join(lines), encoding="utf-8")
        (part / _SOURCE).unlink()
        if hasattr(os, "sync"):
            os.sync()  # of a million files at once
        part.rename(out)
    except OSError as error:
        raise FileError(f"cannot write {out}: {error.strerror or error}") from error
    return counts


def _check_hash(file: Path, what: str) -> None:
    name, md5 = ORIGINALS[what]
    if wrong := Checksum("md5", md5).check(file):
        raise FileError(
            f"{file} is not the original {name} with the {what} ({wrong}): it is damaged, incomplete or another "
            "version; to unpack it all the same, add --no-hash"
        )


def _check_room(out: Path, needed: int) -> None:
    there = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise FileError(f"{there} has {free:,} bytes left, and the images need {needed:,}: unpack elsewhere")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error


def _devkit(file: Path) -> tuple[dict[int, Synset], list[int]]:
    """The classes by their numbers, and the number of each validation image."""
    wanted: dict[str, bytes] = {}
    for path, content in files_in(file, lambda path: path.rpartition("/")[2] in (_TRUTH, _META), _LARGEST_OF_KIT):
        wanted[path.rpartition("/")[2]] = content
    if missing := sorted({_TRUTH, _META} - set(wanted)):
        raise DataError(f"{file} is not the development kit of ILSVRC 2012: it holds no {some_of(missing)}")
    synsets = _synsets(wanted[_META], file)
    try:
        truth = [int(line) for line in wanted[_TRUTH].split()]
    except ValueError as error:
        raise DataError(f"{_TRUTH} in {file} holds more than numbers: {error}") from error
    if unknown := sorted(set(truth) - set(synsets)):
        raise DataError(f"{_TRUTH} in {file} holds numbers of no class: {some_of(unknown)}")
    return synsets, truth


def _synsets(content: bytes, file: Path) -> dict[int, Synset]:
    """The classes in meta.mat: those of its synsets that no other one is a kind of."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError('the development kit needs scipy: pip install "diracnets[imagenet]"') from error
    try:
        found: Any = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        names = found.dtype.names or ()
        leaves = [row for row in found if int(row["num_children"]) == 0]
        synsets = {
            int(row["ILSVRC2012_ID"]): Synset(
                str(row["WNID"]),
                " ".join(str(row["words"]).split()),
                int(row["num_train_images"]) if "num_train_images" in names else None,
            )
            for row in leaves
        }
    except Exception as error:  # of files that are none, scipy raises all sorts
        raise DataError(f"{_META} in {file} does not list the classes: {error}") from error
    wrong = [synset.wnid for synset in synsets.values() if not re.fullmatch(r"n\d{8}", synset.wnid)]
    if wrong or len({synset.wnid for synset in synsets.values()}) != len(leaves) or len(leaves) < 2:
        raise DataError(
            f"{_META} in {file} does not list the classes, each with a name like n01440764 ({some_of(wrong)})"
        )
    return synsets


def _unpack_train(file: Path, folder: Path, synsets: dict[int, Synset], report: Report | None) -> int:
    """A folder for each class, which appears when all of its images are there."""
    known = {synset.wnid: synset for synset in synsets.values()}
    seen: set[str] = set()
    with _archive(file) as archive:
        for member in _members(archive, str(file)):
            wnid = member.name.removesuffix(".tar")
            if not member.name.endswith(".tar") or wnid not in known or wnid in seen:
                raise DataError(f"{file} holds {member.name}, which is not one tar file for each class: see --help")
            seen.add(wnid)
            if not (folder / wnid).exists():
                _unpack_class(archive, member, file, folder, known[wnid])
            if report is not None:
                report(len(seen), len(known) + 1)
    if missing := sorted(set(known) - seen):
        raise DataError(f"{file} lacks {len(missing)} of {len(known)} classes: {some_of(missing)}")
    return sum(1 for wnid in seen for _ in os.scandir(folder / wnid))


def _unpack_class(archive: BinaryIO, member: Member, file: Path, folder: Path, synset: Synset) -> None:
    part = folder / f".{synset.wnid}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    count = 0
    inner = io.BufferedReader(_Window(archive, member.offset, member.size))
    for image in _members(inner, f"{file}/{member.name}"):
        if not re.fullmatch(rf"{synset.wnid}_\d+\.JPEG", image.name):
            raise DataError(f"{file}/{member.name} holds {image.name}, which is no image of this class")
        _write(inner, image, part / image.name)
        count += 1
    if count == 0 or synset.images not in (None, count):
        raise DataError(f"{file}/{member.name} holds {count:,} images, and should hold {synset.images or 'some'}")
    part.rename(folder / synset.wnid)


def _unpack_val(file: Path, folder: Path, labels: list[Synset]) -> int:
    """A folder for each class, which all appear at once."""
    if folder.exists():
        return len(labels)
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    for wnid in {synset.wnid for synset in labels}:
        (part / wnid).mkdir(parents=True)
    seen: set[int] = set()
    with _archive(file) as archive:
        for image in _members(archive, str(file)):
            found = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", image.name)
            number = int(found[1]) if found else 0
            if not 1 <= number <= len(labels) or number in seen:
                raise DataError(f"{file} holds {image.name}, which is none of the {len(labels):,} validation images")
            seen.add(number)
            _write(archive, image, part / labels[number - 1].wnid / image.name)
    if len(seen) < len(labels):
        first = next(number for number in range(1, len(labels) + 1) if number not in seen)
        raise DataError(
            f"{file} lacks {len(labels) - len(seen):,} of {len(labels):,} images: the first is number {first}"
        )
    part.rename(folder)
    return len(labels)


def _members(archive: BinaryIO, name: str) -> Iterator[Member]:
    try:
        yield from members(archive)
    except DataError as error:
        raise DataError(f"{name} {error}") from error


def _write(archive: BinaryIO, image: Member, path: Path) -> None:
    if image.size > _LARGEST:
        raise DataError(f"{image.name} has {image.size:,} bytes, which is more than an image of ImageNet")
    archive.seek(image.offset)
    path.write_bytes(archive.read(image.size))


@contextmanager
def _archive(file: Path) -> Iterator[BinaryIO]:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error
    with opened:
        yield opened


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._place = file, offset, size, 0

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._place = place + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        view = memoryview(buffer)
        self._file.seek(self._offset + self._place)
        content = self._file.read(min(len(view), max(0, self._size - self._place)))
        view[: len(content)] = content
        self._place += len(content)
        return len(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
