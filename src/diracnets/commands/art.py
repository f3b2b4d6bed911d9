"""Small grayscale images as blocks of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_SHADES = " ░▒▓█"
_ASCII = " .:+#"


def blocks(image: Image, *, ascii_only: bool = False) -> list[str]:
    """The rows of an image, two characters per pixel, bright pixels dense.

    Args:
        image: a small image; colours become grey.
        ascii_only: for terminals without block characters.

    >>> from PIL import Image
    >>> blocks(Image.frombytes("L", (2, 2), bytes([0, 255, 128, 0])))
    ['  ██', '▒▒  ']
    """
    shades = _ASCII if ascii_only else _SHADES
    width, grey = image.width, image.convert("L").tobytes()
    text = [2 * shades[value * len(shades) // 256] for value in grey]
    return ["".join(text[start : start + width]) for start in range(0, len(text), width)]


def side_by_side(images: Sequence[tuple[list[str], str]], gap: int = 3) -> str:
    """Images side by side, each with its caption below.

    >>> print(side_by_side([(["##", "##"], "a"), (["..", ".."], "b")]))
    ##   ..
    ##   ..
    a    b
    """
    columns = [[*rows, caption] for rows, caption in images]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    space = " " * gap
    return "\n".join(
        space.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
