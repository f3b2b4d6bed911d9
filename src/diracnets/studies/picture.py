"""Pictures of studies: written where matplotlib is installed, and said to be missing where it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diracnets.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(
    path: Path, draw: Callable[[Figure], None], width: float, height: float, say: Callable[[str], None]
) -> bool:
    """Draw a picture into a PNG.

    Args:
        path: the file.
        draw: draws on an empty figure.
        width, height: of the figure, in inches.
        say: is told where matplotlib is not installed; nothing is written then.

    Returns:
        Whether the file was written.

    Raises:
        FileError: the file cannot be written.
    """
    from diracnets.training.plots import new_figure, save_figure

    try:
        figure = new_figure(width, height)
    except MissingExtraError as error:
        say(f"no {path.name}: {error}")
        return False
    draw(figure)
    save_figure(figure, path)
    return True
