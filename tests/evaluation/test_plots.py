import functools
import importlib.util
import sys
import warnings

import pytest
import torch
from PIL import Image

from diracnets.data.memory import MemoryImages
from diracnets.evaluation import plots
from diracnets.evaluation.metrics import Mistake

pytestmark = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusions(classes, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests' packages import it
    confusion = torch.randint(0, 9, (classes, classes))
    names = [f"class ${number}" for number in range(classes)]
    plots.draw_confusion(confusion, names, tmp_path / "confusion.png", title="a $ file: 12.00% of 9 images")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) >= 500
    assert "matplotlib.pyplot" not in sys.modules


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been written."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_a_contact_sheet_shows_the_images_themselves(drawn):
    pixels = torch.stack([torch.full((6, 8, 1), number, dtype=torch.uint8) for number in range(9)])
    images = MemoryImages(pixels, torch.zeros(9, dtype=torch.int64), name="made", mean=[0.5], std=[0.5])
    worst = [Mistake(f"folder/{number}.png", number, 0, 1, 0.9) for number in (7, 2, 5, 1, 8, 3)]
    plots.draw_errors(worst, images, ["cat", "$dog"], "errors.png", title="model.pt: 50.00%")
    (figure,) = drawn
    shown = [axes for axes in figure.axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in shown] == [7, 2, 5, 1, 8, 3]
    assert shown[0].get_title() == "\\$dog, 90.0%\nis cat"
    assert shown[0].texts[0].get_text() == "folder/7.png"
    assert figure.get_suptitle().startswith("model.pt: 50.00%\nThe 6 most confident errors")


def test_a_sheet_has_so_many_images_and_may_have_none(drawn):
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    images = MemoryImages(pixels, torch.zeros(1, dtype=torch.int64), name="made", mean=[0.5] * 3, std=[0.5] * 3)
    for count in (0, 60):
        plots.draw_errors([Mistake("", 0, 0, 1, 0.9)] * count, images, ["a", "b"], "errors.png", title="x")
    assert [sum(bool(axes.images) for axes in figure.axes) for figure in drawn] == [0, plots.ERRORS]
    assert drawn[0].get_suptitle().endswith("\nNo errors")


def test_long_titles_and_names_stay_in_the_figure_and_differ(drawn):
    names = [f"a class of images number {number}" for number in range(4)]
    plots.draw_confusion(torch.eye(4).long(), names, "confusion.png", title="a rather long title of a file, " * 5)
    figure = drawn[0]
    figure.draw_without_rendering()
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[3] == "a class … number 3"
    assert len(set(labels)) == 4


def test_letters_are_drawn_in_a_font_of_the_machine_or_missed_in_one_warning(tmp_path, monkeypatch):
    letter = "\ue0de"  # of those that come with matplotlib, STIXNonUnicode alone has it
    draw = functools.partial(plots.draw_confusion, torch.eye(2).long(), [letter, "a"], tmp_path / "a.png", title="b")
    monkeypatch.setattr(plots, "OTHER_FONTS", ("none of all",))
    with pytest.warns(plots.FigureWarning, match=r"no font of this machine has some letters of .*a\.png") as warned:
        draw()
    assert len(warned) == 1
    monkeypatch.setattr(plots, "OTHER_FONTS", ("STIXNonUnicode",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw()
