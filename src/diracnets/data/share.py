"""The share of every batch that one of several processes takes, so that together they see each image once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LEAST = 2  # images of a piece: one alone has no statistics to normalize with


def cut(size: int, count: int) -> list[tuple[int, int]]:
    """Where `count` consecutive pieces of `size` images begin and end.

    They are of about the same size, and of at least two images: where these are too few for that, the last pieces are
    empty.

    >>> cut(8, 3), cut(5, 3)
    ([(0, 2), (2, 5), (5, 8)], [(0, 2), (2, 5), (5, 5)])
    """
    filled = min(count, max(1, size // LEAST))
    ends = [number * size // filled for number in range(filled + 1)] + [size] * (count - filled)
    return list(pairwise(ends))


@dataclass(frozen=True)
class Share:
    """A part of every batch: a piece for each rank, see `cut`. Which images a batch holds depends on no rank.

    Attributes:
        rank: of the process, from 0.
        ranks: how many processes share the batches.
        parts: how many parts a batch is computed in, one after the other. Each of them is shared: these are the same
            parts for any number of ranks.
        before: how many images in front of each piece a rank gets too, the batch taken as a ring: mixup mixes an image
            with the one before it.

    >>> [Share(rank, 3).of(torch.arange(8)).tolist() for rank in range(3)]
    [[0, 1], [2, 3, 4], [5, 6, 7]]
    >>> [Share(rank, 2, parts=2).of(torch.arange(8)).tolist() for rank in range(2)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    >>> [Share(rank, 3, before=1).of(torch.arange(5)).tolist() for rank in range(3)]
    [[4, 0, 1], [1, 2, 3, 4], []]
    """

    rank: int = 0
    ranks: int = 1
    parts: int = 1
    before: int = 0

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """Where the share's piece of each part of a batch of `size` images begins and ends.

        >>> Share(1, 2, parts=2).pieces(8)
        [(2, 4), (6, 8)]
        """
        mine = [(begin, *cut(end - begin, self.ranks)[self.rank]) for begin, end in cut(size, self.parts)]
        return [(begin + first, begin + last) for begin, first, last in mine]

    def of(self, batch: Tensor) -> Tensor:
        """The share of a batch [B, ...]: one piece after the other, each with the images in front of it."""
        found = [
            batch[begin - self.before : end]
            if begin >= self.before
            else torch.cat([batch[begin - self.before :], batch[:end]])
            for begin, end in self.pieces(len(batch))
            if begin < end
        ]
        return torch.cat(found) if len(found) > 1 else found[0] if found else batch[:0]


WHOLE = Share()
