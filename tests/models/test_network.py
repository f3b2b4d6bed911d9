"""What holds for every network, whatever its blocks are."""

import pytest
import torch
from torch import nn

from diracnets import Init, create_model, fold
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, save_checkpoint
from diracnets.artifacts.load import load
from diracnets.evaluation.info import describe
from diracnets.models.init import upgraded
from diracnets.nn.dirac import DiracConv2d

SMALL = [
    ("diracnet-10-0.25", {"image_size": 8}),
    ("plain-18", {"width": 0.125, "image_size": 32}),
    ("repvgg-10-0.25", {"image_size": 8}),
    ("wrn-10-0.25", {"image_size": (8, 9)}),
    ("dirac-wrn-10-0.5", {"image_size": 8}),
    ("resnet-20", {"width": 0.25, "image_size": 8}),
    ("resnet-18", {"width": 0.125, "image_size": 32}),
    ("dirac-resnet-34", {"width": 0.0625, "image_size": 32}),
    ("vgg-16", {"width": 0.0625}),
    ("dirac-vgg-19", {"width": 0.0625}),
]
small = pytest.mark.parametrize(("name", "arguments"), SMALL, ids=[name for name, _ in SMALL])


@small
def test_a_network_gives_maps_features_and_logits(name, arguments):
    net = create_model(name, num_classes=4, in_channels=2, **arguments).eval()
    x = torch.randn(3, *net.input_size)
    maps, features = net.feature_maps(x), net.forward_features(x)
    assert len(maps) == len(net.groups)
    assert features.shape[:2] == maps[-1].shape[:2] == (3, net.num_features)
    assert (features >= 0).all()
    torch.testing.assert_close(net(x), net.fc(features.mean((2, 3))))
    net.reset_classifier(0)
    assert (net(x).shape, net.num_classes) == ((3, net.num_features), 0)
    net.reset_classifier(2)
    assert (net(x).shape, net.num_classes, net.config["num_classes"]) == ((3, 2), 2, 2)


@small
def test_every_parameter_is_trained(name, arguments):
    net = create_model(name, num_classes=4, init="deep", **arguments)
    net(torch.randn(4, *net.input_size)).square().sum().backward()
    without = [key for key, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without


@small
def test_a_network_folds_to_a_chain_unless_it_has_branches(name, arguments, warm):
    net = warm(create_model(name, num_classes=4, **arguments))
    folded = fold(net)
    report = folded.fold_report
    assert report.chain == net.is_chain == isinstance(folded, nn.Sequential)
    assert report.max_rel_float64 < 1e-12
    assert not any(isinstance(layer, DiracConv2d) for layer in folded.modules())
    left = [key for key, layer in folded.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert left == list(report.left)
    assert describe(net).folded_parameters == report.parameters_after


@small
def test_a_checkpoint_of_any_network_is_read(name, arguments, warm, tmp_path):
    net = warm(create_model(name, num_classes=4, init=Init("deep", filters=0.5, bias=0.25), **arguments))
    mean = (0.5,) * net.input_size[0]
    card = ModelCard(net.input_size, mean, mean, architecture=net.config)
    save_checkpoint(tmp_path / "last.pt", Checkpoint(card, net.state_dict()))
    loaded = load(tmp_path / "last.pt")
    x = torch.randn(2, *net.input_size)
    assert torch.equal(loaded(x), net(x))
    assert (type(loaded), loaded.config) == (type(net), net.config)


@small
def test_what_info_says_of_a_network_is_what_it_is(name, arguments):
    net = create_model(name, num_classes=4, **arguments)
    info = describe(net)
    assert info.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert [layer.output_shape for layer in info.layers][-1] == (4,)
    assert {layer.name for layer in info.layers} == {
        key for key, module in net.named_modules() if not any(module.children())
    }


def test_configs_of_earlier_versions_make_the_same_network():
    config = create_model("diracnet-10-0.25").config
    old = {key: config[key] for key in ("name", "num_classes", "in_channels", "image_size", "width")} | {
        "init": "normal"
    }
    torch.manual_seed(1)
    expected = create_model(**config).state_dict()
    torch.manual_seed(1)
    given = create_model(**upgraded(old)).state_dict()
    assert all(torch.equal(given[key], tensor) for key, tensor in expected.items())
