"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the original files: found, unpacked or downloaded, and checked."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diracnets.data.images import CIFAR_MEAN, CIFAR_STD, ImageData
from diracnets.data.memory import MemoryImages
from diracnets.data.tar import files_in
from diracnets.data.unpickle import read_pickle
from diracnets.download import Checksum, download
from diracnets.errors import DataError, FileError, did_you_mean, printable

_LARGEST = 1 << 28  # bytes of a file; the training images of CIFAR-100 have 2^27


@dataclass(frozen=True)
class Published:
    """A data set as its authors published it.

    Attributes:
        name: what diracnets calls it.
        url: of the archive.
        md5: of the archive.
        folder: that the archive holds.
        files: the folder's files and their md5s: first those to train on, then the one held out, then the class names.
        labels_key: where the files keep the labels.
        classes_key: where the last file keeps the names.
        classes: how many.
    """

    name: str
    url: str
    md5: str
    folder: str
    files: Mapping[str, str]
    labels_key: str
    classes_key: str
    classes: int

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return self.url.rpartition("/")[2]


CIFAR10 = Published(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    labels_key="labels",
    classes_key="label_names",
    classes=10,
)

CIFAR100 = Published(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    files={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    labels_key="fine_labels",
    classes_key="fine_label_names",
    classes=100,
)


def load_cifar(
    published: Published, data_dir: str | Path, *, device: torch.device | str = "cpu", fetch: bool = True
) -> ImageData:
    """A CIFAR set, held on the device. Both are normalized alike, as the paper's authors did.

    Args:
        published: `CIFAR10` or `CIFAR100`.
        data_dir: holds the files, or their folder, or the archive; else the archive is downloaded to it.
        device: where the batches will be.
        fetch: download what is missing.

    Raises:
        FileError: files are missing or damaged, cannot be downloaded or written.
        DataError: a file does not hold what was published.
    """
    folder = find_files(published, Path(data_dir), fetch=fetch)
    *train_files, test_file, names_file = published.files
    content = read_file(published, folder / names_file)
    names = content.get(published.classes_key)
    if not isinstance(names, list) or len(names) != published.classes:
        raise DataError(f"{folder / names_file} does not name {published.classes} classes")
    parts = [read_images(published, folder / file) for file in train_files]
    train = torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])
    train_set, test_set = (
        MemoryImages(pixels, labels, name=f"{published.name} {part}", mean=CIFAR_MEAN, std=CIFAR_STD, device=device)
        for part, (pixels, labels) in (("train", train), ("test", read_images(published, folder / test_file)))
    )
    return ImageData(published.name, tuple(map(str, names)), (3, 32, 32), CIFAR_MEAN, CIFAR_STD, train_set, test_set)


def find_files(published: Published, data_dir: Path, *, fetch: bool) -> Path:
    """The folder that holds the files, unpacked or downloaded first if need be.

    Raises:
        FileError: as in `load_cifar`.
    """
    folder = data_dir / published.folder
    for place in (data_dir, folder):
        if all((place / file).is_file() for file in published.files):
            return place
    if folder.exists():
        missing = ", ".join(file for file in published.files if not (folder / file).is_file())
        raise FileError(f"{folder} lacks {missing}: complete it, or delete it to have it unpacked or downloaded again")
    archive, checksum = data_dir / published.archive, Checksum("md5", published.md5)
    if not archive.is_file():
        if not fetch:
            raise FileError(
                f"{data_dir} holds neither {published.folder}/ nor {published.archive}: "
                f"put one of them there, or allow the download from {published.url}"
            )
        if not data_dir.exists():
            note = f"there is no folder {data_dir}: it is made, and {published.name} is downloaded into it"
            near = did_you_mean(data_dir.name, _holding(published, data_dir.absolute().parent))
            print(printable(f"{note}{'; ' * bool(near)}{near}"), file=sys.stderr, flush=True)
        download(published.url, archive, checksum, _LARGEST)
    elif wrong := checksum.check(archive):
        raise FileError(f"{archive} is damaged or incomplete ({wrong}): delete it to have it downloaded again")
    unpack(archive, folder, published.files)
    return folder


def _holding(published: Published, folder: Path) -> list[str]:
    """The folders in a folder that hold the files, or their archive."""
    try:
        return [
            each.name
            for each in folder.iterdir()
            if (each / published.folder).is_dir() or (each / published.archive).is_file()
        ]
    except OSError:
        return []


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Take the named files, and no others, out of a .tar.gz, all of them or none.

    Args:
        archive: the file, which holds them as `<folder.name>/<name>`.
        folder: where the files go; must not exist.
        names: of the files.

    Raises:
        FileError: the archive is damaged or lacks a file, or the folder cannot be written.
    """
    wanted = {f"{folder.name}/{name}" for name in names}
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
            (Path(place) / folder.name).mkdir()
            for name, content in files_in(archive, wanted.__contains__, _LARGEST):
                (Path(place) / name).write_bytes(content)
                wanted.remove(name)
            if wanted:
                raise FileError(f"{archive} lacks {', '.join(sorted(wanted))}: it is not the archive as published")
            (Path(place) / folder.name).rename(folder)
    except OSError as error:
        raise FileError(f"cannot unpack {archive} to {folder}: {error.strerror or error}") from error


def read_file(published: Published, path: Path) -> dict[str, Any]:
    """The content of one of the published files, after its md5 was checked; no code in it is run.

    Raises:
        FileError: it is damaged.
        DataError: it is no such file.
    """
    if wrong := Checksum("md5", published.files[path.name]).check(path):
        raise FileError(f"{path} is damaged ({wrong}): delete its folder to have it unpacked or downloaded again")
    return read_pickle(path.read_bytes(), str(path))


def read_images(published: Published, path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of a published file.

    Raises:
        FileError: it is damaged.
        DataError: shapes or labels are not those of CIFAR.
    """
    content = read_file(published, path)
    data, labels = content.get("data"), content.get(published.labels_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise DataError(f"{path} holds no rows of 3x32x32 pixels under 'data'")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(f"{path} holds no {len(data)} labels under {published.labels_key!r}")
    wrong = next((label for label in labels if not isinstance(label, int) or not 0 <= label < published.classes), None)
    if wrong is not None:
        raise DataError(f"{path} holds the label {wrong!r}, and labels go from 0 to {published.classes - 1}")
    pixels = torch.from_numpy(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy())
    return pixels, torch.tensor(labels)
