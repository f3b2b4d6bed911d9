import importlib.util
import sys

import pytest
import torch
from PIL import Image

from diracnets.errors import MissingExtraError
from diracnets.training.plots import draw_confusion, draw_curve

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
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusions(classes, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other tests' packages import it
    confusion = torch.randint(0, 9, (classes, classes))
    draw_confusion(confusion, [f"class ${number}" for number in range(classes)], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) >= 500
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"diracnets\[plot\]"):
        draw_curve([ROW], tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []
