"""Where a chain's rows lie in memory: which rows each layer keeps, and where a whole map is worth its place.

Layers take and give rows. A layer keeps the last rows of its input, as many as its kernel needs besides the newest, and
hands each row that it computes to the layer after it at once. Nothing else of a map need exist. Between some layers a
whole map takes less than the rows that all later layers would keep: there the chain is cut. The layers between two cuts
are a `Segment`; it reads a whole map row by row and overwrites it, from the front, with another, because a chain needs
no map twice. One layer between two cuts computes in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from diracnets.deploy.c.step import Step, aligned


@dataclass(frozen=True)
class Place:
    """Where one layer finds its rows, in bytes from the beginning of the memory.

    Args:
        rows: the rows that it keeps, or what it adds up.
        out: the row that it computes, or the map that this row is part of.
        whole: whether a whole map lies at `out`, so that each row goes after the last.
    """

    rows: int
    out: int
    whole: bool


@dataclass(frozen=True)
class Segment:
    """Layers through which rows pass without a whole map between them.

    Args:
        first: index of its first layer.
        last: index of its last layer.
        source: where its input, a whole map, has to lie when it begins; it was written to 0. For the first segment,
            whose input is the image, where one row of that lies.
        places: of its layers.
        size: bytes that it needs, its input and output maps included.
    """

    first: int
    last: int
    source: int
    places: tuple[Place, ...]
    size: int


@dataclass(frozen=True)
class Plan:
    """Segments that follow one another in the same memory.

    Args:
        name: of the way it was made.
        segments: all layers, in order.
    """

    name: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Bytes for activations."""
        return max(segment.size for segment in self.segments)


def plans(steps: Sequence[Step], image_row: int = 0) -> tuple[Plan, ...]:
    """The plans for a chain, the best one first: "mixed", "row-by-row" and "in-place".

    Args:
        steps: the layers.
        image_row: bytes of one row of the image, where it has to be converted first.
    """
    return tuple(
        Plan(name, tuple(segment(steps, first, last, image_row) for first, last in pairs))
        for name, pairs in (
            ("mixed", _best_cuts(steps, image_row)),
            ("row-by-row", [(0, len(steps) - 1)]),
            ("in-place", [(index, index) for index in range(len(steps))]),
        )
    )


def two_buffers(steps: Sequence[Step]) -> int:
    """Bytes that a whole input and a whole output map of one layer take, at most: what other nets need at least."""
    sizes = [step.before_size if index else 0 for index, step in enumerate(steps)]
    return max(size + step.after_size for size, step in zip(sizes, steps, strict=True))


def segment(steps: Sequence[Step], first: int, last: int, image_row: int = 0) -> Segment:
    """Lay out the memory of the layers from `first` to `last`."""
    end = source = 0
    if first:
        source = _distance(steps[first : last + 1])
        end = source + steps[first].before_size
    if last + 1 < len(steps):
        end = max(end, steps[last].after_size)
    if not first:
        source, end = end, end + aligned(image_row)
    rows = []
    for step in steps[first : last + 1]:
        rows.append(end)
        end += step.kept_size
    passed = [0, 0]  # bytes of the two rows that layers hand on, in turn
    turns: list[int | None] = []
    for index in range(first, last):
        turns.append(None if steps[index].gives_kept else int(bool(turns) and turns[-1] == 0))
        if (turn := turns[-1]) is not None:
            passed[turn] = max(passed[turn], steps[index].after_row)
    starts = (end, end + passed[0])
    outs = [own if turn is None else starts[turn] for own, turn in zip(rows, turns, strict=False)]
    places = [Place(own, out, False) for own, out in zip(rows, outs, strict=False)]
    places.append(Place(rows[-1], 0, True))
    return Segment(first, last, source, tuple(places), end + sum(passed))


def _best_cuts(steps: Sequence[Step], image_row: int) -> list[tuple[int, int]]:
    """The segments whose largest is smallest; of equal ones the fewest."""
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # up to each layer: (bytes, segments, begin of the last one)
    for last in range(len(steps)):
        found = (1 << 62, 0, 0)
        kept = 0
        for first in range(last, -1, -1):
            kept += steps[first].kept_size
            if kept > found[0]:  # and longer segments keep more
                break
            size = segment(steps, first, last, image_row).size
            found = min(found, (max(best[first][0], size), best[first][1] + 1, first))
        best.append(found)
    ends = [len(steps)]
    while ends[-1]:
        ends.append(best[ends[-1]][2])
    return [(first, end - 1) for first, end in pairwise(reversed(ends))]


def _distance(steps: Sequence[Step]) -> int:
    """How far behind its output map a segment's input map has to begin, so that no row is overwritten before its time.

    An output row is written while some input row is handed in. Rows before that one are not needed any more. That row
    itself is needed while a single layer reads it where it lies; otherwise it has been copied.
    """
    needs = list(range(steps[-1].after[1]))
    for step in reversed(steps):
        needs = [step.last_row(row) for row in needs]
    reads = len(steps) == 1 and not steps[0].adds_up
    before, after = steps[0].before_row, steps[-1].after_row
    distance = 0
    for row, need in enumerate(needs):
        again = row > 0 and needs[row - 1] == need
        alive = need if reads and not again else need + 1
        if alive < steps[0].before[1]:
            distance = max(distance, (row + 1) * after - alive * before)
    return aligned(distance)
