"""What a worker process does: it decodes the images of a batch, and finds others for those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diracnets.data.augment import Size
from diracnets.data.decode import Pixels
from diracnets.data.parts import DRAWS
from diracnets.data.random import Stream, draw, fraction
from diracnets.errors import DataError, DiracNetsError

_STAND_INS = 100  # images that are tried in place of one
_NOWHERE = -1


class Source(Protocol):
    """Where a stream's images come from. It is sent to worker processes."""

    def name(self, index: int) -> str:
        """What to call an image to a user."""

    def image(self, index: int) -> Image.Image:
        """The image as it was before any change."""

    def fitted(self, index: int, size: Size) -> Pixels:
        """The image for evaluation, uint8 [H, W, C]."""

    def random_part(self, index: int, size: Size, min_scale: float, draws: Sequence[float]) -> Pixels:
        """A random part of the image for training, uint8 [H, W, C]."""

    def content(self, indices: Sequence[int]) -> bytes:
        """A hash of what is in these images, in this order: as much of it as takes little time."""

    def select(self, indices: Sequence[int]) -> Source:
        """Some of these images."""


@dataclass(frozen=True)
class RandomPart:
    """That random parts of images are wanted, and of which epoch."""

    seed: int
    epoch: int
    min_scale: float


@dataclass(frozen=True)
class Request:
    """A batch that is wanted.

    Attributes:
        samples: numbers of the images.
        part: random parts of them; None for whole ones, as for evaluation.
        stand_ins: the number of images in the set, where others may stand in for those that cannot be read, else 0.
    """

    samples: list[int]
    part: RandomPart | None
    stand_ins: int = 0


@dataclass(frozen=True)
class Mended:
    """A batch with other images in the places of some that cannot be read.

    Attributes:
        pixels: uint8 [B, H, W, C].
        samples: numbers of the images that it has.
        bad: numbers of those that it lacks, and why.
    """

    pixels: Tensor
    samples: list[int]
    bad: dict[int, str]


class Decoder(Dataset["Tensor | Mended | DiracNetsError"]):
    """A worker's job: pixels, uint8 [B, H, W, C], for a request, or the error, which would lose its class if raised.

    Args:
        source: gives the images.
        size: [C, H, W] of the pixels.
        workers: processes that share the job.
    """

    def __init__(self, source: Source, size: Size, workers: int) -> None:
        self._source = source
        self._size = size
        self.workers = workers
        self._at = RawArray("q", [_NOWHERE] * max(workers, 1))  # the image that each worker is at, for all to see

    def __getitem__(self, request: Request) -> Tensor | Mended | DiracNetsError:
        if not request.samples:  # of a batch that is too small for all shares
            channels, height, width = self._size
            return torch.empty(0, height, width, channels, dtype=torch.uint8)
        try:
            return torch.from_numpy(np.stack(self._pixels(request.samples, request.part)))
        except DataError as error:
            if request.stand_ins:
                return self._mended(request)
            return _bare(error)
        except DiracNetsError as error:
            return _bare(error)

    def at(self) -> list[str]:
        """The names of the images that workers are at."""
        return [self._source.name(sample) for sample in self._at if sample != _NOWHERE]

    def _pixels(self, samples: list[int], part: RandomPart | None) -> list[Pixels]:
        if part is None:
            return [self._source.fitted(sample, self._size) for sample in self._noted(samples)]
        bits = draw(part.seed, part.epoch, torch.tensor(samples), Stream.RESIZED, DRAWS)
        draws = fraction(bits).T.tolist()  # [B, 40]
        return [
            self._source.random_part(sample, self._size, part.min_scale, numbers)
            for sample, numbers in zip(self._noted(samples), draws, strict=True)
        ]

    def _noted(self, samples: list[int]) -> Iterator[int]:
        """The samples; at which one this worker is can be seen in the other processes."""
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        for sample in samples:
            self._at[place] = sample
            yield sample
        self._at[place] = _NOWHERE

    def _mended(self, request: Request) -> Mended | DiracNetsError:
        """The batch, in which the next image of the set that can be read stands in for each that cannot.

        Which one depends on the set alone, not on the batch, the worker or the rank.
        """
        pixels: list[Pixels] = []
        samples: list[int] = []
        bad: dict[int, str] = {}
        for wanted in request.samples:
            for step in range(min(_STAND_INS, request.stand_ins)):
                sample = (wanted + step) % request.stand_ins
                try:
                    pixels += self._pixels([sample], request.part)
                    samples.append(sample)
                    break
                except DataError as error:
                    if sample == wanted:
                        bad[sample] = str(error)
                    last = error
                except DiracNetsError as error:
                    return _bare(error)
            else:
                return _bare(last)
        return Mended(torch.from_numpy(np.stack(pixels)), samples, bad)


def _bare(error: DiracNetsError) -> DiracNetsError:
    """The error without what it comes from, to be sent to another process."""
    error.__cause__ = error.__traceback__ = None
    return error
