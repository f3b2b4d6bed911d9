"""Which folders hold the images to train on, which those held out, and which are classes: recognized, or refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diracnets.data.tree import Account, Tree
from diracnets.errors import DataError, some_of

Part = Literal["train", "val", "test"]

_PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "holdout", "heldout", "eval"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_PICTURES = re.compile(r"(jpeg)?images?|imgs?|rgb|photos|pictures")
_LABELS = re.compile(r"(label|annotation|mask|target|bbox|boxe|segmentation(class|object)?)s?|gt|groundtruth")


def part_of(name: str) -> Part | None:
    """What a folder's name says that it is for, if it is one of those that usually do.

    >>> [part_of(name) for name in ("Train", "testing_set", "val2017", "Hold-out", "train_images", "trained", "cat")]
    ['train', 'test', 'val', 'val', 'train', None, None]
    """
    return _PARTS.get(re.sub(r"(set|data|dataset|split|images|imgs)?\d*$", "", _plain(name)))


@dataclass(frozen=True)
class Layout:
    """Where a data set's classes are.

    Attributes:
        train: whose folders are the classes to train on.
        val: whose folders are the classes held out; None where a part of `train` is to be held out.
    """

    train: Tree
    val: Tree | None


def recognize(root: Tree, account: Account) -> Layout:
    """Find the split of a data set, and say what was found where it could be taken otherwise.

    Raises:
        DataError: there is none, or more than one way to see it.
    """
    base = unwrapped(root, account)
    named = [each for each in base.folders if part_of(each.name)]
    train = _only(_nested(named, "train"), base)
    if train is None:
        _leave_loose(base, account)
        return _without_split(base, named, account)
    val = _only(_nested(named, "val"), base)
    if val is None:
        _refuse_empty(base, account)
        val = _only(_nested(named, "test"), base)
    others = [each for each in base.inner if each not in (train, val, *named)]
    if others and len(named) == 1:
        raise DataError(
            f"{base.path} holds {_listed(others)}, and {train.name}/ with class folders: if {train.name}/ is a "
            "class, put its images directly into it; if it holds the images to train on, move the others elsewhere"
        )
    for each in others:
        account.add("left out as neither in the training nor in the validation set", each.path)
    for each in named:
        if each not in (train, val) and each.holds_pictures:
            why = f"{val.name}/ is there to validate" if val and each.inner else "it holds no class folders"
            account.say(f"{account.name(each.path)}/ is not used: {why}")
    _leave_loose(base, account)
    parts = [unwrapped(part, account) for part in (train, val) if part]
    for part in parts:
        _leave_loose(part, account)
    return Layout(parts[0], parts[1] if val else None)


def unwrapped(tree: Tree, account: Account) -> Tree:
    """The folder itself, or the one below it where everything is in, as archives are often unpacked.

    Raises:
        DataError: it is a data set of objects in images, not of images in classes.
    """
    inner = tree
    while True:
        _refuse_objects(inner)
        only = inner.inner[0] if len(inner.inner) == 1 else None
        if only is None or not only.inner or part_of(only.name) not in (None, part_of(tree.name)):
            break
        if any(each.empty for each in inner.folders):  # which may be a class whose images are missing
            break
        inner = only
    if inner is tree or (len(inner.inner) < 2 and not any(part_of(each.name) for each in inner.inner)):
        return tree
    account.say(f"the images are those in {account.name(inner.path)}/, the only folder with images")
    return inner


def refuse_inverted(classes: Sequence[Tree]) -> None:
    """Refuse <class>/train/* and <class>/test/*, which would be mixed.

    Raises:
        DataError: a class folder holds them.
    """
    for each in classes:
        names = {part: inner.name for inner in each.inner if (part := part_of(inner.name))}
        if "train" in names and len(names) > 1:
            raise DataError(
                f"class folder {each.path} holds {' and '.join(f'{name}/' for name in names.values())}: put these "
                f"above the classes, as {each.path.parent}/{names['train']}/{each.name}/*"
            )


def expected(root: Path) -> str:
    """The end of an error message: how images should lie."""
    return f"expected {root}/train/<class>/* and {root}/val/<class>/*, or {root}/<class>/* with at least two classes"


def _without_split(base: Tree, named: list[Tree], account: Account) -> Layout:
    """Class folders alone, some of which may have the name of a split."""
    if held := [each for each in named if each.inner]:
        train = next((each for each in named if part_of(each.name) == "train"), None)
        wrong = f"{base.path} holds {held[0].name}/ but no train/" if train is None else _no_classes(train)
        raise DataError(f"{wrong}: {expected(account.root)}")
    full = [each for each in named if each.pictures]
    if full and len(full) == len(base.inner):
        first = min(full, key=lambda each: part_of(each.name) != "train")
        raise DataError(f"{_no_classes(first)}: {expected(account.root)}")
    for each in full:
        account.say(f"{account.name(each.path)}/ is taken for a class: it holds images, and no class folders")
    return Layout(base, None)


def _refuse_empty(base: Tree, account: Account) -> None:
    """Images to validate on need classes, and a folder of the name needs images; images to test on may have none."""
    for each in base.folders:
        part = part_of(each.name)
        if not each.inner and (part == "val" or (part == "test" and not each.pictures)):
            raise DataError(f"{_no_classes(each)}: {expected(account.root)}")


def _no_classes(tree: Tree) -> str:
    return f"{tree.path} holds no class folders"


def _nested(named: list[Tree], part: Part) -> list[Tree]:
    return [each for each in named if part_of(each.name) == part and each.inner]


def _only(folders: list[Tree], base: Tree) -> Tree | None:
    if len(folders) > 1:
        raise DataError(f"{base.path} holds {_listed(folders)}, which mean the same: move all but one elsewhere")
    return folders[0] if folders else None


def _listed(folders: list[Tree]) -> str:
    return some_of(f"{each.name}/" for each in folders)


def _leave_loose(tree: Tree, account: Account) -> None:
    if tree.inner:
        for picture in tree.pictures:
            account.add("left out as lying in no class folder", picture)


def _refuse_objects(tree: Tree) -> None:
    """A folder of images next to one of labels or masks is for detection or segmentation."""
    pictures = [each for each in tree.folders if _PICTURES.fullmatch(_plain(each.name))]
    labels = [each for each in tree.folders if _LABELS.fullmatch(_plain(each.name))]
    if not pictures or not labels:
        return
    loose = any(
        each.pictures or any(part_of(inner.name) and inner.pictures for inner in each.inner) for each in pictures
    )
    if loose or any(each.holds_pictures for each in labels):
        raise DataError(
            f"{tree.path} holds {pictures[0].name}/ and {labels[0].name}/, as data sets for detection or segmentation "
            f"do: to classify images, put them into a folder for each class, {tree.path}/<class>/*"
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.casefold())
