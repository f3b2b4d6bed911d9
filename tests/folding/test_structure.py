"""The structure that a fold gives, without numbers: that of a real fold, for every network that has a name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diracnets.errors import FoldError
from diracnets.folding.fold import fold
from diracnets.folding.structure import ShapesOnly, folded_structure
from diracnets.models.build import build_model, list_models, on_meta
from diracnets.nn.dirac import DiracConv2d

SMALL = {  # of every family, and of every kind of block in it
    "diracnet-10-0.25": {},
    "plain-16-0.25": {"num_classes": 0},
    "diracnet-sprint-0.1": {"num_classes": 7},
    "plain-sprint-0.1": {"in_channels": 1},
    "vgg-16": {"width": 0.05},
    "dirac-vgg-19": {"width": 0.05},
    "resnet-8": {"width": 0.25},
    "dirac-resnet-20": {"width": 0.25},
    "resnet-164": {"width": 0.25},
    "wrn-10-0.25": {"in_channels": 4},
    "dirac-wrn-16-0.5": {},
    "repvgg-10-0.25": {},
    "diracnet-18": {"width": 0.05, "image_size": 64},
    "plain-34": {"width": 0.05, "image_size": (40, 64)},
    "resnet-18": {"width": 0.05, "image_size": 64},
    "dirac-resnet-34": {"width": 0.05, "image_size": 64},
}


def layers(model):
    """Everything about each layer but its values."""
    own = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    return [
        (
            name,
            type(module),
            module.extra_repr(),
            module.training,
            {key: (tensor.shape, tensor.dtype) for key, tensor in module.state_dict().items() if key in own},
        )
        for name, module in model.named_modules()
    ]


def warm_positive(net, warm):
    """Statistics as after training, scales as the rules on the meta device take them to be."""
    warm(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_()
    return net


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "resnet-164" else name for name in SMALL]
)
def test_the_structure_is_that_of_a_real_fold(name, warm):
    torch.manual_seed(0)
    net = build_model(name, **SMALL[name])
    expected = fold(warm_positive(net, warm))
    structure = folded_structure(on_meta({"name": name, **SMALL[name]}))
    assert layers(structure) == layers(expected)
    assert type(structure) is type(expected)
    assert all(tensor.is_meta for tensor in structure.state_dict().values())
    assert structure.input_size == expected.input_size


DEEP = ("-400-1", "-1000-1", "-1001")  # have more of the blocks that others have
LISTED = [name for name in list_models() if not name.endswith(DEEP)]


@pytest.mark.parametrize(
    "name",
    [*LISTED, *(pytest.param(name, marks=pytest.mark.slow) for name in ("diracnet-1000-1", "dirac-resnet-1001"))],
)
def test_every_listed_network_has_a_structure(name):
    net = on_meta({"name": name})
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    structure = folded_structure(net)
    left = [module for module in structure.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(isinstance(module, DiracConv2d) for module in structure.modules())
    assert (type(structure) is nn.Sequential) == net.is_chain
    assert not (net.is_chain and left)
    assert len(left) < len(norms)
    scales = sum(2 * module.out_channels for module in net.modules() if isinstance(module, DiracConv2d))
    gone = sum(norm.num_features for norm in norms) - sum(norm.num_features for norm in left)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    # a batch norm's two parameters for each channel become one, the bias of a convolution
    assert sum(parameter.numel() for parameter in structure.parameters()) == parameters - scales - gone


def test_a_model_with_values_is_left_as_it_is(warm):
    net = warm(build_model("diracnet-10-0.25")).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    structure = folded_structure(net)
    assert net.training
    assert not structure.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(value.is_meta for value in net.state_dict().values())


def test_what_values_decide_is_as_in_a_fresh_network(warm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU())
    model += nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))  # whose shift zero padding does not pass
    structure = folded_structure(model, (3, 16, 16))
    assert [type(layer).__name__ for layer in structure] == ["Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d", "Conv2d"]
    warm(model)
    with torch.no_grad():
        model[2].weight.abs_()
    images = torch.randn(2, 3, 16, 16)
    assert layers(fold(model, images)) == layers(structure)
    with torch.no_grad():
        model[2].weight[1] = -1
    assert len(fold(model, images)) == len(structure) + 1


def test_a_network_with_branches_keeps_its_class():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = DiracConv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(x + self.norm(self.conv(x)))

    structure = folded_structure(Branched(), (3, 8, 8))
    assert type(structure) is Branched
    assert type(structure.norm) is nn.Identity
    assert structure.conv.bias.shape == (3,)


def test_refused():
    with pytest.raises(FoldError, match="give input_size"):
        folded_structure(nn.Conv2d(3, 4, 3))
    with pytest.raises(FoldError, match="cannot be run without values on images of 5x8x8"):
        folded_structure(nn.Conv2d(3, 4, 3), (5, 8, 8))


def test_shapes_alone_are_right():
    x, y = torch.empty(2, 3, 1, device="meta"), torch.empty(3, 5, device="meta")
    norm = nn.BatchNorm1d(3, device="meta").eval()
    images = torch.empty(2, 6, 9, 8, device="meta")
    functions = (
        *(lambda: norm(x), lambda: F.relu(x), lambda: x * y, lambda: y + 1.0, lambda: y.rsqrt(), lambda: -x),
        lambda: nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=2, groups=2, device="meta")(images),
        lambda: nn.Conv2d(6, 4, 3, padding="same", device="meta")(images),
        *(lambda: nn.Conv1d(3, 5, 1, device="meta")(x), lambda: nn.Linear(8, 3, device="meta")(images)),
        *(lambda: F.max_pool2d(images, 2), lambda: F.max_pool2d(images, (3, 2), 2, padding=1, dilation=2)),
        *(lambda: F.max_pool2d(images, 2, ceil_mode=True), lambda: F.adaptive_avg_pool2d(images, 1)),
        lambda: F.adaptive_avg_pool2d(images, (3, 1)),
    )
    for function in functions:
        with ShapesOnly():
            quick = function()
        assert (quick.shape, quick.dtype, quick.device) == (function().shape, function().dtype, function().device)
    values = torch.ones(2)
    with ShapesOnly():
        assert torch.equal(values * 2 + values, torch.full((2,), 3.0))
        for wrong in (
            lambda: nn.Conv2d(5, 4, 3, device="meta")(images),
            lambda: F.max_pool2d(images, 10),
            lambda: x * images,
        ):
            with pytest.raises(RuntimeError):
                wrong()
