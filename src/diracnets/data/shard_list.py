"""What lies beside shards and speaks of them: the list in `_info.json`, and the names of the classes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from diracnets.data.layout import Part, part_of
from diracnets.data.tree import composed
from diracnets.errors import DataError, FileError, shown
from diracnets.places import url_in
from diracnets.web import read_url

LIST = "_info.json"  # of timm's sets, and ours
CLASSES = ("classes.txt", "classnames.txt")  # a class a line, in the order of the labels
_LONGEST = 1 << 26  # bytes of a list


@dataclass(frozen=True)
class Stated:
    """What a list of shards says of one: none of it is certain.

    Raises:
        ValueError: a size or hash that cannot be.
    """

    images: int | None = None
    size: int | None = None
    sha256: str | None = None
    index: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not (isinstance(self.size, int) and self.size >= 0):
            raise ValueError(f"{str(self.size)[:80]} is no number of bytes")
        if self.sha256 is not None and not (isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise ValueError(f"{str(self.sha256)[:80]} is no SHA-256")


@dataclass
class Where:
    """Shards, as paths or URLs.

    Attributes:
        train: to train on.
        val: to validate on; empty where a part of `train` is to be held out.
        classes: their names, where they are listed.
        stated: what is listed of some shards.
        notes: a line for each thing that a user should know.
        looked_at: folders in which a list was looked for.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    stated: dict[str, Stated] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    looked_at: set[str] = field(default_factory=set)


def listed(base: str, found: Where) -> Iterator[tuple[str, Part | None]]:
    """The shards of a folder's or a URL's `_info.json`, and what they are for; what it says of them goes to `found`.

    Raises:
        FileError: there is no such list, or it is none.
        DataError: it lists something that is not beside it.
    """
    beside = place_beside(base)
    content = read_small(beside(LIST))
    if content is None:
        raise FileError(f"there is no {beside(LIST)} to list the shards: give them, as {beside('{0000..0146}.tar')}")
    try:
        info = json.loads(content)
        splits = dict(info["splits"])
        classes = info.get("classes")
        if classes is not None and found.classes is None:
            found.classes = tuple(composed(name) for name in classes)
        for key, split in splits.items():
            part = part_of(str(split.get("name", key))) or part_of(key)
            facts = {shard["file"]: shard for shard in split.get("shards", ())}
            for name, images in zip(split["filenames"], split["shard_lengths"], strict=True):
                if _leaves(name):
                    raise DataError(f"{beside(LIST)} lists {name!r}, which is not beside it")
                if not 0 <= images < 1 << 40:
                    raise ValueError(f"of {shown(images)} images")
                location, fact = beside(name), facts.get(name, {})
                index = fact.get("index")
                if index is not None and _leaves(index):
                    raise DataError(f"{beside(LIST)} lists {index!r}, which is not beside it")
                found.stated[location] = Stated(
                    int(images), fact.get("bytes"), fact.get("sha256"), None if index is None else beside(index)
                )
                yield location, part
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise FileError(f"{beside(LIST)} is not a list of shards: {type(error).__name__} {error}") from error


def classes_beside(shard: str) -> tuple[str, ...] | None:
    """The classes in a file beside the shards or one folder up, where there is such a file."""
    if urlsplit(shard).query:  # a signed URL: its neighbours have other ones
        return None
    if url_in(shard):
        places = [urljoin(shard, name) for name in CLASSES] + [urljoin(shard, f"../{name}") for name in CLASSES]
    else:
        places = [str(Path(shard).parent / name) for name in CLASSES]
        places += [str(Path(shard).parent.parent / name) for name in CLASSES]
    for place in places:
        if (content := read_small(place)) is not None:
            return class_names(place, content)
    return None


def class_names(place: str, content: bytes) -> tuple[str, ...]:
    """The classes in a file, one a line.

    Raises:
        FileError: it is no such file.
    """
    try:
        classes = tuple(composed(line.strip()) for line in content.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise FileError(f"{place} is not text: {error}") from error
    if len(set(classes)) != len(classes) or not classes:
        raise FileError(f"{place} is not a list of classes, one a line: it is empty, or one stands in it twice")
    return classes


def read_small(place: str) -> bytes | None:
    """A small file at a path or URL; None where it is not there."""
    if url := url_in(place):
        content = read_url(url, _LONGEST)
        page = content is not None and content.lstrip()[:1] == b"<"  # as some servers answer for what they do not have
        return None if page else content
    try:
        with Path(place).open("rb") as file:
            return file.read(_LONGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"cannot read {place}: {error.strerror or error}") from error


def place_beside(base: str) -> Callable[[str], str]:
    """What makes of a name the path or URL of that file in a folder."""
    return (lambda name: urljoin(base, name)) if url_in(base) else (lambda name: str(Path(base) / name))


def _leaves(name: str) -> bool:
    """Whether a name in a list points anywhere but beside the list or below."""
    if not isinstance(name, str) or not name:
        return True
    return bool(re.search(r"(^|/)\.\.(/|$)|^/|\\|[?#:%\0]|[\ud800-\udc7f\udd00-\udfff]", name))  # halves of letters too
