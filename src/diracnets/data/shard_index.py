"""What is in a shard: which samples, where in it their images lie, and how they are labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from diracnets.data.image_file import SUFFIXES
from diracnets.data.tar import Member, begins, members
from diracnets.data.tree import composed
from diracnets.errors import DataError, shown

FORMAT = "diracnets-shard-index-1"
LARGEST = 1 << 29  # bytes of an image
_LABELS = ("cls", "cls.txt", "label", "label.txt", "json")  # in this order; a class name or its number
_KEYS = ("label", "class", "cls", "target")  # of a sample's JSON, in this order
_TEXT, _JSON = 1 << 10, 1 << 20  # bytes that a label may have

Label = int | str


@dataclass
class ShardIndex:
    """The samples of one shard that can be used, and those that cannot.

    Attributes:
        size: of the shard, in bytes.
        names: of the images, within the shard.
        offsets: of the images' bytes in the shard.
        sizes: of the images, in bytes.
        labels: of the images: numbers, or names of classes.
        bad: what cannot be used, and why.
        others: how many groups of members have neither an image nor a label, and so are no samples.
        cut: what is wrong with the shard as a whole: samples after some place are lost.
        version: what the server calls the shard that was indexed, where it is remote.
    """

    size: int
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0
    cut: str | None = None
    version: str | None = None

    def to_json(self, **stamp: object) -> str:
        """As text, with what `stamp` says of the shard that it was made of."""
        return json.dumps({"format": FORMAT, **stamp, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, **stamp: object) -> ShardIndex | None:
        """The index of a text; None where it is not one, or says something else of the shard than `stamp`.

        Whatever it says can be used without harm: offsets and sizes are within the shard.
        """
        try:
            found = json.loads(text)
            if found.pop("format") != FORMAT or any(found.pop(key, None) != value for key, value in stamp.items()):
                return None
            made = cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return made if made._is_sound() else None

    def _is_sound(self) -> bool:
        try:
            columns = (self.names, self.offsets, self.sizes, self.labels)
            self.bad = [(str(name), str(why)) for name, why in self.bad]
            return (
                len({len(column) for column in columns}) == 1
                and type(self.size) is type(self.others) is int
                and all(type(name) is str for name in self.names)
                and all(type(label) in (int, str) for label in self.labels)
                and all(
                    type(offset) is int and type(size) is int and offset >= 512 and 0 <= size <= LARGEST
                    and offset + size <= self.size
                    for offset, size in zip(self.offsets, self.sizes, strict=True)
                )
            )  # fmt: skip
        except (TypeError, ValueError):
            return False

    def fits(self, shard: BinaryIO) -> bool:
        """Whether the first and the last image lie in the shard where the index says."""
        ends = {0, len(self.names) - 1} if self.names else set[int]()
        return all(begins(shard, self.offsets[number], self.sizes[number]) for number in ends)


def index_shard(shard: BinaryIO) -> ShardIndex:
    """Read a shard's headers and labels.

    Members that follow one another and have the same name up to the first dot of its last part are a sample, as in the
    WebDataset format. Its image is the member with an extension of `SUFFIXES`, its label `cls` (a number or the name of
    a class), `cls.txt`, `label`, or `json` with "label", "class", "cls" or "target".

    Args:
        shard: a tar file.

    Raises:
        DataError: it is no tar file, or compressed. A damaged one gives the samples before the damage.
    """
    index = ShardIndex(shard.seek(0, 2))
    seen = set[str]()
    for key, sample in _samples(shard, index):
        why = None
        if not _images(sample) and not any(kind in sample for kind in _LABELS):
            index.others += 1
            continue
        try:
            if key in seen:
                raise DataError("its key is there already")
            image = _image(sample)
            label = _label(shard, sample)
        except DataError as error:
            why = str(error)
        seen.add(key)
        if why is not None:
            index.bad.append((key, why))
            continue
        index.names.append(image.name)
        index.offsets.append(image.offset)
        index.sizes.append(image.size)
        index.labels.append(label)
    if index.cut is not None and not (index.names or index.bad):
        raise DataError(index.cut)
    return index


def _samples(shard: BinaryIO, index: ShardIndex) -> Iterator[tuple[str, dict[str, list[Member]]]]:
    """Each key, and the members of the sample by what follows the key."""
    current, sample = "", dict[str, list[Member]]()
    try:
        for member in members(shard):
            found = re.fullmatch(r"((?:.*/)?[^./][^/.]*)\.([^/]*)", member.name, re.DOTALL)
            if found is None or re.match(r"__[^/]*__($|/)", member.name):
                continue
            if found[1] != current and sample:
                yield current, sample
                sample = {}
            current = found[1]
            sample.setdefault(found[2].lower(), []).append(member)
    except DataError as error:
        index.cut = str(error)
    if sample:
        yield current, sample


def _images(sample: Mapping[str, list[Member]]) -> list[str]:
    return [kind for kind in sample if f".{kind.rpartition('.')[2]}" in SUFFIXES]


def _image(sample: Mapping[str, list[Member]]) -> Member:
    images = _images(sample)
    plain = [kind for kind in images if "." not in kind] or images
    if not plain:
        raise DataError(f"no image, only {', '.join(sorted(sample))}")
    if len(plain) > 1 or len(sample[plain[0]]) > 1:
        raise DataError(f"more than one image: {', '.join(member.name for kind in plain for member in sample[kind])}")
    [image] = sample[plain[0]]
    if not 0 < image.size <= LARGEST:
        raise DataError(f"an image of {image.size:,} bytes")
    return image


def _label(shard: BinaryIO, sample: Mapping[str, list[Member]]) -> Label:
    kind = next((kind for kind in _LABELS if kind in sample), None)
    if kind is None:
        raise DataError(f"no label ({', '.join(_LABELS)}), only {', '.join(sorted(sample))}")
    if len(sample[kind]) > 1:
        raise DataError(f"more than one {kind}")
    [member] = sample[kind]
    if member.size > (_JSON if kind == "json" else _TEXT):
        raise DataError(f"a label of {member.size:,} bytes")
    shard.seek(member.offset)
    content = shard.read(member.size)
    try:
        value = _in_json(json.loads(content)) if kind == "json" else content.decode().strip()
    except (ValueError, RecursionError) as error:
        raise DataError(f"a label that cannot be read: {error}") from error
    return as_label(value)


def _in_json(facts: Any) -> Any:  # noqa: ANN401
    if isinstance(facts, dict):
        for key in _KEYS:
            if key in facts:
                return facts[key]
    raise DataError(f"no label: its JSON has none of {', '.join(_KEYS)}")


def as_label(value: Any) -> Label:  # noqa: ANN401
    """A class's number or name.

    Raises:
        DataError: it is neither.

    >>> as_label("007"), as_label("tabby cat"), as_label(3)
    (7, 'tabby cat', 3)
    """
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,12}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"a label that is neither a number nor a name: {shown(value)}")
    if isinstance(value, int) and not 0 <= value < 1 << 31:
        raise DataError(f"a label of {value}")
    return composed(value) if isinstance(value, str) else value
