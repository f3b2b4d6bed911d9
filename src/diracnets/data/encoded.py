"""What all sources of encoded images have in common: files in folders, members of shards, rows of Parquet files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from diracnets.data.augment import Size
from diracnets.data.decode import Pixels, fitted, opened, random_part


class EncodedImages(ABC):
    """Images that are decoded when they are asked for; implements most of `diracnets.data.decoder.Source`."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call an image to a user."""

    @abstractmethod
    def encoded(self, index: int) -> str | Path | BinaryIO:
        """The image's file, or a stream of its bytes."""

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
