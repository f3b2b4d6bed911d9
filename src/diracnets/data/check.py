"""Images looked through before anything is trained on them: every one is decoded, and all that is wrong is listed."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from diracnets.data.decode import SUFFIXES, decoded, opened, suffixes_of
from diracnets.data.inventory import ERRORS, WARNINGS, Finding, Picture, inventory
from diracnets.data.processes import spread
from diracnets.data.progress import Report
from diracnets.data.readable import remember_decoded
from diracnets.data.workers import default_workers
from diracnets.errors import DataError, FileError

_PIECE = 16  # images that a process is handed


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        folder: that was checked.
        counts: images by class and part ("train", "val"), those that cannot be read included.
        findings: all that there are, errors first.
        notes: what was left out, and how the images are split.
    """

    folder: Path
    counts: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(sum(parts.values()) for parts in self.counts.values())

    @property
    def wrong(self) -> bool:
        """Whether anything must be mended."""
        return any(each.error for each in self.findings)

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": str(self.folder),
            "images": self.images,
            "classes": self.counts,
            "findings": [
                {"kind": each.kind, "error": each.error, "files": list(each.files), "text": each.text}
                for each in self.findings
            ],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Facts:
    """What an image is.

    Attributes:
        digest: of its bytes.
        why: it cannot be read, or None.
        suffixes: of its format.
        size: width and height in pixels.
    """

    digest: bytes
    why: str | None
    suffixes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


def check(
    folder: str | Path, *, smallest: int = 16, workers: int | None = None, report: Report | None = None
) -> Checked:
    """Look through a folder of images, or of shards: decode every image, and compare the bytes of all.

    Errors are images that cannot be decoded; files that no reader takes; empty classes, and classes that only the
    images to train on or those held out have; the same bytes under two labels, or both to train on and held out.
    Warnings are the same bytes twice in a class, names that say another format, and tiny images. Copies that were
    saved anew have other bytes and are not found. Files that could be decoded are remembered, so that training does not
    look at them again.

    Args:
        folder: as `find_images` reads it, or shards, as `find_shards` finds them in a folder.
        smallest: pixels; images with a shorter side are tiny.
        workers: processes that decode; None takes one a processor, at most 4, and 0 or 1 decodes in this one.
        report: is told how many images are looked at, and of how many.

    Raises:
        FileError: the folder is not there or may not be read.
        DataError: it has no layout of image folders.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, colour in (("cat/a.png", "red"), ("cat/b.png", "blue"), ("dog/c.png", "red"), ("dog/d.png", "tan")):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     Image.new("RGB", (32, 32), colour).save(root / name)
    >>> [(finding.kind, finding.files) for finding in check(root).findings]
    [('two labels', ('cat/a.png', 'dog/c.png'))]
    """
    folder = Path(folder)
    found = inventory(folder)
    pictures = found.pictures
    pieces = [pictures[first : first + _PIECE] for first in range(0, len(pictures), _PIECE)]
    facts: list[Facts] = []
    for piece in spread(_look_at, pieces, default_workers() if workers is None else workers, at_once=1):
        facts += piece
        if report is not None:
            report(len(facts), len(pictures))
    good = (picture.place for picture, fact in zip(pictures, facts, strict=True) if fact.why is None)
    remember_decoded([place for place in good if isinstance(place, Path)], folder)
    findings = [*found.findings, *_of_images(pictures, facts, smallest), *_same(pictures, facts)]
    kinds = [*ERRORS, *WARNINGS]
    findings.sort(key=lambda finding: kinds.index(finding.kind))
    counts: dict[str, dict[str, int]] = {}
    for picture in pictures:
        parts = counts.setdefault(picture.label, {"train": 0, "val": 0})
        parts[picture.part] += 1
    return Checked(folder, counts, tuple(findings), tuple(found.notes))


def _look_at(pictures: Sequence[Picture]) -> list[Facts]:
    return [_facts(picture) for picture in pictures]


def _facts(picture: Picture) -> Facts:
    """Decode an image as training does."""
    place, digest = picture.place, b""
    try:
        if isinstance(place, Path):
            digest = _digest(place)
            source: Path | BinaryIO = place
        else:
            content = _part(*place)
            digest = hashlib.blake2b(content, digest_size=16).digest()
            source = io.BytesIO(content)
        with opened(source, str(place) if isinstance(place, Path) else picture.name) as image:
            suffixes = suffixes_of(image)
            size = decoded(image, 3).size
    except (DataError, FileError) as error:
        return Facts(digest, str(error))
    return Facts(digest, None, suffixes, size)


def _digest(file: Path) -> bytes:
    try:
        with file.open("rb") as opened_file:
            return hashlib.file_digest(opened_file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error


def _part(file: Path, offset: int, size: int) -> bytes:
    try:
        with file.open("rb") as opened_file:
            opened_file.seek(offset)
            return opened_file.read(size)
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error


def _of_images(pictures: Sequence[Picture], facts: Sequence[Facts], smallest: int) -> Iterator[Finding]:
    """What is wrong with single images."""
    for picture, fact in zip(pictures, facts, strict=True):
        suffix = PurePosixPath(picture.name).suffix.lower()
        if fact.why is not None:
            yield Finding("unreadable", (picture.name,), fact.why)
            continue
        if suffix in SUFFIXES and suffix not in fact.suffixes:
            yield Finding("suffix", (picture.name,), f"the content is that of a {fact.suffixes[0]} file")
        if min(fact.size) < smallest:
            yield Finding("tiny", (picture.name,), f"{fact.size[0]}x{fact.size[1]} pixels")


def _same(pictures: Sequence[Picture], facts: Sequence[Facts]) -> Iterator[Finding]:
    """Images with the same bytes."""
    groups: dict[bytes, list[Picture]] = defaultdict(list)
    for picture, fact in zip(pictures, facts, strict=True):
        if fact.why is None:
            groups[fact.digest].append(picture)
    for group in groups.values():
        names = tuple(picture.name for picture in group)
        labels, parts = sorted({each.label for each in group}), {each.part for each in group}
        if len(labels) > 1:
            yield Finding("two labels", names, "labels: " + ", ".join(labels))
        elif len(parts) > 1:
            yield Finding("in train and val", names, ", ".join(f"{each.name} in {each.part}" for each in group))
        elif len(group) > 1:
            yield Finding("duplicate", names)
