"""A folder of images, one sub-folder a class: found, checked and split before anything is trained."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diracnets.data.encoded import EncodedImages, key_of, pieces_of, stamp_of
from diracnets.data.image_file import ADVICE, SUFFIXES
from diracnets.data.layout import expected, recognize, refuse_inverted
from diracnets.data.progress import Report
from diracnets.data.readable import CHECKED, Depth, unreadable
from diracnets.data.split import HELD_OUT, hold_out, wrong_names
from diracnets.data.tree import NOT_READ, Account, Tree, composed, search
from diracnets.errors import DataError, some_of

_NAMED = 50  # bad files, of all that there are


@dataclass(frozen=True)
class Listing:
    """Image files and their labels.

    Attributes:
        files: paths.
        labels: of each file, indices into `classes`.
        classes: names of the class folders, sorted, in composed letters (NFC).
        notes: a line for each thing that was left out, or that could be seen otherwise.
    """

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


class FolderSource(EncodedImages):
    """Reads listed files; implements `diracnets.data.decoder.Source`.

    Args:
        files: paths of images.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        # One array, not a list of objects: forked workers would copy the memory of each object they look at.
        self._files = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path."""
        return os.fsdecode(self._files[index])

    def encoded(self, index: int) -> str:
        """The file's path."""
        return self.name(index)

    def keys(self) -> npt.NDArray[np.uint64]:
        """By path, size and time of change."""
        return np.fromiter((key_of(stamp_of(self.name(index))) for index in range(len(self))), np.uint64, len(self))

    def content(self, indices: Sequence[int]) -> bytes:
        """By size, and what is at the begin, in the middle and at the end; of larger sets, of 20,000 from all over."""
        whole = hashlib.blake2b(digest_size=16)
        for index in indices[:: -(-len(indices) // CHECKED) or 1]:
            whole.update(pieces_of(self.name(index)))
        return whole.digest()

    def select(self, indices: Sequence[int]) -> FolderSource:
        """Some of these files."""
        return FolderSource([Path(self.name(index)) for index in indices])


def find_images(
    root: str | Path, *, skip: float = 0.0, workers: int = 0, report: Report | None = None
) -> tuple[Listing, Listing]:
    """The images to train on, and those held out.

    `root` holds `train/<class>/*` and `val/<class>/*`, by these names or others that are usual, in any case (training,
    train_set; valid, validation, dev, holdout; test where there is none of these); or `train/<class>/*` alone, or
    `<class>/*`, of which one image in five of each class is held out, always the same. All of it may lie in one folder
    more. Images are known by their extensions (`diracnets.data.image_file.SUFFIXES`) and may lie deeper inside a class
    folder. What is left out (hidden files, run folders, other extensions, ...), and what could be seen otherwise, is
    said in the listings' `notes`.

    Of sets of up to 20,000 images every file is looked at, and all bad ones are named at once: whether it is an image,
    and whole. Other damage shows when the image is decoded. What was found good is remembered, see
    `diracnets.data.readable.unreadable`.

    Args:
        root: the folder.
        skip: the largest part of the images that may be left out as they cannot be read, 0 to 1; the notes name them.
            Other than 0, every image is decoded, of sets of any size. The images that are held out are chosen before.
        workers: processes that look at the files.
        report: is told how many are looked at, and of how many.

    Raises:
        FileError: `root` is not there or may not be read.
        DataError: there is no such layout in it, a class is empty or the only one, the classes of train and val differ,
            or files with an image's extension are empty, cut off or no image.
    """
    root = Path(root)
    account = Account(root)
    layout = recognize(search(root, account), account)
    train = _listed(layout.train, account)
    if layout.val is None:
        account.say(f"to validate: {HELD_OUT}")
        train, val = _split(train, layout.train.path)
    else:
        val = _listed(layout.val, account)
        names = f"{account.name(layout.train.path)}/", f"{account.name(layout.val.path)}/"
        account.say(f"to train on: {names[0]}; to validate: {names[1]}")
        _check_same_classes(train, val, names, root)
    files = sorted(train.files + val.files)
    if skip:
        wrong = _unreadable(files, root, "decoded", workers, report)
        if len(wrong) > skip * len(files):
            _refuse_unreadable(wrong, len(files))
        if wrong:
            account.say(f"left out as unreadable, {len(wrong):,} of {len(files):,} images: {_told(wrong)}")
        train, val = _without(train, wrong), _without(val, wrong)
    elif len(files) <= CHECKED:
        wrong = _unreadable(files, root, "whole", workers, report)
        _refuse_unreadable(wrong, len(files))
    else:
        account.say(
            f"as there are more than {CHECKED:,} images, it was not checked whether each can be read: "
            "`diracnets data check` does, and --skip-unreadable leaves out what cannot"
        )
    notes = account.notes()
    return replace(train, notes=notes), replace(val, notes=notes)


def _unreadable(
    files: Sequence[Path], root: Path, depth: Depth, workers: int, report: Report | None
) -> dict[Path, str]:
    wrong = unreadable(FolderSource(files), root, depth, workers=workers, report=report)
    return {files[number]: why for number, why in wrong.items()}


def _listed(base: Tree, account: Account) -> Listing:
    """The images of each class folder, and their labels."""
    classes: dict[str, list[Tree]] = defaultdict(list)
    for folder in base.folders:
        classes[folder.name].append(folder)
    if not classes:
        raise DataError(f"{base.path} holds no class folders: {expected(account.root)}")
    refuse_inverted(base.folders)
    if empty := [trees[0] for trees in classes.values() if not any(tree.holds_pictures for tree in trees)]:
        raise DataError(_why_empty(empty, account))
    if len(classes) == 1:
        only = base.folders[0].name
        raise DataError(f"{base.path} holds one class only, {only!r}: at least two are needed")
    files: list[Path] = []
    labels: list[int] = []
    for label, (name, trees) in enumerate(classes.items()):
        if wrong := wrong_names([name]):
            raise DataError(f"{base.path}: {wrong[0]}")
        if len(trees) > 1:
            account.say(f"the {len(trees)} folders {name}/, in composed and decomposed letters, are one class")
        for tree in trees:
            for inner in tree.inner:
                account.add("images of the class that they lie in", inner.path)
        found = sorted(file for tree in trees for file in tree.all())
        files += found
        labels += [label] * len(found)
    return Listing(files, labels, tuple(classes))


def _why_empty(empty: list[Tree], account: Account) -> str:
    names = some_of(tree.path for tree in empty)
    unread = [name for tree in empty for name in account.below(tree.path, NOT_READ)]
    only = f", only images of kinds that are not read ({some_of(unread, limit=3)})" if unread else ""
    what = f"class folder{'s' * (len(empty) > 1)} {names} hold{'s' * (len(empty) == 1)} no images"
    return f"{what} ({' '.join(sorted(SUFFIXES))}){only}: add some or remove the folder"


def _split(listing: Listing, base: Path) -> tuple[Listing, Listing]:
    # In composed letters, so that a copy of the folder on another system has the same split.
    keys = [composed(file.relative_to(base).as_posix()) for file in listing.files]
    train, held_out = (
        Listing([listing.files[n] for n in part], [listing.labels[n] for n in part], listing.classes)
        for part in hold_out(listing.labels, keys, listing.classes)
    )
    return train, held_out


def _check_same_classes(train: Listing, val: Listing, names: tuple[str, str], root: Path) -> None:
    if train.classes == val.classes:
        return
    missing = [sorted(set(one.classes) - set(other.classes)) for one, other in ((train, val), (val, train))]
    where = [f"only in {name}: {some_of(only)}" for name, only in zip(names, missing, strict=True) if only]
    raise DataError(
        f"the class folders of {names[0]} and {names[1]} in {root} differ ({'; '.join(where)}): make them the same"
    )


def _without(listing: Listing, wrong: Mapping[Path, str]) -> Listing:
    kept = [number for number, file in enumerate(listing.files) if file not in wrong]
    labels = [listing.labels[number] for number in kept]
    if empty := sorted(set(listing.labels) - set(labels)):
        raise DataError(f"no image can be read of class {some_of(listing.classes[each] for each in empty)}")
    return replace(listing, files=[listing.files[number] for number in kept], labels=labels)


def _refuse_unreadable(wrong: Mapping[Path, str], count: int) -> None:
    """Name all files that cannot be read."""
    part = math.ceil(1000 * len(wrong) / count) / 1000
    if len(wrong) == 1:
        raise DataError(f"{_told(wrong)}{ADVICE}, or leave it out with --skip-unreadable {part}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {count} images cannot be read: {_told(wrong)}: "
            f"replace or remove them, or leave them out with --skip-unreadable {part}"
        )


def _told(wrong: Mapping[Path, str]) -> str:
    """What is wrong with the first files."""
    told = [why.removesuffix(ADVICE) for why in list(wrong.values())[:_NAMED]]
    if len(wrong) > _NAMED:
        told.append(f"and {len(wrong) - _NAMED} more, which `diracnets data check` names")
    return "; ".join(told)
