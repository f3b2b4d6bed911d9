"""Which shards a user means: a folder, patterns or URLs become lists of shards to train on and to validate on."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from diracnets.data.layout import Part, part_of
from diracnets.data.tree import composed
from diracnets.errors import DataError, FileError, MissingExtraError, UsageError, printable, shown, some_of
from diracnets.files import kind_of, reading, url_in
from diracnets.web import read_url

LIST = "_info.json"  # of timm's sets, and ours
CLASSES = ("classes.txt", "classnames.txt")  # a class a line, in the order of the labels
_MOST = 1_000_000  # shards
_LONGEST = 1 << 26  # bytes of a list
_PREFIX = re.compile(r"(train|val|classes)=(.*)", re.DOTALL)
FORMS = (
    "a folder, shards such as 'train-{000000..000146}.tar' or '*.tar', a URL, or several of these with :: between; "
    "train= and val= before one say what it is for"
)


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


def find_shards(where: str | Path) -> Where:
    """The shards that a user means.

    What they are for is said by `train=` or `val=`, by the list in `_info.json`, or by a word in the name of the file
    or its folder, such as train or validation ("test" where there is no other). Where none is for validation, all are
    for training. Class names are those of `classes=FILE`, of `_info.json`, or of `classes.txt` or `classnames.txt`
    beside the shards.

    Args:
        where: a folder, a path with wildcards or brace ranges, a URL, the URL of a folder that has a `_info.json`, or
            several of these with `::` between them.

    Raises:
        UsageError: it cannot be understood.
        FileError: it is not there, or cannot be read.
        DataError: there are no shards, or none to train on.
        MissingExtraError: a brace range without braceexpand.
    """
    found = Where()
    named: dict[Part | None, list[str]] = {}
    for piece in str(where).split("::"):
        prefix = _PREFIX.fullmatch(piece)
        what, piece = (prefix[1], prefix[2]) if prefix else (None, piece)
        if what == "classes":
            found.classes = _lines(piece, _read(piece) or b"")
            continue
        for location, part in _located(piece, found):
            chosen: Part | None = "val" if what == "val" else "train" if what == "train" else part
            named.setdefault(chosen, []).append(location)
    if found.classes is None:
        found.classes = _classes_beside(next((each[0] for each in named.values()), ""))
    _assign(named, found, where)
    refuse_twice(found.train, found.val)
    return found


def refuse_twice(train: Sequence[str | Path], val: Sequence[str | Path]) -> None:
    """Refuse a file that is given twice, also by another path or through a link.

    Raises:
        UsageError: one is.
    """
    parts = [[str(each) if url_in(each) else os.path.realpath(each) for each in part] for part in (train, val)]
    first = set(parts[0])
    for part, given in zip(parts, (train, val), strict=True):
        counts = Counter(part)
        if repeated := [each for file, each in zip(part, given, strict=True) if counts[file] > 1]:
            raise UsageError(f"{some_of(sorted(set(map(str, repeated))))} is given twice")
    if both := sorted({str(each) for file, each in zip(parts[1], val, strict=True) if file in first}):
        raise UsageError(f"{some_of(both)} is given both to train and to validate on")


def _assign(named: dict[Part | None, list[str]], found: Where, where: str | Path) -> None:
    names = printable(str(where))
    if not named:
        raise DataError(f"there are no shards (.tar) in {names}: give {FORMS}")
    found.train = named.pop("train", [])
    found.val = named.pop("val", []) or named.pop("test", [])
    if not found.train and None in named:
        found.train = named.pop(None)
    if not found.train:
        only = some_of(found.val, limit=2)
        raise DataError(f"{names} has shards to validate on only ({only}): give those to train on too; {FORMS}")
    for part, shards in named.items():
        what = "to test on" if part == "test" else "neither to train nor to validate on, by their names"
        found.notes.append(f"{len(shards)} shards are left out as {what}: {some_of(shards, limit=3)}")


def _located(piece: str, found: Where) -> Iterator[tuple[str, Part | None]]:
    """The shards of one of the user's places, and what they are for by their names."""
    if url := url_in(piece):
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise UsageError(f"{url} is neither a path nor an http or https URL")
        for each in _expanded(url):
            if urlsplit(each).path.endswith(".tar"):
                if not urlsplit(each).query:  # a signed URL: its neighbours have other ones
                    _look_beside(urljoin(each, "."), found)
                yield each, _part(urlsplit(each).path)
            else:
                yield from _listed(each.rstrip("/") + "/", found)
        return
    for each in _expanded(piece):
        if any(sign in each for sign in "*?[") and kind_of(each) is None:
            matches = sorted(glob.glob(each, recursive=True))  # noqa: PTH207  of paths that may be absolute
            if not matches:
                raise FileError(f"no file matches {each}")
            shards = [str(Path(match)) for match in matches if Path(match).is_file()]
        elif kind_of(each) == "file":
            shards = [str(Path(each))]
        elif kind_of(each) == "folder":
            yield from _in_folder(Path(each), found)
            continue
        else:
            raise FileError(f"there is no {each}: give {FORMS}")
        for shard in shards:
            _look_beside(str(Path(shard).parent), found)
            yield shard, _part(shard)


def _look_beside(base: str, found: Where) -> None:
    """Take in what a list beside a shard says, if there is one."""
    if base not in found.looked_at:
        found.looked_at.add(base)
        if _read(_beside(base)(LIST)) is not None:
            list(_listed(base, found))


def _in_folder(folder: Path, found: Where) -> Iterator[tuple[str, Part | None]]:
    if (folder / LIST).is_file():
        yield from _listed(str(folder), found)
        return
    with reading(folder):
        shards = sorted(folder.glob("*.tar")) or sorted(folder.glob("*/*.tar"))
    if not shards and (packed := sorted(folder.glob("*.t*gz"))):
        raise DataError(
            f"{some_of(packed, limit=2)} are compressed, which cannot be read in any order: unpack them to .tar"
        )
    for shard in shards:
        if not shard.name.startswith("."):
            yield str(shard), _part(shard.relative_to(folder).as_posix())


def _listed(base: str, found: Where) -> Iterator[tuple[str, Part | None]]:
    """The shards of a folder's or a URL's `_info.json`."""
    beside = _beside(base)
    content = _read(beside(LIST))
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


def _leaves(name: str) -> bool:
    """Whether a name in a list points anywhere but beside the list or below."""
    if not isinstance(name, str) or not name:
        return True
    return bool(re.search(r"(^|/)\.\.(/|$)|^/|\\|[?#:%\0]|[\ud800-\udc7f\udd00-\udfff]", name))  # halves of letters too


def _beside(base: str) -> Callable[[str], str]:
    return (lambda name: urljoin(base, name)) if url_in(base) else (lambda name: str(Path(base) / name))


def _classes_beside(shard: str) -> tuple[str, ...] | None:
    """The classes in a file beside the shards or one folder up, where there is such a file."""
    if urlsplit(shard).query:  # a signed URL: its neighbours have other ones
        return None
    if url_in(shard):
        places = [urljoin(shard, name) for name in CLASSES] + [urljoin(shard, f"../{name}") for name in CLASSES]
    else:
        places = [str(Path(shard).parent / name) for name in CLASSES]
        places += [str(Path(shard).parent.parent / name) for name in CLASSES]
    for place in places:
        if (content := _read(place)) is not None:
            return _lines(place, content)
    return None


def _lines(place: str, content: bytes) -> tuple[str, ...]:
    try:
        classes = tuple(composed(line.strip()) for line in content.decode("utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise FileError(f"{place} is not text: {error}") from error
    if len(set(classes)) != len(classes) or not classes:
        raise FileError(f"{place} is not a list of classes, one a line: it is empty, or one stands in it twice")
    return classes


def _read(place: str) -> bytes | None:
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


def _part(path: str) -> Part | None:
    """What the name of a shard, or else of its folder, says that it is for."""
    *_, folder, name = ("", *path.split("/"))
    words = re.split(r"[-_. ]", name.removesuffix(".tar"))
    return next((part for word in (*words, folder) if (part := part_of(word))), None)


def _expanded(text: str) -> list[str]:
    """A text with brace ranges, as all the texts that it stands for."""
    if "{" not in text or (url_in(text) is None and kind_of(text)):
        return [text]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise MissingExtraError('a brace range needs the webdataset extra: pip install "diracnets[shards]"') from error
    try:
        found = list(islice(braceexpand(text), _MOST + 1))
    except ValueError as error:
        raise UsageError(f"the braces of {text} are not as they should be ({error})") from error
    if len(found) > _MOST:
        raise UsageError(f"{text} stands for more than {_MOST:,} shards")
    return found
