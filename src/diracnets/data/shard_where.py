"""Which shards a user means: a folder, patterns or URLs become lists of shards to train on and to validate on."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from diracnets.data.layout import Part, part_of
from diracnets.data.shard_list import LIST, Where, class_names, classes_beside, listed, place_beside, read_small
from diracnets.errors import DataError, FileError, MissingExtraError, UsageError, printable, some_of
from diracnets.files import reading
from diracnets.places import kind_of, url_in

_MOST = 1_000_000  # shards
_PREFIX = re.compile(r"(train|val|classes)=(.*)", re.DOTALL)
FORMS = (
    "a folder, shards such as 'train-{000000..000146}.tar' or '*.tar', a URL, or several of these with :: between; "
    "train= and val= before one say what it is for"
)


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
            found.classes = class_names(piece, read_small(piece) or b"")
            continue
        for location, part in _located(piece, found):
            chosen: Part | None = "val" if what == "val" else "train" if what == "train" else part
            named.setdefault(chosen, []).append(location)
    if found.classes is None:
        found.classes = classes_beside(next((each[0] for each in named.values()), ""))
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
                yield from listed(each.rstrip("/") + "/", found)
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
        if read_small(place_beside(base)(LIST)) is not None:
            list(listed(base, found))


def _in_folder(folder: Path, found: Where) -> Iterator[tuple[str, Part | None]]:
    if (folder / LIST).is_file():
        yield from listed(str(folder), found)
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
