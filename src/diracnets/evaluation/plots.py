"""Figures of an evaluation, the confusion matrix and the most confident errors, and what every figure is made with.

Needs the extra `plot`.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from diracnets.data.images import Images
from diracnets.errors import MissingExtraError
from diracnets.evaluation.metrics import Mistake
from diracnets.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 30  # classes whose names and counts are still legible
PAIRS = 20  # confusions listed where they are not
ACROSS = 5  # errors next to each other on a contact sheet,
ERRORS = 50  # and most of them on one
PIXELS = 240  # of the longer side of an image on it
DPI = 130
OTHER_FONTS = (  # that come with systems and have the letters of Chinese, Japanese or Korean, or of most scripts
    *("Noto Sans CJK", "Noto Sans JP", "Noto Sans KR", "Noto Sans SC", "Noto Sans TC", "Source Han Sans", "WenQuanYi"),
    *("Droid Sans Fallback", "Hiragino Sans", "PingFang", "Apple SD Gothic Neo", "Arial Unicode MS", "Microsoft YaHei"),
    *("Yu Gothic", "Malgun Gothic", "Unifont"),
)


class FigureWarning(UserWarning):
    """A figure does not show all that it should."""


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: str | Path, *, title: str) -> None:
    """Draw a confusion matrix into a PNG: with names and counts up to 30 classes, else with a list of confusions.

    Args:
        confusion: int64 [K, K], rows are true classes, columns predicted ones.
        classes: the K names.
        path: the file.
        title: above it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        FileError: the file cannot be written.
    """
    count = len(classes)
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)  # of each true class
    if count <= NAMED:
        side = max(4.0, 0.45 * count)
        figure = new_figure(side + 1.5, side)
        axes = figure.subplots()
        names = [_short(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for true, predicted in confusion.nonzero().tolist():
            number, color = str(int(confusion[true, predicted])), "white" if shares[true, predicted] > 0.3 else "black"
            axes.text(predicted, true, number, ha="center", va="center", fontsize=8, color=color)
    else:
        figure = new_figure(11.5, 7)
        axes, side = figure.subplots(1, 2, width_ratios=[3, 1.1])
        side.set_axis_off()
        side.text(0, 1, _likeliest(confusion, classes), va="top", fontsize=9)
    image = axes.imshow(shares.sqrt().numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]  # in square roots, so that rare confusions can be seen
    bar = figure.colorbar(image, ax=axes, fraction=0.046, label="part of the true class")
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    figure.suptitle(wrapped(figure, _text(title), fontsize=10), fontsize=10)
    save_figure(figure, path)


def draw_errors(
    worst: Sequence[Mistake], images: Images, classes: Sequence[str], path: str | Path, *, title: str
) -> None:
    """Draw a contact sheet into a PNG: the images that were mistaken, each with its label and what it was taken for.

    Args:
        worst: the errors, the most confident first; `ERRORS` of them are shown.
        images: the set that their numbers belong to.
        classes: names of the classes.
        path: the file.
        title: above it; how many errors are shown is added.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: an image can no longer be read.
        FileError: the file cannot be written.
    """
    shown = worst[:ERRORS]
    rows = max(1, math.ceil(len(shown) / ACROSS))
    figure = new_figure(1.9 * ACROSS, 2.5 * rows + 0.7)
    cells = list(figure.subplots(rows, ACROSS, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    for axes, mistake in zip(cells, shown, strict=False):
        picture = images.image(mistake.index).convert("RGB")
        picture.thumbnail((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        axes.imshow(picture, interpolation="nearest")
        true, predicted = _short(classes[mistake.true]), _short(classes[mistake.predicted])
        axes.set_title(f"{predicted}, {mistake.probability:.1%}\nis {true}", fontsize=9)
        axes.text(0.5, -0.04, _end(mistake.name), transform=axes.transAxes, ha="center", va="top", fontsize=6)
    which = f"The {len(shown)} most confident errors" if len(shown) != 1 else "The most confident error"
    what = f"{which}: prediction and its probability, and what the image is" if shown else "No errors"
    title = wrapped(figure, _text(title), fontsize=10)
    figure.suptitle(f"{title}\n{what}", fontsize=10)
    save_figure(figure, path)


def _likeliest(confusion: Tensor, classes: Sequence[str]) -> str:
    """The confusions that happen most, as lines of text."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    most = wrong.sort(descending=True, stable=True).indices[:PAIRS].tolist()
    pairs = [(int(wrong[i]), *divmod(i, len(classes))) for i in most if wrong[i] > 0]
    lines = [
        f"{times} x {_short(classes[true])} taken for {_short(classes[predicted])}" for times, true, predicted in pairs
    ]
    return "\n".join(["Most frequent confusions", "", *lines])


def _short(name: str, most: int = 18) -> str:
    """A name without its middle, if it is long: what tells apart names of one kind is often at their end.

    >>> _short("Canis lupus familiaris, male")
    'Canis lu…ris, male'
    """
    if len(name) > most:
        end = most // 2
        name = f"{name[: most - end - 1]}…{name[-end:]}"
    return _text(name)


def _end(name: str, most: int = 30) -> str:
    return _text(name if len(name) <= most else "…" + name[1 - most :])


def _text(name: str) -> str:
    return name.replace("$", r"\$")  # matplotlib would read mathematics into it


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without any global state of pyplot.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'diracnets[plot]'") from error
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def wrapped(figure: Figure, text: str, *, fontsize: float) -> str:
    """Text in lines that are not wider than the figure."""
    return textwrap.fill(text, int(figure.get_figwidth() * 115 / fontsize))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure into a PNG, whole or not at all.

    Letters that matplotlib's own font does not have, such as Chinese ones, are drawn in a font of this machine. Where
    there is none they are boxes, and a warning says so.
    """
    from matplotlib.text import Text

    families = ["DejaVu Sans", *_other_fonts()]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    with written_whole(path) as part, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(part, dpi=DPI, format="png")
    missing = [str(each.message) for each in caught if "missing from" in str(each.message)]
    for each in caught:
        if str(each.message) not in missing:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if missing:
        warnings.warn(
            f"no font of this machine has some letters of {path}, they are boxes: install one, such as Noto Sans CJK",
            FigureWarning,
            stacklevel=2,
        )


def _other_fonts() -> list[str]:
    """Those of this machine that have letters of many scripts, by the beginnings of their names."""
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return sorted((name for name in known if name.startswith(OTHER_FONTS)), key=lambda name: (len(name), name))
