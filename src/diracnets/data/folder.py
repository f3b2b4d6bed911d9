"""A folder of images, one sub-folder a class: found, checked and split before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diracnets.data.augment import Size
from diracnets.data.decode import SUFFIXES, Pixels, fitted, opened, random_part
from diracnets.data.split import hold_out
from diracnets.errors import DataError, FileError

_VAL_NAMES = ("val", "valid", "validation", "test")
_HEADERS_READ = 20_000  # of larger sets, files are only listed before training: reading each would take minutes


@dataclass(frozen=True)
class Listing:
    """Image files and their labels.

    Attributes:
        files: paths.
        labels: of each file, indices into `classes`.
        classes: names of the sub-folders, sorted.
    """

    files: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


class FolderSource:
    """Reads listed files; implements `diracnets.data.stream.Source`.

    Args:
        files: paths of images.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        # One array, not a list of objects: forked workers would copy the memory of each object they look at.
        self._files = np.array([os.fsencode(file) for file in files])

    def name(self, index: int) -> str:
        """The file's path."""
        return os.fsdecode(self._files[index])

    def image(self, index: int) -> Image.Image:
        """The image as it is in the file."""
        with opened(self.name(index)) as image:
            image.load()
            return image

    def fitted(self, index: int, size: Size) -> Pixels:
        """See `diracnets.data.decode.fitted`."""
        with opened(self.name(index)) as image:
            return fitted(image, size)

    def random_part(self, index: int, size: Size, min_scale: float, draws: Sequence[float]) -> Pixels:
        """See `diracnets.data.decode.random_part`."""
        with opened(self.name(index)) as image:
            return random_part(image, size, min_scale, draws)

    def select(self, indices: Sequence[int]) -> FolderSource:
        """Some of these files."""
        return FolderSource([Path(self.name(index)) for index in indices])


def find_images(root: str | Path) -> tuple[Listing, Listing]:
    """The images to train on, and those held out.

    `root` holds `train/<class>/*` and `val/<class>/*` (or `valid`, `validation`, `test`); or `train/<class>/*` alone,
    or `<class>/*`, of which one image in five of each class is held out, always the same. Files are JPEG, PNG, WebP,
    BMP, GIF or TIFF by their extensions, also deeper inside a class folder; hidden files and other extensions are
    passed over. Of sets of up to 20,000 images every file's header is read; damage behind it shows when the image is
    decoded.

    Raises:
        FileError: `root` is not there or may not be read.
        DataError: there is no such layout in it, a class is empty or the only one, the classes of train and val differ,
            or a file with an image's extension is empty or no image.
    """
    root = Path(root)
    folders = {folder.name: folder for folder in _subfolders(root)}
    val_name = next((name for name in _VAL_NAMES if name in folders), None)
    if "train" not in folders:
        if val_name is not None and _subfolders(folders[val_name]):
            raise DataError(f"{root} holds {val_name}/ but no train/: {_expected(root)}")
        return _split(_listed(root, root), root)
    train = _listed(folders["train"], root)
    if val_name is None:
        return _split(train, folders["train"])
    val = _listed(folders[val_name], root)
    if train.classes != val.classes:
        only_train = sorted(set(train.classes) - set(val.classes))
        only_val = sorted(set(val.classes) - set(train.classes))
        where = [f"only in train/: {_some(only_train)}"] * bool(only_train)
        where += [f"only in {val_name}/: {_some(only_val)}"] * bool(only_val)
        raise DataError(
            f"the class folders of train/ and {val_name}/ in {root} differ ({'; '.join(where)}): make them the same"
        )
    _read_headers(train.files + val.files)
    return train, val


def _split(listing: Listing, base: Path) -> tuple[Listing, Listing]:
    _read_headers(listing.files)
    keys = [file.relative_to(base).as_posix() for file in listing.files]
    train, held_out = (
        Listing([listing.files[n] for n in part], [listing.labels[n] for n in part], listing.classes)
        for part in hold_out(listing.labels, keys, listing.classes)
    )
    return train, held_out


def _listed(folder: Path, root: Path) -> Listing:
    folders = _subfolders(folder)
    if not folders:
        raise DataError(f"{folder} holds no class folders: {_expected(root)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(folders):
        found = _images_in(class_folder)
        if not found:
            kinds = " ".join(sorted(SUFFIXES))
            raise DataError(f"class folder {class_folder} holds no images ({kinds}): add some or remove the folder")
        files += found
        labels += [label] * len(found)
    if len(folders) == 1:
        raise DataError(f"{folder} holds one class only, {folders[0].name!r}: at least two are needed to tell apart")
    return Listing(files, labels, tuple(each.name for each in folders))


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise FileError(f"cannot read the image folder {folder}: {error.strerror}") from error


def _images_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, inner, names in os.walk(folder, onerror=_unreadable):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            found.append(Path(place, name))
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise FileError(f"cannot read the image folder {error.filename}: {error.strerror}") from error


def _read_headers(files: list[Path]) -> None:
    if len(files) > _HEADERS_READ:
        return
    for file in files:
        with opened(file):
            pass


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _expected(root: Path) -> str:
    return f"expected {root}/train/<class>/* and {root}/val/<class>/*, or {root}/<class>/* with at least two classes"
