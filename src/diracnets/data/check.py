"""Images looked through before anything is trained on them: every one is decoded, and all that is wrong is listed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from diracnets.data.decode import decoded
from diracnets.data.encoded import EncodedImages
from diracnets.data.image_file import SUFFIXES, opened, suffixes_of
from diracnets.data.inventory import ERRORS, WARNINGS, Finding, Picture
from diracnets.data.inventory_packed import inventory_of
from diracnets.data.processes import spread
from diracnets.data.progress import Report
from diracnets.data.readable import remember_decoded
from diracnets.data.split import wrong_names
from diracnets.data.workers import default_workers
from diracnets.errors import DataError, FileError
from diracnets.files import reading


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        folder: or place that was checked.
        counts: images by class and part ("train", "val"), those that cannot be read included.
        findings: all that there are, errors first.
        notes: what was left out, and how the images are split.
    """

    folder: str
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
            "folder": self.folder,
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
    where: str | Path, *, smallest: int = 16, workers: int | None = None, report: Report | None = None
) -> Checked:
    """Look through a folder of images, shards or Parquet files: decode every image, and compare the bytes of all.

    Errors are images that cannot be decoded; files that no reader takes; empty classes, and classes that only the
    images to train on or those held out have; the same bytes under two labels, or both to train on and held out.
    Warnings are the same bytes twice in a class, names that say another format, and tiny images. Copies that were
    saved anew have other bytes and are not found. Files that could be decoded are remembered, so that training does not
    look at them again.

    Args:
        where: a folder as `find_images` reads it, shards as `find_samples` takes them, or Parquet files as `find_rows`.
        smallest: pixels; images with a shorter side are tiny.
        workers: processes that decode; None takes one a processor, at most 4, and 0 or 1 decodes in this one.
        report: is told how many images are looked at, and of how many.

    Raises:
        UsageError, FileError, DataError, MissingExtraError: the images cannot be found, see `inventory_of`.

    >>> import tempfile
    >>> from PIL import Image
    >>> root = Path(tempfile.mkdtemp())
    >>> for name, colour in (("cat/a.png", "red"), ("cat/b.png", "blue"), ("dog/c.png", "red"), ("dog/d.png", "tan")):
    ...     (root / name).parent.mkdir(exist_ok=True)
    ...     Image.new("RGB", (32, 32), colour).save(root / name)
    >>> [(finding.kind, finding.files) for finding in check(root).findings]
    [('two labels', ('cat/a.png', 'dog/c.png'))]
    """
    found = inventory_of(where)
    pictures = found.pictures
    facts: list[Facts] = []
    for source in found.sources:
        keys, first = source.keys(), len(facts)
        for fact in spread(_facts, source, range(len(source)), default_workers() if workers is None else workers):
            facts.append(fact)
            if report is not None:
                report(len(facts), len(pictures))
        remember_decoded(keys[[fact.why is None for fact in facts[first:]]], where)
    findings = [*found.findings, *_of_classes(found.classes), *_of_images(pictures, facts, smallest)]
    findings += _same(pictures, facts)
    kinds = [*ERRORS, *WARNINGS]
    findings.sort(key=lambda finding: kinds.index(finding.kind))
    counts: dict[str, dict[str, int]] = {}
    for picture in pictures:
        parts = counts.setdefault(picture.label, {"train": 0, "val": 0})
        parts[picture.part] += 1
    return Checked(str(where), counts, tuple(findings), tuple(found.notes))


def _facts(source: EncodedImages, index: int) -> Facts:
    """Decode an image as training does."""
    digest = b""
    try:
        place = source.encoded(index)
        digest = _digest(place)
        with opened(place, source.name(index)) as image:
            suffixes = suffixes_of(image)
            size = decoded(image, 3).size
    except (DataError, FileError) as error:
        return Facts(digest, str(error))
    return Facts(digest, None, suffixes, size)


def _digest(place: str | BinaryIO) -> bytes:
    """Of all bytes; a stream is then at its start again."""
    with reading(str(place)), Path(place).open("rb") if isinstance(place, str) else nullcontext(place) as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()  # type: ignore[arg-type]
        file.seek(0)
        return found


def _of_classes(classes: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with the names of classes."""
    for why in wrong_names(classes):
        yield Finding("class name", (), why)
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[name.casefold()].append(name)
    for names in alike.values():
        if len(set(names)) > 1:
            yield Finding("case", tuple(names))


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
