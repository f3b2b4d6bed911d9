import importlib.util
import sys

import pytest
from PIL import Image

from diracnets.errors import MissingExtraError
from diracnets.training import plots
from diracnets.training.plots import draw_curve

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
ROW = {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "rate": 0.1}
VALIDATED = {"epoch": 2, "loss": 1.0, "accuracy": 0.5, "rate": 0.05, "val_loss": 1.2, "val_accuracy": 0.4}


@needs_matplotlib
@pytest.mark.parametrize("history", [[ROW], [ROW, VALIDATED]])
def test_curves(history, tmp_path):
    draw_curve(history, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size[0] > 800


@needs_matplotlib
def test_the_best_epoch_is_marked_and_label_smoothing_explained(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    better = {**VALIDATED, "epoch": 3, "loss": 1.5, "val_accuracy": 0.6}
    history = [ROW, VALIDATED, better, {**better, "epoch": 4}, {**VALIDATED, "epoch": 5}]  # of equals the last
    draw_curve(history, "curve.png", label_smoothing=0.1)
    losses, accuracies, _ = drawn[0].axes
    assert accuracies.get_title() == "best validation accuracy 60.00%, epoch 4"
    marks = [line.get_data() for axes in (losses, accuracies) for line in axes.lines if line.get_marker() == "*"]
    assert [(list(x), list(y)) for x, y in marks] == [([4], [1.2]), ([4], [60.0])]
    assert "label smoothing (0.1)" in drawn[0].get_supxlabel()
    draw_curve([ROW, VALIDATED], "curve.png", label_smoothing=0.1)  # whose training loss lies below
    draw_curve(history, "curve.png")
    assert [figure.get_supxlabel() for figure in drawn[1:]] == ["", ""]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"diracnets\[plot\]"):
        draw_curve([ROW], tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
