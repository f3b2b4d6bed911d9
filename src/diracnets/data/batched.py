"""What images in memory and images from a stream have in common: their normalization, and the plan of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from diracnets.data.augment import Normalizer, Size, check
from diracnets.data.augmentation import Augmentation
from diracnets.data.images import Batch
from diracnets.data.random import order, order_by_groups
from diracnets.data.share import WHOLE, Share
from diracnets.errors import UsageError

TOGETHER = 8  # files of many images that are shuffled together, and so read from at the same time


class BatchedImages(ABC):
    """Labelled images whose pixels become batches on the device; implements most of `diracnets.data.images.Images`.

    Args:
        labels: int64 [N].
        size: [C, H, W] of the batches' images.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        device: where the batches will be.
    """

    def __init__(
        self, labels: Tensor, size: Size, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.labels = labels
        self.skipped: dict[int, str] = {}
        self._size = size
        self._device = torch.device(device)
        # Elsewhere (MPS) overlapping strided views are copied out, which is slower than augmenting on the CPU.
        self._home = self._device if self._device.type in ("cpu", "cuda") else torch.device("cpu")
        self._normalize = Normalizer(size, mean, std, self._home)
        self._drawn_on = self._home  # where the numbers of an epoch's samples are drawn
        self._groups: Tensor | None = None  # int64 [N], for images that lie in files of many: the file of each

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """See `Images.name`."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """See `Images.image`."""

    @abstractmethod
    def content(self, numbers: Sequence[int]) -> bytes:
        """See `Images.content`."""

    @abstractmethod
    def select(self, numbers: Sequence[int]) -> Self:
        """See `Images.select`."""

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """See `Images.normalized`; the pixels, and what is skipped, are shared."""
        other = copy(self)
        other._normalize = Normalizer(self._size, mean, std, self._home)
        return other

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        first: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """See `Images.batches`."""
        plan = schedule(
            len(self),
            batch_size,
            epoch=epoch,
            augment=augment,
            seed=seed,
            first=first,
            share=share,
            device=self._drawn_on,
            groups=self._groups,
        )
        augment = augment or Augmentation()
        check(augment, self._size)
        return self._batches(plan, epoch, augment, seed, share)

    @abstractmethod
    def _batches(
        self, plan: tuple[Tensor, ...], epoch: int | None, augment: Augmentation, seed: int, share: Share
    ) -> Iterator[Batch]:
        """The batches of these samples, which are the share's already."""


def schedule(
    length: int,
    batch_size: int,
    *,
    epoch: int | None,
    augment: Augmentation | None,
    seed: int,
    first: int,
    share: Share = WHOLE,
    device: torch.device | str = "cpu",
    groups: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The samples of each batch of an epoch, int64 on `device`, see `Images.batches`.

    Args:
        length: images in the set.
        batch_size: of all shares together.
        epoch: None for the set's own order.
        augment: only to be refused where it makes no sense.
        seed: of the run.
        first: number of the first batch.
        share: the part of every batch that is given; it may be empty.
        device: of the result.
        groups: int64 [length], the file that each image lies in, where only so many at a time should be read from.
    """
    if batch_size < 1:
        raise UsageError(f"the batch size must be at least 1, not {batch_size}")
    count = -(-length // batch_size)
    if not 0 <= first <= count:
        raise UsageError(
            f"cannot start at batch {first}: an epoch of {length} images has {count} batches of {batch_size}"
        )
    if epoch is None and augment is not None:
        raise UsageError("augmentation needs the number of the epoch: give epoch, or no augment")
    if epoch is None:
        samples = torch.arange(length, device=device)
    elif groups is None:
        samples = order(seed, epoch, length, device)
    else:
        samples = order_by_groups(seed, epoch, groups, TOGETHER).to(device)
    batches = torch.split(samples[first * batch_size :], batch_size) if first < count else ()
    return batches if share.ranks == 1 and not share.before else tuple(map(share.of, batches))
