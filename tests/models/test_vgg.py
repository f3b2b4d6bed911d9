"""VGG: the published layers and sizes, as one chain."""

import pytest
import torch
from torch import nn

from diracnets import create_model, fold

LAYERS = {
    "vgg-16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg-19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


@pytest.mark.parametrize(("name", "weights"), [("vgg-16", 14_715_584), ("vgg-19", 20_024_000)])
def test_layers_and_parameters_are_the_published_ones(name, weights):
    with torch.device("meta"):
        net = create_model(name)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sum(layer.weight.numel() for layer in layers) == weights
    assert [conv.out_channels for conv in layers[:-1]] == [int(n) for n in LAYERS[name].split() if n != "M"]
    assert all(conv.kernel_size == (3, 3) for conv in layers[:-1])


@pytest.mark.parametrize("prefix", ["", "dirac-"])
def test_the_chain_has_vggs_layers_in_vggs_order(prefix, warm):
    net = warm(create_model(f"{prefix}vgg-16", width=0.125))
    chain = fold(net)
    steps = ["M" if isinstance(step, nn.MaxPool2d) else str(step.out_channels * 8) for step in chain if _shown(step)]
    assert steps == LAYERS["vgg-16"].split()
    relus = sum(isinstance(step, nn.ReLU) for step in chain)
    assert relus == 13
    assert net.feature_maps(torch.randn(1, 3, 32, 32))[-1].shape[2:] == (2, 2)
    assert net.forward_features(torch.randn(1, 3, 64, 32)).shape[2:] == (2, 1)


def _shown(step):
    return isinstance(step, nn.Conv2d | nn.MaxPool2d)
