"""Every type of layer on the list is described completely."""

import json

import pytest
import torch
from torch import nn

from diracnets.artifacts.layers import _LAYERS, from_data, output_shapes, to_data
from diracnets.errors import UsageError

UNUSUAL = [
    nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False, padding_mode="circular"),
    nn.Conv2d(4, 6, (3, 1), (2, 1), "valid", (2, 3), padding_mode="replicate"),
    nn.Conv3d(4, 6, (3, 1, 2), padding="same"),
    nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, False),
    nn.ConvTranspose2d(4, 6, (3, 1), (2, 1), (1, 0), (1, 0), dilation=2),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None),
    nn.BatchNorm1d(4, momentum=0.01, affine=False),
    nn.MaxPool2d((2, 3), 1, (1, 0), 2, ceil_mode=True),
    nn.MaxPool1d(3),
    nn.AvgPool1d(2, 1, 1, True, False),
    nn.AvgPool2d((2, 1), ceil_mode=True, count_include_pad=False),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.AdaptiveMaxPool3d(2),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.3),
    nn.ELU(0.5),
    nn.Hardtanh(-2.5, 0.5),
    nn.PReLU(4),
    nn.GELU("tanh"),
    nn.Softplus(2, 10),
    nn.Softmax(dim=-1),
    nn.Flatten(2, -1),
    nn.Linear(4, 2, bias=False),
    nn.Upsample(size=(4, 5), mode="bilinear", align_corners=True),
    nn.Upsample(scale_factor=(2, 1.5)),
    nn.PixelShuffle(2),
    nn.ZeroPad2d((1, 2, 3, 4)),
    nn.ReflectionPad1d(2),
    nn.Dropout2d(0.25),
]


def arguments(layer):
    """All that a layer holds but its tensors and modules."""
    return {k: v for k, v in vars(layer).items() if not k.startswith("_") and k not in ("training", "init")}


@pytest.mark.parametrize("layer", UNUSUAL, ids=repr)
def test_layer_comes_back_from_json_the_same(layer):
    data = json.loads(json.dumps(to_data(nn.Sequential(layer))))
    (rebuilt,) = from_data(data)
    assert type(rebuilt) is type(layer)
    assert arguments(rebuilt) == arguments(layer)
    assert all(parameter.is_meta for parameter in rebuilt.parameters())
    shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == shapes


def test_only_torch_layers_are_on_the_list():
    assert all(issubclass(getattr(nn, name), nn.Module) for name in _LAYERS)


def test_negative_padding_is_refused():
    with pytest.raises(UsageError, match="padding"):
        to_data(nn.Sequential(nn.ZeroPad2d(-1)))


def test_shapes_are_those_of_running_it():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    x, shapes = torch.randn(1, 3, 8, 8), []
    for layer in chain:
        x = layer(x)
        shapes.append(tuple(x.shape))
    assert output_shapes(from_data(to_data(chain)), (3, 8, 8)) == shapes
