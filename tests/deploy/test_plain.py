"""Chains of the few layers that other packages know compute what the chain does."""

import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.plain import with_convolutions_for_pooling, with_fixed_pooling
from diracnets.errors import UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model

CARD = ModelCard((2, 20, 12), mean=(0.5,) * 2, std=(0.2,) * 2)


def chain(pool, warm):
    return fold(warm(build_model("diracnet-10-0.25", in_channels=2, image_size=(20, 12), pool=pool)).double())


@pytest.mark.parametrize("pool", ["max", "average"])
def test_the_last_pooling_gets_a_fixed_size(pool, warm):
    given = chain(pool, warm)
    made = with_fixed_pooling(given, CARD)
    assert not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in made)
    assert [name for name, _ in made.named_children()] == [name for name, _ in given.named_children()]
    assert (made.card, made[-3].kernel_size) == (CARD, (5, 3))
    images = torch.randn(4, *CARD.input_size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(made(images), given(images), rtol=1e-12, atol=1e-12)


def test_convolutions_compute_the_averages(warm):
    given = chain("average", warm).float()
    made = with_convolutions_for_pooling(given, CARD)
    assert {type(layer) for layer in made} == {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}
    assert all(layer.groups == 1 for layer in made if isinstance(layer, nn.Conv2d))
    images = torch.randn(4, *CARD.input_size)
    with torch.no_grad():
        expected = given(images)
        torch.testing.assert_close(made(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_maximum_is_no_convolution(warm):
    with pytest.raises(UsageError, match=r"layer \d+ takes the maximum.*pool average"):
        with_convolutions_for_pooling(chain("max", warm), CARD)
