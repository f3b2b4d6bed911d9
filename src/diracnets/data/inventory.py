"""The images of a folder or of shards that are to be looked at, and what is wrong with them before any is opened."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from diracnets.data.layout import recognize, refuse_inverted
from diracnets.data.shard_index import index_shard
from diracnets.data.shard_where import LIST, find_shards
from diracnets.data.split import HELD_OUT, hold_out
from diracnets.data.tree import NOT_READ, OTHER_NAME, Account, composed, search
from diracnets.errors import DataError

ERRORS = {
    "unreadable": "cannot be decoded",
    "not read": "of a kind that is not read, or an image whose name does not say so",
    "empty class": "class folders without an image",
    "other classes": "classes of the training or the validation images alone",
    "two labels": "the same file under more than one label",
    "in train and val": "the same file among the images to train on and those held out",
}
WARNINGS = {
    "duplicate": "the same file more than once in a class",
    "suffix": "images whose name says another format than their content",
    "tiny": "images with a side of few pixels",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
        kind: a key of `ERRORS` or `WARNINGS`.
        files: what it is about: files below the folder, or classes.
        text: what to say about it, beyond the names; may be empty.
    """

    kind: str
    files: tuple[str, ...]
    text: str = ""

    @property
    def error(self) -> bool:
        """Whether it must be mended, or is only to be known."""
        return self.kind in ERRORS


@dataclass(frozen=True)
class Picture:
    """An image of a set, before it is looked at.

    Attributes:
        name: below the folder, or within its shard.
        label: name of its class.
        part: "train" or "val".
        place: where its bytes are: a file, or a file with the offset and size of the image in it.
    """

    name: str
    label: str
    part: str
    place: Path | tuple[Path, int, int]


@dataclass
class Inventory:
    """A set of images to look at, and what its layout shows already."""

    pictures: list[Picture] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inventory(folder: Path) -> Inventory:
    """What is in a folder of images, as `find_images` reads it, or of shards, as `find_shards` finds them.

    Raises:
        FileError: the folder is not there or may not be read.
        DataError: it has no layout of image folders.
    """
    return _shards(folder) if _holds_shards(folder) else _folder(folder)


def _folder(root: Path) -> Inventory:
    """The images of a folder, and what its folders show."""
    account = Account(root)
    layout = recognize(search(root, account), account)
    found = Inventory()
    names: dict[str, set[str]] = {}
    for part, base in (("train", layout.train), ("val", layout.val)):
        if base is None:
            continue
        refuse_inverted(base.folders)
        names[part] = {folder.name for folder in base.folders}
        for folder in base.folders:
            files = sorted(folder.all())
            if not files:
                found.findings.append(Finding("empty class", (account.name(folder.path),)))
            found.pictures += [Picture(account.name(file), folder.name, part, file) for file in files]
    if layout.val is None:
        found.pictures = _with_split(found.pictures, layout.train.path)
        account.say(f"to validate: {HELD_OUT}")
    for part, other in (("train", "val"), ("val", "train")):
        if len(names) == 2 and (alone := sorted(names[part] - names[other])):
            found.findings.append(Finding("other classes", tuple(alone), f"in {part} alone"))
    if len(set().union(*names.values())) < 2:
        found.findings.append(Finding("other classes", tuple(names["train"]), "the only class: two are needed"))
    for what in (NOT_READ, OTHER_NAME):
        if paths := account.below(root, what):
            found.findings.append(Finding("not read", tuple(paths), what))
    found.notes = list(account.notes())
    return found


def _holds_shards(folder: Path) -> bool:
    return (folder / LIST).is_file() or next(folder.glob("*.tar"), None) is not None


def _shards(folder: Path) -> Inventory:
    """The images of shards, by what the shards themselves hold, not by an index that was kept."""
    where = find_shards(folder)
    found = Inventory(notes=list(where.notes))
    classes, seen = where.classes, dict[str, set[str]]()
    for part, locations in (("train", where.train), ("val", where.val)):
        for location in locations:
            file = Path(location)
            try:
                with file.open("rb") as stream:
                    index = index_shard(stream)
            except OSError as error:
                found.findings.append(Finding("unreadable", (file.name,), error.strerror or str(error)))
                continue
            found.findings += [Finding("unreadable", (f"{file.name}/{key}",), why) for key, why in index.bad]
            if index.cut is not None:
                found.findings.append(Finding("unreadable", (file.name,), index.cut))
            for name, label, offset, size in zip(index.names, index.labels, index.offsets, index.sizes, strict=True):
                known = classes is not None and isinstance(label, int) and 0 <= label < len(classes)
                called = classes[label] if known and classes is not None and isinstance(label, int) else str(label)
                seen.setdefault(part, set()).add(called)
                found.pictures.append(Picture(f"{file.name}/{name}", called, part, (file, offset, size)))
                if classes is not None and called not in classes:
                    found.findings.append(Finding("other classes", (called,), f"of {file.name}/{name}, not listed"))
    if classes is not None and (empty := [name for name in classes if name not in seen.get("train", set())]):
        found.findings.append(Finding("empty class", tuple(empty), "no image to train on"))
    return found


def _with_split(pictures: list[Picture], base: Path) -> list[Picture]:
    """Images with the part that training would put them into."""
    classes = sorted({picture.label for picture in pictures})
    labels = [classes.index(picture.label) for picture in pictures]
    keys = [composed(Path(str(picture.place)).relative_to(base).as_posix()) for picture in pictures]
    try:
        _, held_out = hold_out(labels, keys, classes)
    except DataError:  # a class of one image, which training refuses
        return pictures
    chosen = set(held_out)
    parts = ("val" if number in chosen else "train" for number in range(len(pictures)))
    return [replace(each, part=part) for each, part in zip(pictures, parts, strict=True)]
