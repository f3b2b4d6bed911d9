"""One function for all data: by name, or from a `Dataset` of one's own."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diracnets.data.augment import Size
from diracnets.data.cifar import CIFAR10, CIFAR100, load_cifar
from diracnets.data.dataset import load_dataset
from diracnets.data.decoder import Source
from diracnets.data.digits import load_digits
from diracnets.data.folder import FolderSource, Listing, find_images
from diracnets.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageData
from diracnets.data.items import MapStyle
from diracnets.data.parquet import ParquetSet, find_rows
from diracnets.data.progress import progress
from diracnets.data.shard_where import FORMS
from diracnets.data.shards import ShardSet, ShardSource, find_samples
from diracnets.data.stream import StreamedImages
from diracnets.data.workers import default_workers
from diracnets.errors import UsageError, did_you_mean
from diracnets.places import kind_of, url_in

_FOLDER_SIZE = 224
DESCRIPTIONS = {
    "digits": "1,797 handwritten digits, 8x8 grey, shipped with scikit-learn: nothing to download",
    "cifar10": "60,000 photographs of 10 classes, 32x32, the original python files",
    "cifar100": "60,000 photographs of 100 classes, 32x32, the original python files",
    "folder": "your images, as DIR/train/<class>/* and DIR/val/<class>/*, or DIR/<class>/*",
    "shards": "your images in tar files in the WebDataset format, in a folder or on a server",
    "parquet": "your images in Parquet files, as the Hugging Face hub has them, in a folder",
}
_STREAMED: dict[str, tuple[Callable[..., Any], str, str]] = {  # what finds them, what it says, what it wants
    "folder": (find_images, "checking images", "the folder"),
    "shards": (find_samples, "looking into shards", FORMS),
    "parquet": (find_rows, "checking images", "a folder with train-*.parquet"),
}
STREAMED = tuple(_STREAMED)  # decoded when they are needed, from a place that must be given


def data_names() -> list[str]:
    """Names that `load_data` takes.

    >>> data_names()
    ['digits', 'cifar10', 'cifar100', 'folder', 'shards', 'parquet']
    """
    return list(DESCRIPTIONS)


def load_data(
    data: str | MapStyle | tuple[MapStyle, MapStyle],
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    download: bool = True,
    skip_unreadable: float = 0.0,
) -> ImageData:
    """Images to train on and images held out, ready to be batched.

    Args:
        data: "digits", "cifar10", "cifar100", "folder", "shards", "parquet", or a map-style Dataset of (image, label),
            or a pair of them: to train on, and held out. See `diracnets.data.dataset.load_dataset`.
        data_dir: "folder": the folder, see `diracnets.data.folder.find_images`. "shards": a folder, a pattern or URLs,
            see `diracnets.data.shard_where.find_shards`. "parquet": a folder, see `diracnets.data.parquet.find_rows`.
            CIFAR: where its files are, or are downloaded to; None takes ./data. Digits need none.
        image_size: side in pixels of the images of a folder or of shards (None takes 224) or of a Dataset (None leaves
            them as they are). The other sets have one size, which is the only one allowed.
        device: where the batches will be, and the images too where they are small.
        workers: processes that decode the images of a folder, of shards or of a large Dataset; None takes one a
            processor, at most 4. Images in memory need none.
        download: whether CIFAR may be downloaded.
        skip_unreadable: the largest part of the images of a folder, of shards or of Parquet files that may be left out
            as they cannot be read, 0 to 1; the notes name them. Other than 0, every image of a folder is decoded first,
            once, and of the others those to validate on: see `diracnets.data.folder.find_images` and
            `diracnets.data.usable.usable`.

    Raises:
        UsageError: an unknown name, an impossible size or number of workers, a folder without `data_dir`, a URL as
            `data_dir`, `skip_unreadable` for other data.
        DataError, FileError: the data is not there or cannot be used; the message names what is wrong.
        MissingExtraError: digits without scikit-learn.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.val), data.input_size
    (1438, 359, (1, 8, 8))
    >>> images, labels, indices = next(data.train.batches(128, epoch=0))
    >>> images.shape, images.dtype
    (torch.Size([128, 1, 8, 8]), torch.float32)
    """
    if image_size is not None and image_size < 1:
        raise UsageError(f"the image size must be at least 1 pixel, not {image_size}")
    if workers is not None and workers < 0:
        raise UsageError(f"the number of workers must be 0 or more, not {workers}")
    if not 0 <= skip_unreadable < 1:
        raise UsageError(f"skip_unreadable must be a part of the images, 0 to less than 1, not {skip_unreadable}")
    if skip_unreadable and data not in STREAMED:
        raise UsageError(f"skip_unreadable is for {', '.join(STREAMED)}: of other data no image is left out")
    url = None if data_dir is None or data == "shards" else url_in(data_dir)
    if url and kind_of(str(data_dir)) is None:
        raise UsageError(f"{url} is a URL, which is not fetched: download it first, and give the folder")
    if not isinstance(data, str):
        return load_dataset(data, image_size=image_size, device=device, workers=workers)
    if data not in data_names():
        hint = did_you_mean(data, data_names())
        if kind_of(data) == "folder":
            hint = f"for the images in that folder, --data folder --data-dir {shlex.quote(data)}"
        raise UsageError(f"there is no data named {data!r}, only {', '.join(data_names())}{hint and '; ' + hint}")
    if data in STREAMED:
        side = image_size or _FOLDER_SIZE
        return _photographs(data, data_dir, (3, side, side), device, workers, skip_unreadable)
    side = 8 if data == "digits" else 32
    if image_size not in (None, side):
        raise UsageError(f"the images of {data} have {side} pixels, not {image_size}: leave the image size out")
    if data == "digits":
        return load_digits(device)
    published = CIFAR10 if data == "cifar10" else CIFAR100
    return load_cifar(published, Path("data") if data_dir is None else data_dir, device=device, fetch=download)


def _photographs(
    name: str, where: str | Path | None, size: Size, device: torch.device | str, workers: int | None, skip: float
) -> ImageData:
    """Images that are decoded when they are needed, normalized as those of ImageNet are."""
    find, says, what = _STREAMED[name]
    if where is None:
        raise UsageError(f"data {name!r} needs to know which: give {what} (--data-dir)")
    with progress(says) as report:
        train, val = find(where, skip=skip, workers=default_workers() if workers is None else workers, report=report)

    def images(part: Listing | ShardSet | ParquetSet) -> StreamedImages:
        source: Source
        options: dict[str, Any] = {}
        if isinstance(part, Listing):
            source = FolderSource(part.files)
        elif isinstance(part.source, ShardSource):
            source, groups = part.source, torch.from_numpy(part.source.shards).long()
            options = {"groups": groups, "bring": part.source.bring if part.ahead else None, "spare": part.spare}
        else:
            source = part.source
            options = {"groups": torch.from_numpy(part.source.bundles()), "spare": part.spare}
        options |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "device": device, "workers": workers}
        return StreamedImages(source, torch.tensor(part.labels), size=size, **options)

    facts = (name, train.classes, size, IMAGENET_MEAN, IMAGENET_STD)
    return ImageData(*facts, images(train), images(val), train.notes)
