"""The networks: parameter counts of the paper, shapes, names, and what is refused."""

import functools
from itertools import pairwise

import pytest
import torch
from torch import nn

from diracnets import Init, create_model, fold, list_models
from diracnets.errors import UsageError
from diracnets.models import diracnet
from diracnets.models.build import on_meta
from diracnets.models.listed import PARAMETERS
from diracnets.models.names import parse, shallow_kin
from diracnets.nn.dirac import DiracConv2d

PUBLISHED = {
    ("diracnet-16-1", 10): 173_402,
    ("diracnet-28-1", 10): 368_730,
    ("diracnet-28-5", 10): 9_124_250,
    ("diracnet-28-10", 10): 36_450_090,
    ("diracnet-34-2", 10): 1_854_378,
    ("diracnet-34-4", 10): 7_395_146,
    ("diracnet-100-1", 10): 1_540_698,
    ("diracnet-400-1", 10): 6_423_898,
    ("diracnet-28-10", 100): 36_507_780,
    ("diracnet-18", 1000): 11_523_368,
    ("diracnet-34", 1000): 21_638_952,
}


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "classes"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, classes):
    net, plain = (on_meta({"name": each, "num_classes": classes}) for each in (name, name.replace("diracnet", "plain")))
    assert parameters(net) == PUBLISHED[name, classes]
    scales = sum(layer.alpha.numel() + layer.beta.numel() for layer in net.modules() if isinstance(layer, DiracConv2d))
    assert parameters(plain) == PUBLISHED[name, classes] - scales
    assert not any(isinstance(layer, DiracConv2d) for layer in plain.modules())


@pytest.mark.parametrize(
    ("name", "size", "channels", "maps"),
    [
        ("diracnet-10-0.25", 8, 1, [(4, 8, 8), (8, 4, 4), (16, 2, 2)]),
        ("plain-16-0.25", (9, 21), 2, [(4, 9, 21), (8, 4, 10), (16, 2, 5)]),
        ("diracnet-18", 32, 3, [(8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]),
        ("plain-34", (64, 40), 3, [(8, 16, 10), (16, 8, 5), (32, 4, 2), (64, 2, 1)]),
    ],
)
def test_shapes(name, size, channels, maps):
    width = {} if "-0." in name else {"width": 0.125}
    net = create_model(name, num_classes=7, in_channels=channels, image_size=size, **width)
    x = torch.randn(2, *net.input_size)
    assert [tuple(features.shape[1:]) for features in net.feature_maps(x)] == maps
    features = net.forward_features(x)
    assert tuple(features.shape[1:]) == maps[-1]
    assert (features >= 0).all()
    assert net.num_features == maps[-1][0]
    assert net(x).shape == (2, 7)
    torch.testing.assert_close(net(x), net.fc(features.mean((2, 3))), rtol=0.5, atol=0.5)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    assert net.num_classes == 3
    net.reset_classifier(0)
    torch.testing.assert_close(net(x), features.mean((2, 3)), rtol=0.5, atol=0.5)
    assert (net(x).shape, net.num_classes) == ((2, net.num_features), 0)
    net.reset_classifier(3)
    twin = create_model(**net.config)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(x), net.eval()(x))


def test_the_network_is_the_papers_block_by_block():
    net = create_model("diracnet-16-0.25").double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = net.stem.bn(nn.functional.conv2d(x, net.stem.conv.weight, padding=1)).relu()
    for index, group in enumerate(net.groups):
        expected = nn.functional.max_pool2d(expected, 2) if index else expected
        for block in group:
            expected = block.bn(nn.functional.conv2d(expected.relu(), block.conv.effective_weight(), padding=1))
    expected = net.fc(expected.relu().mean((2, 3)))
    torch.testing.assert_close(net(x), expected)


def test_the_start_is_the_papers():
    net = create_model("diracnet-16-4")
    block = net.groups[1][1]
    assert abs(block.conv.weight.std() - 1) < 0.02
    assert 0 <= block.bn.weight.min() < block.bn.weight.max() <= 1
    assert abs(block.bn.weight.mean() - 0.5) < 0.15
    assert (block.bn.bias == 0).all()
    assert create_model("diracnet-16-4", init="kaiming").groups[1][1].conv.weight.std() < 0.1
    assert create_model("plain-16-4").groups[1][1].conv.weight.std() < 0.1
    assert abs(create_model("plain-16-4", init=Init(filters="normal")).groups[1][1].conv.weight.std() - 1) < 0.02


def test_all_effective_weights_of_a_step_are_computed_together(monkeypatch):
    net = create_model("diracnet-16-0.25")
    calls = []
    together = diracnet.effective_weights
    monkeypatch.setattr(diracnet, "effective_weights", lambda layers: calls.append(len(layers)) or together(layers))
    net(torch.randn(1, 3, 32, 32))
    assert calls == [12]


def test_listed_models_can_be_made():
    assert "diracnet-28-10" in list_models()
    assert list_models("plain-18") == ["plain-18"]
    assert {"resnet-164", "dirac-resnet-18", "wrn-28-10", "dirac-vgg-16", "repvgg-28-1"} <= set(list_models())
    assert len(set(list_models())) == len(list_models())
    for name in list_models():
        if not name.endswith(("-400-1", "-1000-1", "-1001")):  # others make these
            assert on_meta({"name": name}).config["name"] == name


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("diracnet-28-1", 24),
        ("plain-18", 16),
        ("repvgg-16-1", 12),
        ("wrn-28-10", 12),
        ("resnet-110", 54),
        ("dirac-resnet-164", 54),
        ("resnet-34", 16),
        ("vgg-16", 12),
    ],
)
def test_a_name_tells_how_many_blocks_there_are(name, blocks):
    assert parse(name).blocks == blocks
    assert sum(map(len, on_meta({"name": name}).groups)) == blocks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "diracnet-27-1"}, "nearest is diracnet-28-1"),
        ({"name": "diracnet-100000000-1"}, "diracnet-100000000-1: the depth is at most 20,000$"),
        *(
            ({"name": name}, "the depth is at most")
            for name in ("repvgg-20002-1", "dirac-wrn-20002-1", "resnet-20000000")
        ),
        ({"name": f"plain-{'9' * 5000}-1"}, "9: the depth is at most"),
        *(({"name": f"{name}-{'9' * 400}"}, "the width is at most") for name in ("wrn-28", "diracnet-sprint")),
        ({"name": "vgg-16", "width": 1e30}, "width is 1e\\+30; it must be a positive number, at most 10,000"),
        ({"name": "diracnet-4-1"}, "nearest is diracnet-10-1"),
        ({"name": "diracnett-28-10"}, "did you mean diracnet-28-10"),
        ({"name": "resnet"}, "no network is called 'resnet'; did you mean resnet-"),
        ({"name": "resnet-50"}, "resnet-50: of ImageNet's ResNets there are 18 and 34"),
        ({"name": "resnet-57"}, "6n \\+ 2 .*nearest is resnet-56$"),
        ({"name": "dirac-resnet-165"}, "9n \\+ 2 .*nearest is dirac-resnet-164$"),
        ({"name": "resnet-2"}, "nearest is resnet-8"),
        ({"name": "wrn-30-0.5"}, "nearest is wrn-28-0.5"),
        ({"name": "wrn-28"}, "no network is called 'wrn-28'"),
        ({"name": "dirac-repvgg-28-1"}, "no network is called"),
        ({"name": "vgg-13"}, "VGG network is 16 or 19"),
        ({"name": "vgg-16", "image_size": 28}, "at least 32x32"),
        ({"name": "resnet-20", "image_size": 3}, "at least 4x4"),
        ({"name": "vgg-16", "width": 0.005}, "width 0.005 has less than one channel"),
        ({"name": "diracnet-50"}, "diracnet-50-1"),
        ({"name": "diracnet-28-0"}, "less than one channel"),
        ({"name": "diracnet-18", "width": 0.0}, "width is 0.0"),
        ({"name": "diracnet-28-1", "width": 2.0}, "width in its name"),
        ({"name": "diracnet-28-1", "num_classes": -1}, "num_classes is -1"),
        ({"name": "diracnet-28-1", "in_channels": 0}, "in_channels is 0"),
        ({"name": "diracnet-28-1", "image_size": 7}, "too small for diracnet-28-1: it needs at least 8x8"),
        ({"name": "diracnet-18", "image_size": (64, 31)}, "at least 32x32"),
        ({"name": "diracnet-16-1", "init": "xavier"}, "xavier"),
    ],
)
def test_what_makes_no_network_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": True},
        {"num_classes": 2.5},
        {"in_channels": 1.0},
        {"image_size": (8,)},
        {"image_size": (8, 8.5)},
        {"image_size": True},
        {"image_size": "32"},
    ],
)
def test_numbers_that_are_not_whole_are_named(arguments):
    (what,) = arguments
    with pytest.raises(UsageError, match=f"^{what} is "):
        create_model("diracnet-10-0.25", **arguments)


def test_a_name_that_is_no_string_is_refused():
    with pytest.raises(UsageError, match="not 5"):
        create_model(5)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("diracnet-10-0.25", {}),
        ("plain-18", {"width": 0.06, "image_size": 64}),
        ("dirac-vgg-16", {"width": 0.06}),
    ],
)
def test_average_pooling_comes_after_a_relu_and_before_none(name, given, warm):
    net = warm(create_model(name, pool="average", **given))
    assert net.config["pool"] == "average"
    layers = list(fold(net))
    kinds = [type(layer).__name__ for layer in layers]
    assert "MaxPool2d" not in kinds
    assert kinds.count("ReLU") == kinds.count("Conv2d")
    assert all(before == "ReLU" for before, kind in pairwise(kinds) if kind == "AvgPool2d")
    x = torch.randn(2, *net.input_size)
    usual = warm(create_model(name, **given))
    assert "pool" not in usual.config  # so that its files are those of earlier versions
    assert [maps.shape for maps in net.feature_maps(x)] == [maps.shape for maps in usual.feature_maps(x)]
    assert not torch.allclose(net(x), usual(x), rtol=0.1)


def test_repvgg_averages_too():
    net = create_model("repvgg-16-0.25", pool="average")
    assert sum(isinstance(layer, nn.ReLU) for layer in net.modules()) == 12 - 2 + 1 + 1  # blocks, between, final
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "pool", "message"),
    [
        ("wrn-16-1", "average", "stride 2"),
        ("resnet-18", "average", "stride 2"),
        ("repvgg-a0", "average", "stride 2"),
        ("diracnet-sprint", "average", "before the batch norm"),
        ("diracnet-28-1", "mean", "choose max or average"),
    ],
)
def test_pooling_that_there_is_not_is_refused(name, pool, message):
    with pytest.raises(UsageError, match=message):
        create_model(name, pool=pool)


def test_the_listed_parameters_are_those_of_the_networks():
    @functools.cache
    def counted(name):
        return sum(each.numel() for each in on_meta({"name": name}).parameters())

    for name, listed in PARAMETERS.items():
        first, second, steps = shallow_kin(name)  # all blocks but the first of a group are alike
        assert listed == counted(first) + steps * (counted(second) - counted(first)), name
        assert steps > 8 or listed == counted(name), name
