"""A layer as the C code sees it: a machine that takes rows and gives rows, and keeps some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Pair: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, int, int]
Kind: TypeAlias = Literal["conv", "linear", "max", "average"]


@dataclass(frozen=True)
class Step:
    """The geometry of a layer.

    Args:
        name: of the layer.
        kind: what it does.
        before: (channels, height, width) of the input.
        after: of the output.
        size: of the kernel or window; of the whole input for a fully connected layer.
        stride: down and across.
        padding: above and to the left.
        dilation: down and across.
        groups: of channels.
        width: bytes of one number: 1 for int8, 4 for float.
    """

    name: str
    kind: Kind
    before: Shape
    after: Shape
    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    width: int = 1

    @property
    def adds_up(self) -> bool:
        """Whether each input row counts for one output row at most and is used up at once, so that none is kept."""
        return self.kind != "conv" and self.stride[0] >= self.size[0]

    @property
    def gives_kept(self) -> bool:
        """Whether what it adds up is itself the output row."""
        return self.kind == "max" and self.adds_up

    @property
    def kept_rows(self) -> int:
        """Input rows that it keeps: those that a window covers besides the newest."""
        if self.adds_up:
            return 0
        reach = self.dilation[0] * (self.size[0] - 1)
        if self.padding[0] > reach:  # windows above the first row are done before those that need it
            reach = max(reach, 1)
        return min(reach, self.before[1])

    @property
    def kept_size(self) -> int:
        """Bytes of these rows, or of what it adds up."""
        if not self.adds_up:
            return aligned(self.kept_rows * self.before_row)
        return aligned(self.after_row if self.kind == "max" else 4 * self.after[0] * self.after[2])

    @property
    def before_row(self) -> int:
        """Bytes of a row of the input."""
        return self.before[0] * self.before[2] * self.width

    @property
    def after_row(self) -> int:
        """Bytes of a row of the output."""
        return self.after[0] * self.after[2] * self.width

    @property
    def before_size(self) -> int:
        """Bytes of the input."""
        return aligned(self.before_row * self.before[1])

    @property
    def after_size(self) -> int:
        """Bytes of the output."""
        return aligned(self.after_row * self.after[1])

    @property
    def taps(self) -> int:
        """Numbers of the input that one output is computed of at a time."""
        if self.kind == "linear":
            return self.before[0] * self.before[2]
        return self.size[0] * self.size[1] * (self.before[0] // self.groups) if self.kind == "conv" else 0

    def last_row(self, row: int) -> int:
        """The input row with which an output row can be computed.

        >>> Step("0", "conv", (3, 8, 8), (4, 8, 8), size=(3, 3), padding=(1, 1)).last_row(7)
        7
        """
        last = row * self.stride[0] - self.padding[0] + self.dilation[0] * (self.size[0] - 1)
        return min(max(last, 0), self.before[1] - 1)


def aligned(size: int) -> int:
    """The next multiple of 4 bytes.

    >>> aligned(5)
    8
    """
    return -(-size // 4) * 4
