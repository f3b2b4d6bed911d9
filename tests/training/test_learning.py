"""Training learns: real digits, a bar that needs working gradients, labels and updates, and what stays below it."""

from dataclasses import replace

import pytest
import torch

from diracnets.data.load import load_data
from diracnets.data.memory import MemoryImages
from diracnets.nn import effective_weight
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe

BAR = 0.9  # of the held-out digits; five seeds of each have 0.928 to 0.983, chance 0.10


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load_data("digits")


def accuracy(folder, data, **settings):
    recipe = Recipe.load("demo").replaced(
        **{"model": "diracnet-10-0.5", "epochs": 3, "precision": "float32"} | settings
    )
    rows = []
    train(recipe, run=folder / "run", data=data, device="cpu", quiet=True, on_epoch=rows.append)
    return rows[-1]["val_accuracy"]


@pytest.mark.parametrize("settings", [{}, {"model": "plain-10-0.5"}, {"optimizer": "muon", "lr": 0.05}])
def test_three_epochs_teach_a_small_network_the_digits(settings, digits, tmp_path):
    assert accuracy(tmp_path, digits, **settings) > BAR


@pytest.mark.slow
def test_a_rate_of_nearly_nothing_does_not(digits, tmp_path):
    assert accuracy(tmp_path, digits, lr=1e-6) < 0.5


@pytest.mark.slow
def test_labels_that_say_nothing_do_not(digits, tmp_path):
    from sklearn import datasets

    pixels = torch.from_numpy(datasets.load_digits().images).mul(15.9).to(torch.uint8)[..., None]
    labels = torch.randint(10, (len(pixels),), generator=torch.Generator().manual_seed(0))
    images = MemoryImages(pixels, labels, name="digit", mean=digits.mean, std=digits.std)
    assert accuracy(tmp_path, replace(digits, train=images)) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["turned round", "nothing"])
def test_wrong_gradients_of_the_filters_do_not(broken, digits, tmp_path, monkeypatch):
    right = effective_weight._DiracWeights.backward

    def wrong(ctx, *grads):
        return right(ctx, *(-grad if broken == "turned round" else torch.zeros_like(grad) for grad in grads))

    monkeypatch.setattr(effective_weight._DiracWeights, "backward", staticmethod(wrong))
    assert accuracy(tmp_path, digits) < BAR  # with filters that stay as they are drawn, 0.84
