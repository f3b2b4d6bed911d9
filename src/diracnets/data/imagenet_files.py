"""What is in the three original archives of ImageNet (ILSVRC 2012): the classes, and where each image lies."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diracnets.data.tar import Member, files_in, members
from diracnets.download import Checksum
from diracnets.errors import DataError, FileError, MissingExtraError, some_of
from diracnets.files import reading

# As the organizers published them, by what they hold.
ORIGINALS = {
    "training images": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "validation images": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "development kit": ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
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


def check_hash(file: Path, what: str) -> None:
    """Refuse a file that is not the original one.

    Raises:
        FileError: it is not, or cannot be read.
    """
    name, md5 = ORIGINALS[what]
    if wrong := Checksum("md5", md5).check(file):
        raise FileError(
            f"{file} is not the original {name} with the {what} ({wrong}): it is damaged, incomplete or another "
            "version; to unpack it all the same, add --no-hash"
        )


def read_devkit(file: Path) -> tuple[dict[int, Synset], list[int]]:
    """The classes by their numbers, and the number of each validation image.

    Raises:
        FileError, DataError: the file cannot be read, or does not hold them.
        MissingExtraError: scipy is not installed.
    """
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


def classes_in(archive: BinaryIO, file: Path, synsets: dict[int, Synset]) -> Iterator[tuple[Synset, Member]]:
    """Each class in the archive of training images, and where its tar file lies in it.

    Raises:
        DataError: it is damaged, holds anything else, or lacks a class, which is found at the end.
    """
    known = {synset.wnid: synset for synset in synsets.values()}
    seen: set[str] = set()
    for member in _members(archive, str(file)):
        wnid = member.name.removesuffix(".tar")
        if not member.name.endswith(".tar") or wnid not in known or wnid in seen:
            raise DataError(f"{file} holds {member.name}, which is not one tar file for each class: see --help")
        seen.add(wnid)
        yield known[wnid], member
    if missing := sorted(set(known) - seen):
        raise DataError(f"{file} lacks {len(missing)} of {len(known)} classes: {some_of(missing)}")


def images_of(archive: BinaryIO, file: Path, synset: Synset, member: Member) -> Iterator[Member]:
    """The images of a class, by their places in the whole archive.

    Raises:
        DataError: its tar file is damaged, holds anything else, or more or less images than it should, which is found
            at the end.
    """
    count = 0
    inner = io.BufferedReader(_Window(archive, member.offset, member.size))
    for image in _members(inner, f"{file}/{member.name}"):
        if not re.fullmatch(rf"{synset.wnid}_\d+\.JPEG", image.name):
            raise DataError(f"{file}/{member.name} holds {image.name}, which is no image of this class")
        count += 1
        yield _bounded(Member(image.name, member.offset + image.offset, image.size))
    if count == 0 or synset.images not in (None, count):
        raise DataError(f"{file}/{member.name} holds {count:,} images, and should hold {synset.images or 'some'}")


def validation_images(archive: BinaryIO, file: Path, labels: Sequence[Synset]) -> Iterator[tuple[Synset, Member]]:
    """Each validation image and its class.

    Args:
        archive: of the validation images.
        file: its path, for errors.
        labels: the class of each image, in the order of their numbers.

    Raises:
        DataError: it is damaged, holds anything else, or lacks images, which is found at the end.
    """
    seen: set[int] = set()
    for image in _members(archive, str(file)):
        found = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", image.name)
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(labels) or number in seen:
            raise DataError(f"{file} holds {image.name}, which is none of the {len(labels):,} validation images")
        seen.add(number)
        yield labels[number - 1], _bounded(image)
    if len(seen) < len(labels):
        first = next(number for number in range(1, len(labels) + 1) if number not in seen)
        raise DataError(
            f"{file} lacks {len(labels) - len(seen):,} of {len(labels):,} images: the first is number {first}"
        )


@contextmanager
def opened_archive(file: Path) -> Iterator[BinaryIO]:
    """A file, to be read from any place; what goes wrong in the block names it.

    Raises:
        FileError: it cannot be read.
    """
    with reading(file):
        opened = file.open("rb")
    with opened:
        yield opened


def words_of(synsets: dict[int, Synset]) -> str:
    """What the classes are, one a line."""
    lines = (f"{synset.wnid} {synset.words}\n" for synset in sorted(synsets.values(), key=lambda each: each.wnid))
    return "".join(lines)


def content_of(archive: BinaryIO, image: Member) -> bytes:
    """An image's bytes."""
    archive.seek(image.offset)
    return archive.read(image.size)


def _bounded(image: Member) -> Member:
    if image.size > _LARGEST:
        raise DataError(f"{image.name} has {image.size:,} bytes, which is more than an image of ImageNet")
    return image


def _members(archive: BinaryIO, name: str) -> Iterator[Member]:
    try:
        yield from members(archive)
    except DataError as error:
        raise DataError(f"{name} {error}") from error


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
