"""Images that live on the device as one uint8 tensor and are augmented there: no worker process to wait for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from diracnets.data.augment import augmented
from diracnets.data.augmentation import Augmentation
from diracnets.data.batched import BatchedImages
from diracnets.data.images import Batch
from diracnets.data.parts import random_parts
from diracnets.data.share import Share
from diracnets.errors import DataError

_HASHED = 1 << 28  # bytes of pixels, in about a quarter of a second
_AT_ONCE = 1 << 22  # bytes of pixels, four times as many when normalised: what a processor's cache holds
_AT_ONCE_CUDA = 1 << 26  # a graphics card's time goes into how many operations it is given


class MemoryImages(BatchedImages):
    """Labelled images of one size, held in memory; implements `diracnets.data.images.Images`.

    Args:
        pixels: uint8 [N, H, W, C].
        labels: int64 [N].
        name: what to call the set to a user; `name(i)` appends a number.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        device: where the batches will be, and the pixels too if it is a CPU or CUDA device.
        numbers: the images' numbers in the set they come from, if not 0, 1, 2, ...

    >>> pixels = torch.zeros(5, 8, 8, 1, dtype=torch.uint8)
    >>> images = MemoryImages(pixels, torch.arange(5), name="black", mean=[0.0], std=[1.0])
    >>> [tuple(x.shape) for x, y, i in images.batches(2)]
    [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    >>> images.name(3)
    'black 3'
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        numbers: Sequence[int] | None = None,
    ) -> None:
        super().__init__(labels, (pixels.shape[3], pixels.shape[1], pixels.shape[2]), mean, std, device)
        self._pixels = pixels.contiguous().to(self._home)
        self._labels = labels.to(self._home)
        self._name = name
        self._numbers = numbers

    def name(self, index: int) -> str:
        """As "cifar10 test 123"."""
        return f"{self._name} {index if self._numbers is None else self._numbers[index]}"

    def image(self, index: int) -> Image.Image:
        """The image, grey or RGB."""
        pixels = self._pixels[index].cpu()
        if pixels.shape[2] not in (1, 3):
            raise DataError(f"{self.name(index)} has {pixels.shape[2]} channels: it cannot be shown as an image")
        return Image.fromarray(pixels.squeeze(2).numpy())

    def content(self, numbers: Sequence[int]) -> bytes:
        """Of all pixels, or where these are more than 256 MiB, of as many images from all over the set."""
        step = -(-len(numbers) * self._pixels[0].numel() // _HASHED)
        whole = hashlib.blake2b(digest_size=16)
        for some in torch.split(torch.as_tensor(numbers[:: max(1, step)], device=self._home), 1000):
            whole.update(self._pixels[some].cpu().numpy().tobytes())
        return whole.digest()

    def select(self, numbers: Sequence[int]) -> Self:
        """See `Images.select`; the images keep their names."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        some = copy(self)
        some.labels, some.skipped = self.labels[chosen], {}
        some._pixels, some._labels = self._pixels[chosen.to(self._home)], self._labels[chosen.to(self._home)]
        some._numbers = numbers if self._numbers is None else [self._numbers[number] for number in numbers]
        return some

    def _batches(
        self, plan: tuple[Tensor, ...], epoch: int | None, augment: Augmentation, seed: int, share: Share
    ) -> Iterator[Batch]:
        flat = self._pixels.view(len(self), -1)  # whole images are copied at the speed of memory
        # Several small batches are made at once: each operation has a fixed cost, and so has waiting for all threads.
        at_once = _AT_ONCE_CUDA if self._home.type == "cuda" else _AT_ONCE
        together = max(1, at_once // (flat.shape[1] * max(1, len(plan[0])))) if plan else 1
        for begin in range(0, len(plan), together):
            group = plan[begin : begin + together]
            samples = torch.cat(group)
            pixels = flat.index_select(0, samples).view(-1, *self._pixels.shape[1:])
            if epoch is None or not len(samples):
                images = self._normalize(pixels)
            else:
                if augment.crop == "resized":
                    pixels = random_parts(pixels, samples, augment.min_scale, seed=seed, epoch=epoch)
                images = augmented(pixels, samples, augment, self._normalize, seed=seed, epoch=epoch)
            sizes = [len(part) for part in group]
            parts = (images, self._labels.index_select(0, samples), samples)
            yield from zip(*(torch.split(part.to(self._device), sizes) for part in parts), strict=True)
