import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.graph import Conv, Linear, Pool, layers_of
from diracnets.errors import UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model

CARD = ModelCard((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


def computed(layers, images):
    """What the layers say, by torch's functions."""
    x = images
    for layer in layers:
        assert tuple(x.shape[1:]) == layer.before
        if isinstance(layer, Conv):
            weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
            x = functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        elif isinstance(layer, Pool) and layer.kind == "max":
            x = functional.max_pool2d(x, layer.size, layer.stride, layer.padding)
        elif isinstance(layer, Pool):
            x = functional.avg_pool2d(x, layer.size, layer.stride)
        else:
            assert isinstance(layer, Linear)
            x = functional.linear(x.flatten(1), torch.from_numpy(layer.weight), torch.from_numpy(layer.bias))
            x = x[:, :, None, None]
        assert tuple(x.shape[1:]) == layer.after
        if not isinstance(layer, Pool) and layer.relu:
            x = x.relu()
    return x.flatten(1)


@pytest.mark.parametrize("name", ["diracnet-10-0.5", "diracnet-sprint-0.25", "vgg-16", "diracnet-18"])
def test_the_layers_compute_what_the_chain_does(name):
    torch.manual_seed(0)
    chain = fold(build_model(name).eval())
    card = ModelCard(chain.input_size if name != "diracnet-18" else (3, 65, 70), mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.randn(2, *card.input_size)
    with torch.no_grad():
        expected = chain(images)
    found = computed(layers_of(chain, card), images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_ways_to_write_a_layer():
    chain = nn.Sequential(
        nn.Conv2d(3, 6, (3, 5), padding="same", groups=3, bias=False),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=(1, 2), dilation=2, padding="valid"),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 6 * 3, 7),
        nn.ReLU(),
        nn.Linear(7, 2),
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(computed(layers_of(chain, CARD), images), chain(images), atol=1e-5)
    assert not np.any(layers_of(chain, CARD)[0].bias)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(3, 4, 3), nn.GELU()], r"layer 1 \(GELU"),
        ([nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")], "layer 0 .*pads with 'reflect'"),
        ([nn.Conv2d(3, 4, 2, padding="same")], "layer 0 .*more on one side"),
        ([nn.Conv2d(4, 4, 3)], "layer 0 takes 4 channels, but gets 3"),
        ([nn.ReLU()], "layer 0, a ReLU, comes after no convolution"),
        ([nn.MaxPool2d(2), nn.ReLU()], "layer 1, a ReLU, comes after no convolution"),
        ([nn.MaxPool2d(3, 2, ceil_mode=True)], "layer 0 .*pools in a way"),
        ([nn.AvgPool2d(3, 1, 1)], "layer 0 .*pools in a way"),
        ([nn.AdaptiveAvgPool2d(2)], "layer 0 .*more than one number"),
        ([nn.Linear(32, 2)], "layer 0 .*before the image is flattened"),
        ([nn.Flatten(), nn.Linear(32, 2)], "layer 1 takes 32 numbers, but gets 3072"),
        ([nn.Flatten(), nn.ReLU()], "layer 1, a ReLU"),
        ([nn.Conv2d(3, 4, 33)], "layer 0 leaves nothing"),
    ],
)
def test_what_cannot_be_written_is_named(layers, message):
    with pytest.raises(UsageError, match=message):
        layers_of(nn.Sequential(*layers), CARD)


def test_a_net_with_branches_is_no_chain():
    with pytest.raises(UsageError, match="ResNet is not a chain"):
        layers_of(build_model("resnet-20"), CARD)
