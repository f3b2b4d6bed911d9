"""The images of a folder that are to be looked at, and what is wrong with them before any is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diracnets.data.encoded import EncodedImages
from diracnets.data.folder import FolderSource
from diracnets.data.layout import expected, recognize, refuse_inverted
from diracnets.data.split import HELD_OUT, hold_out
from diracnets.data.tree import NOT_READ, OTHER_NAME, Account, composed, search
from diracnets.errors import DataError

ERRORS = {
    "unreadable": "cannot be used",
    "not read": "of a kind that is not read, or an image whose name does not say so",
    "empty class": "class folders without an image",
    "class name": "names of classes that cannot be used",
    "other classes": "classes of the training or the validation images alone",
    "two labels": "the same file under more than one label",
    "in train and val": "the same file among the images to train on and those held out",
}
WARNINGS = {
    "case": "classes whose names differ in capital letters alone",
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
    """

    name: str
    label: str
    part: str


@dataclass
class Inventory:
    """A set of images to look at, and what its layout shows already.

    Attributes:
        pictures: all that there are.
        classes: their names, listed or seen.
        sources: give the pictures, one after the other.
        findings: what is wrong with the layout.
        notes: a line for each thing that a user should know.
    """

    pictures: list[Picture] = field(default_factory=list)
    classes: Sequence[str] = ()
    sources: list[EncodedImages] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, kind: str, files: Sequence[str], text: str = "") -> None:
        """One more thing that is wrong."""
        self.findings.append(Finding(kind, tuple(files), text))


def inventory(root: Path) -> Inventory:
    """The images of a folder, as `find_images` reads it, and what its folders show.

    Raises:
        FileError: the folder is not there or may not be read.
        DataError: it has no layout of image folders.
    """
    account = Account(root)
    layout = recognize(search(root, account), account)
    found = Inventory()
    every: list[Path] = []
    names: dict[str, set[str]] = {}
    for part, base in (("train", layout.train), ("val", layout.val)):
        if base is None:
            continue
        refuse_inverted(base.folders)
        names[part] = {folder.name for folder in base.folders}
        for folder in base.folders:
            files = sorted(folder.all())
            if not files:
                found.find("empty class", [account.name(folder.path)])
            found.pictures += [Picture(account.name(file), folder.name, part) for file in files]
            every += files
    if not any(names.values()):
        raise DataError(f"{root} holds no class folders: {expected(root)}")
    found.sources.append(FolderSource(every))
    found.classes = sorted(set().union(*names.values()))
    if layout.val is None:
        keys = [composed(file.relative_to(layout.train.path).as_posix()) for file in every]
        found.pictures = split(found.pictures, keys)
        account.say(f"to validate: {HELD_OUT}")
    for part, other in (("train", "val"), ("val", "train")):
        if len(names) == 2 and (alone := sorted(names[part] - names[other])):
            found.find("other classes", alone, f"in {part} alone")
    if len(found.classes) < 2:
        found.find("other classes", list(names["train"]), "the only class: two are needed")
    for what in (NOT_READ, OTHER_NAME):
        if paths := account.below(root, what):
            found.find("not read", paths, what)
    found.notes = list(account.notes())
    return found


def split(pictures: list[Picture], keys: list[str]) -> list[Picture]:
    """Images with the part that training would put them into, by keys as for `hold_out`."""
    classes = sorted({picture.label for picture in pictures})
    labels = [classes.index(picture.label) for picture in pictures]
    try:
        _, held_out = hold_out(labels, keys, classes)
    except DataError:  # a class of one image, which training refuses
        return pictures
    chosen = set(held_out)
    parts = ("val" if number in chosen else "train" for number in range(len(pictures)))
    return [replace(each, part=part) for each, part in zip(pictures, parts, strict=True)]
