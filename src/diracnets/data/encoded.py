"""What all sets of encoded images have in common: files in folders, members of shards, rows of Parquet files."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from diracnets.data.augment import Size
from diracnets.data.decode import Pixels, fitted, random_part
from diracnets.data.image_file import opened

_PIECE = 1 << 14  # bytes


class EncodedImages(ABC):
    """Images that are decoded when they are asked for; implements most of `diracnets.data.decoder.Source`."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image to a user."""

    @abstractmethod
    def encoded(self, index: int) -> str | BinaryIO:
        """The image's file, or a stream of its bytes."""

    @abstractmethod
    def keys(self) -> npt.NDArray[np.uint64]:
        """[N], a hash of where each image lies and of when that was changed, so that what was seen of it can be
        remembered; 0 where that is not known."""

    @abstractmethod
    def content(self, indices: Sequence[int]) -> bytes:
        """See `diracnets.data.decoder.Source.content`."""

    @abstractmethod
    def select(self, indices: Sequence[int]) -> Self:
        """Some of these images."""

    @abstractmethod
    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The image as it is, before any change."""
        with opened(self.encoded(index), self.name(index)) as image:
            image.load()
            return image

    def fitted(self, index: int, size: Size) -> Pixels:
        """See `diracnets.data.decode.fitted`."""
        with opened(self.encoded(index), self.name(index)) as image:
            return fitted(image, size)

    def random_part(self, index: int, size: Size, min_scale: float, draws: Sequence[float]) -> Pixels:
        """See `diracnets.data.decode.random_part`."""
        with opened(self.encoded(index), self.name(index)) as image:
            return random_part(image, size, min_scale, draws)


def stamp_of(file: str | Path) -> bytes:
    """A file's path, size and time of change; nothing where these cannot be looked up."""
    path = Path(file)
    try:
        facts = path.stat()
    except OSError:
        return b""
    return b"\0".join([os.fsencode(path.absolute()), b"%d" % facts.st_size, b"%d" % facts.st_mtime_ns])


def pieces_of(file: str) -> bytes:
    """A file's size and some of its bytes; nothing of one that cannot be read, which is named when it is decoded."""
    try:
        with FileIO(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            pieces = [b"%d" % size]
            for place in (0, (size - _PIECE) // 2, size - _PIECE):
                stream.seek(max(0, place))
                pieces.append(stream.read(_PIECE))
    except OSError:
        return b""
    return b"\0".join(pieces)


def hash_of(*columns: npt.NDArray[Any]) -> bytes:
    """A hash of what is listed of images. Their sizes are most of it: a changed one hardly has as many bytes again."""
    whole = hashlib.blake2b(digest_size=16)
    for column in columns:
        whole.update(column.tobytes())
    return whole.digest()


def key_of(stamp: bytes, *place: int) -> int:
    """A hash of a file's stamp, and of a place in it; 0 of no stamp."""
    if not stamp:
        return 0
    words = b"\0".join([stamp, *(b"%d" % each for each in place)])
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


S = TypeVar("S", bound=EncodedImages)


@dataclass(frozen=True)
class EncodedSet(Generic[S]):
    """Labelled images in shards or Parquet files.

    Attributes:
        source: gives the images.
        labels: of each image, indices into `classes`.
        classes: names of the classes.
        notes: a line for each thing that a user should know.
        spare: how many more images may turn out to be unusable.
        ahead: whether the files are remote, and there is room to bring the next ones while some are used.
    """

    source: S
    labels: list[int]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    spare: int = 0
    ahead: bool = False

    def select(self, indices: Sequence[int]) -> Self:
        """Some of these images."""
        return replace(self, source=self.source.select(indices), labels=[self.labels[index] for index in indices])
