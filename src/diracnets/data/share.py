"""The share of every batch that one of several processes takes, so that together they see each image once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 2  # images of a share: one alone has no statistics to normalize with


@dataclass(frozen=True)
class Share:
    """A part of every batch.

    A batch is cut into consecutive parts of about the same size, one a rank, of at least two images each: of a batch
    that is too small for that, the last ranks get none. Which images a batch holds does not depend on the ranks.

    Attributes:
        rank: of the process, from 0.
        ranks: how many processes share the batches.
        before: how many images in front of its own a rank gets too, the batch taken as a ring: mixup mixes an image
            with the one before it.

    >>> [Share(rank, 3).of(torch.arange(8)).tolist() for rank in range(3)]
    [[0, 1], [2, 3, 4], [5, 6, 7]]
    >>> [Share(rank, 3, before=1).of(torch.arange(5)).tolist() for rank in range(3)]
    [[4, 0, 1], [1, 2, 3, 4], []]
    """

    rank: int = 0
    ranks: int = 1
    before: int = 0

    def bounds(self, size: int) -> tuple[int, int]:
        """Where the share of a batch of `size` images begins and ends.

        >>> Share(1, 2).bounds(7)
        (3, 7)
        """
        parts = min(self.ranks, max(1, size // LEAST))
        if self.rank >= parts:
            return size, size
        return self.rank * size // parts, (self.rank + 1) * size // parts

    def of(self, batch: Tensor) -> Tensor:
        """The share of a batch [B, ...], with the images in front of it."""
        begin, end = self.bounds(len(batch))
        if begin == end:
            return batch[:0]
        first = begin - self.before
        return batch[first:end] if first >= 0 else torch.cat([batch[first:], batch[:end]])


WHOLE = Share()
