"""The pictures below a folder, and an account of everything that is left out: nothing is passed over in silence."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diracnets.data.image_file import SUFFIXES, opened
from diracnets.errors import DataError, FileError, printable, some_of
from diracnets.files import reading

_SYSTEM_FOLDERS = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_NOT_READ = re.compile(
    r"\.(hei[cf]|hif|dib|avif|jxl|j2k|jp2|svgz?|psd|xcf|ai|eps|pdf|ico|tga|dds|exr|hdr|raw|dng|cr[23]|nef|arw|orf|rw2|raf|pef|srw)"
)
_NO_IMAGES = re.compile(r"\.(txt|[ct]sv|jsonl?|xml|ya?ml|toml|md|html?|py|log|np[yz]|pt|mat|zip|gz|db|mp4|mov|avi)")
_MADE = ({"evaluation.json", "confusion.png"}, {"prune.json", "prune.png"}, {".made-by-diracnets-demo"})
_RUN_FILES = {"run.json", "last.pt", "best.pt", "metrics.jsonl", "environment.json", "model.safetensors"}

HIDDEN = "left out as hidden, or the system's own"
OURS = "left out as written by diracnets"
NO_IMAGE = "left out as no image"
NOT_READ = "left out as of a kind that is not read (convert it to JPEG or PNG)"
OTHER_NAME = "left out as an image whose name does not say so (rename it to take it in)"
NOT_A_FILE = "left out as neither a file nor a folder"
SEEN = "left out as a link to a folder that is here already"
TAKEN_IN = "taken in as an image, by its content"


def composed(name: str) -> str:
    """A name with accented letters as single characters (NFC), as which macOS may not have given it.

    >>> composed("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


class Account:
    """What was left out or taken otherwise than it may seem, below a folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._said: list[str] = []
        self._paths: defaultdict[str, list[Path]] = defaultdict(list)

    def say(self, note: str) -> None:
        """Remember a sentence."""
        self._said.append(note)

    def add(self, what: str, path: Path) -> None:
        """Remember one more file or folder that something holds for."""
        self._paths[what].append(path)

    def below(self, folder: Path, what: str) -> list[str]:
        """Names of the files and folders below one folder that this holds for."""
        return [self.name(path) for path in self._paths.get(what, []) if path.is_relative_to(folder)]

    def name(self, path: Path) -> str:
        """How a path is printed: what is below the root without the root."""
        return printable(str(path) if path == self.root else path.relative_to(self.root).as_posix())

    def notes(self) -> tuple[str, ...]:
        """What was said, and then a line for each thing that holds for files or folders, with a few of their names."""
        lines = (f"{what}: {some_of(map(self.name, paths), limit=3)}" for what, paths in self._paths.items())
        return (*self._said, *lines)


@dataclass(eq=False)
class Tree:
    """A folder that was searched.

    Attributes:
        path: of the folder.
        pictures: files lying in it, sorted.
        folders: those in it, sorted by name, without what is left out.
        empty: whether nothing at all lies in it.
    """

    path: Path
    pictures: list[Path] = field(default_factory=list)
    folders: list[Tree] = field(default_factory=list)
    empty: bool = True

    @property
    def name(self) -> str:
        """The folder's name, in composed letters: macOS may have decomposed them."""
        return composed(self.path.name)

    def all(self) -> Iterator[Path]:
        """The pictures in it and in all folders below."""
        yield from self.pictures
        for folder in self.folders:
            yield from folder.all()

    @property
    def holds_pictures(self) -> bool:
        """Whether there is one, anywhere below."""
        return next(self.all(), None) is not None

    @property
    def inner(self) -> list[Tree]:
        """The folders in it that hold pictures."""
        return [folder for folder in self.folders if folder.holds_pictures]


def search(root: Path, account: Account) -> Tree:
    """All pictures below a folder. Links to folders are followed, unless what they lead to is here already.

    A picture is a file whose name ends as those of images do, or has no such ending and an image in it.

    Args:
        root: where to look.
        account: gets what is left out.

    Raises:
        FileError: a folder is not there or may not be read.
    """
    tree, seen = Tree(root), set[tuple[int, int]]()
    links: list[tuple[Tree, Path]] = []
    _fill(tree, account, seen, links)
    while links:  # after all folders proper: a link must not take a folder's place
        parent, path = links.pop(0)
        if _identity(path) in seen:
            account.add(SEEN, path)
        else:
            _add(Tree(path), parent, account, seen, links)
    _prune(tree, account)
    return tree


def _fill(tree: Tree, account: Account, seen: set[tuple[int, int]], links: list[tuple[Tree, Path]]) -> None:
    seen.add(_identity(tree.path))
    entries = _entries(tree.path)
    tree.empty = not entries
    for entry in entries:
        path = tree.path / entry.name
        if _leads_to(entry, folder=True):
            if entry.name.startswith(".") or entry.name.casefold() in _SYSTEM_FOLDERS:
                account.add(HIDDEN, path)
            elif entry.is_symlink():
                links.append((tree, path))
            else:
                _add(Tree(path), tree, account, seen, links)
        elif what := _why_no_picture(entry, path):
            account.add(what, path)
        else:
            tree.pictures.append(path)
            if path.suffix.lower() not in SUFFIXES:
                account.add(TAKEN_IN, path)


def _add(
    tree: Tree, parent: Tree, account: Account, seen: set[tuple[int, int]], links: list[tuple[Tree, Path]]
) -> None:
    if _is_ours({entry.name for entry in _entries(tree.path)}):
        account.add(OURS, tree.path)
        return
    _fill(tree, account, seen, links)
    parent.folders.append(tree)
    parent.folders.sort(key=lambda each: (each.name, each.path))


def _prune(tree: Tree, account: Account) -> None:
    """Take away the folders in which there is nothing but what we wrote, such as runs/."""
    tree.folders = [each for each in tree.folders if each.holds_pictures or not account.below(each.path, OURS)]
    for folder in tree.folders:
        _prune(folder, account)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with reading(f"the image folder {folder}"), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _identity(folder: Path) -> tuple[int, int]:
    with reading(f"the image folder {folder}"):
        facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _is_ours(names: set[str]) -> bool:
    """Whether a folder's files are those of a run, a demo or an evaluation: its pictures are curves and the like."""
    run = "recipe.toml" in names and (bool(names & _RUN_FILES) or names == {"recipe.toml"})
    return run or any(made <= names for made in _MADE)


def _why_no_picture(entry: os.DirEntry[str], path: Path) -> str | None:
    suffix = path.suffix.lower()
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
        return HIDDEN
    if suffix in SUFFIXES and (entry.is_symlink() or _leads_to(entry)):
        return None  # also a link to nothing: it will be named with all that cannot be read
    if not _leads_to(entry):
        return NOT_A_FILE
    if _NOT_READ.fullmatch(suffix):
        return NOT_READ
    if _NO_IMAGES.fullmatch(suffix) or not _is_image(path):
        return NO_IMAGE
    return OTHER_NAME if re.fullmatch(r"\.[a-z]\w*~?", suffix) else None


def _leads_to(entry: os.DirEntry[str], *, folder: bool = False) -> bool:
    """Whether it is a file or a link to one, or the same of a folder."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_image(path: Path) -> bool:
    try:
        with opened(path):
            return True
    except (DataError, FileError):
        return False
