"""diracify and undiracify on models of many shapes, and which parameters are decayed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d, parameter_groups
from diracnets.nn.diracify import diracify, undiracify

CASES = {
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 5, padding="same"), nn.ReLU(), nn.Conv1d(4, 4, 3)), (2, 2, 12)),
    "2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)),
        (2, 3, 9, 9),
    ),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect")), (2, 4, 6, 6)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Conv3d(2, 2, 3, dilation=2)), (1, 1, 8, 8, 8)),
    "alone": (lambda: nn.Conv2d(3, 5, 3), (1, 3, 6, 6)),
}


class UNet(nn.Module):
    """Two levels, a skip, an up-convolution, a convolution used twice, and a parametrized one."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.normed = parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.pruned = prune.random_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5)
        self.lazy = nn.LazyConv2d(8, 1)
        self.own = OwnConv(8, 8, 1)
        self.same = self.twice

    def forward(self, x):
        x = self.down(x)
        y = self.up(self.twice(nn.functional.max_pool2d(x, 2)))
        return self.own(self.pruned(self.normed(self.same(x) + y)))


class OwnConv(nn.Conv2d):
    """A subclass that diracify cannot know."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_preserve_keeps_the_function(case, dtype):
    make, shape = CASES[case]
    model = make().to(dtype).eval()
    x = torch.randn(shape, dtype=dtype)
    dirac, report = diracify(model, preserve=True)
    assert len(report.converted) == sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    assert not report.left
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(dirac(x), model(x), rtol=tolerance, atol=tolerance)
    back = undiracify(dirac)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert back.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(back.state_dict(), model.state_dict(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_start_is_the_papers(case):
    model, _ = diracify(CASES[case][0](), alpha=0.5, beta=0.2)
    for layer in model.modules():
        if isinstance(layer, DiracConv1d | DiracConv2d | DiracConv3d):
            assert (layer.alpha == 0.5).all()
            assert (layer.beta == torch.tensor(0.2)).all()
            assert layer.weight.abs().max() > 0.7  # N(0, 1), not the small weights that were there


def test_left_layers_are_named_with_their_reason():
    with pytest.raises(UsageError, match="inplace=True"):  # pruned tensors refuse to be copied
        diracify(UNet())
    dirac, report = diracify(UNet(), inplace=True)
    assert report.converted == ("down", "twice")
    assert dirac.same is dirac.twice
    assert set(report.left) == {"up", "normed", "pruned", "lazy", "own"}
    assert "transposed" in report.left["up"]
    assert "lazy" in report.left["lazy"]
    assert "OwnConv" in report.left["own"]
    assert "another parameterization" in report.left["normed"]
    assert "another parameterization" in report.left["pruned"]
    assert "left own: is of an unknown subclass" in str(report)
    assert dirac(torch.randn(1, 3, 8, 8)).shape == (1, 8, 8, 8)
    before = dirac.down.weight.clone()
    again, report = diracify(dirac, inplace=True)
    assert report.converted == ()
    assert report.left["down"] == "is a Dirac convolution already"
    assert torch.equal(again.down.weight, before)


def test_a_copy_leaves_the_model_alone():
    model = CASES["2d"][0]()
    before = copy.deepcopy(model.state_dict())
    dirac, _ = diracify(model)
    assert type(model[0]) is nn.Conv2d
    assert type(dirac[0]) is DiracConv2d
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    undone = undiracify(dirac)
    assert type(dirac[0]) is DiracConv2d
    assert type(undone[0]) is nn.Conv2d


def test_in_place_keeps_layers_hooks_and_flags():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.bfloat16), nn.Conv2d(4, 4, 3, dtype=torch.bfloat16)).eval()
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    first, weight = model[0], model[0].weight
    dirac, _ = diracify(model, inplace=True)
    assert dirac is model
    assert model[0] is first
    assert model[0].weight is weight
    assert not model[0].training
    assert not model[0].alpha.requires_grad
    assert model[1].beta.requires_grad
    assert model[0].beta.dtype == torch.bfloat16
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    model(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
    assert calls == [1]
    assert undiracify(model, inplace=True)[0] is first
    assert model[0].weight is weight


def test_layers_are_chosen_by_name_or_predicate():
    make = CASES["2d"][0]
    _, report = diracify(make(), ["2"])
    assert (report.converted, report.left) == (("2",), {"0": "was not chosen"})
    _, report = diracify(make(), lambda name, layer: layer.groups == 3)
    assert report.converted == ("0",)
    with pytest.raises(UsageError, match=r"no convolution called 'downs'; did you mean down\?"):
        diracify(UNet(), ["downs"])
    with pytest.raises(UsageError, match="leave beta and init out"):
        diracify(make(), preserve=True, beta=0.5)
    model = make()
    with pytest.raises(UsageError, match="init"):
        diracify(model, inplace=True, init="other")
    assert type(model[0]) is nn.Conv2d


def test_tied_weights():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(1, 4, 8, 8)
    dirac, report = diracify(model, preserve=True)
    assert report.converted == ("0", "1")
    assert dirac[0].alpha is dirac[1].alpha
    torch.testing.assert_close(dirac(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(undiracify(dirac)(x), model(x), rtol=1e-5, atol=1e-5)
    _, report = diracify(model, ["0"])
    assert "shares its weight with 1" in report.left["0"]
    assert report.converted == ()


def test_tied_weights_with_scales_of_their_own_cannot_be_undone():
    model = nn.Sequential(DiracConv2d(4, 4, 3), DiracConv2d(4, 4, 3))
    model[1].weight = model[0].weight
    with pytest.raises(UsageError, match="'0' and '1' share their weight but not alpha, beta and groups"):
        undiracify(model)


def test_a_filter_that_is_the_identity_can_still_learn():
    model = nn.Conv2d(4, 4, 3, padding=1)
    nn.init.dirac_(model.weight)
    dirac, _ = diracify(model, preserve=True)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(dirac(x), model(x))
    dirac(x).square().sum().backward()
    assert dirac.beta.grad.abs().min() > 0


def test_only_the_weights_of_convolutions_and_linear_layers_are_decayed():
    net = nn.Sequential(
        DiracConv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    net(torch.randn(2, 3, 6, 6))
    net[3].bias.requires_grad_(False)
    net.append(net[5])
    decayed, rest = parameter_groups(net, 1e-3)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(net[i].weight) for i in (0, 3, 5)]
    expected = [net[0].bias, net[0].alpha, net[0].beta, net[1].weight, net[1].bias, net[2].weight, net[5].bias]
    assert {id(p) for p in rest["params"]} == {id(p) for p in expected}
    assert len(rest["params"]) == len(expected)
