import sys
from types import ModuleType

import pytest
import torch

from diracnets.data.digits import load_digits
from diracnets.errors import MissingExtraError


def test_the_held_out_fifth_is_fixed_and_stratified():
    data = load_digits()
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert data.input_size == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    share = torch.bincount(data.val.labels) / (torch.bincount(data.val.labels) + torch.bincount(data.train.labels))
    assert (share - 0.2).abs().max() < 0.003
    assert [data.val.name(n) for n in range(3)] == ["digit 1", "digit 9", "digit 13"]
    together = {each.name(n) for each in (data.train, data.val) for n in range(len(each))}
    assert together == {f"digit {n}" for n in range(1797)}


def test_the_normalization_is_that_of_the_training_images():
    pixels, _, _ = next(load_digits().train.batches(2000))
    assert pixels.shape == (1438, 1, 8, 8)
    assert abs(float(pixels.mean())) < 5e-4
    assert abs(float(pixels.std()) - 1) < 5e-4


def test_the_17_levels_fill_a_byte():
    data = load_digits()
    levels = {value for n in range(100) for value in data.train.image(n).tobytes()}
    assert len(levels) == 17
    assert (min(levels), max(levels)) == (0, 255)


def test_without_scikit_learn_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'diracnets\[demo\]'"):
        load_digits()


def test_an_import_that_fails_for_another_reason_is_not_called_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))  # it is there, but its digits cannot be had
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ImportError) as caught:
        load_digits()
    assert caught.type is ImportError
