"""Images that are decoded one by one, by worker processes, and then augmented in batches on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from diracnets.data.ahead import Ahead, Bring
from diracnets.data.augment import Size, augmented
from diracnets.data.augmentation import Augmentation
from diracnets.data.batched import TOGETHER, BatchedImages
from diracnets.data.decoder import Decoder, Mended, RandomPart, Request, Source
from diracnets.data.images import Batch
from diracnets.data.share import Share
from diracnets.data.workers import STALL_SECONDS, answered, default_workers
from diracnets.errors import DataError, DiracNetsError, UsageError, some_of


class StreamedImages(BatchedImages):
    """Labelled images that are decoded when they are needed; implements `diracnets.data.images.Images`.

    Worker processes are started for each pass over the images and end with it, also when it is abandoned.

    Args:
        source: gives the images.
        labels: int64 [N].
        size: [C, H, W] of the batches' images.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
        device: where the batches will be.
        workers: processes that decode; 0 decodes in this one, None takes `default_workers()`.
        groups: int64 [N], for images that lie in files of many: the file of each. An epoch reads from a few at a time.
        bring: brings a file of `groups` to this machine, given its number; called ahead of its use, in a thread.
        spare: how many images may turn out to be unreadable while training. In place of one, the next image that can be
            read is seen twice in that epoch, so that batches keep their size. With 0, or in evaluation, it is an error.

    Raises:
        UsageError: a negative number of workers.
    """

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        *,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        workers: int | None = None,
        groups: Tensor | None = None,
        bring: Bring | None = None,
        spare: int = 0,
    ) -> None:
        super().__init__(labels, size, mean, std, device)
        self._drawn_on = torch.device("cpu")  # where the workers are
        self._groups = groups
        self._source = source
        self._bring = bring
        self._spare = spare
        self.stall_seconds = STALL_SECONDS
        """After which worker processes that give nothing are ended; 0: never."""
        self._workers = default_workers() if workers is None else workers
        if self._workers < 0:
            raise UsageError(f"the number of workers must be 0 or more, not {workers}")

    def name(self, index: int) -> str:
        """The image's file, or its number in its data set."""
        return self._source.name(index)

    def image(self, index: int) -> Image.Image:
        """The image as it was before any change."""
        return self._source.image(index)

    def content(self, numbers: Sequence[int]) -> bytes:
        """See `Images.content`."""
        return self._source.content(numbers)

    def select(self, numbers: Sequence[int]) -> Self:
        """See `Images.select`."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        some = copy(self)
        some.labels, some.skipped = self.labels[chosen], {}
        some._source = self._source.select(numbers)
        some._groups = None if self._groups is None else self._groups[chosen]
        return some

    def _batches(
        self, plan: tuple[Tensor, ...], epoch: int | None, augment: Augmentation, seed: int, share: Share
    ) -> Iterator[Batch]:
        part = RandomPart(seed, epoch, augment.min_scale) if epoch is not None and augment.crop == "resized" else None
        spare = 0 if epoch is None or not self._spare else max(1, self._spare // share.ranks)
        # Tensors in requests would travel through shared memory, one file descriptor each; lists do not.
        requests = [Request(samples.tolist(), part, len(self) if spare else 0) for samples in plan]
        decoder = Decoder(self._source, self._size, min(self._workers, len(requests)))
        with (
            answered(decoder, requests, self._home, self.stall_seconds) as answers,
            self._ahead(plan) as ahead,  # a thread, and so after the workers are forked
        ):
            for number, (samples, answer) in enumerate(zip(plan, answers, strict=True)):
                if ahead is not None:
                    ahead.at(number)
                if isinstance(answer, DiracNetsError):
                    raise answer
                if isinstance(answer, Mended):
                    self._skip(answer.bad, spare)
                    samples, answer = torch.tensor(answer.samples), answer.pixels
                here = samples.to(self._home)
                pixels = answer.to(self._home, non_blocking=True)
                if epoch is None or not len(samples):
                    images = self._normalize(pixels)
                else:
                    images = augmented(pixels, here, augment, self._normalize, seed=seed, epoch=epoch)
                yield images.to(self._device), self.labels[samples].to(self._device), here.to(self._device)

    def _ahead(self, plan: tuple[Tensor, ...]) -> AbstractContextManager[Ahead | None]:
        if self._bring is None or self._groups is None:
            return nullcontext()
        return Ahead(self._bring, [self._groups[samples.cpu()] for samples in plan], TOGETHER)

    def _skip(self, bad: dict[int, str], spare: int) -> None:
        """Remember images that cannot be read, and stop where these are too many."""
        self.skipped |= bad
        if len(self.skipped) > spare:
            reasons = some_of(self.skipped.values(), limit=3)
            raise DataError(
                f"{len(self.skipped)} of {len(self):,} images cannot be read, and {spare} may be skipped: {reasons}; "
                "replace them, or allow more by --skip-unreadable"
            )
