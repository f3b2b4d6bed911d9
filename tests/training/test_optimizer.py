import pytest
import torch
from torch import nn

from diracnets.artifacts.create import create_model
from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv2d
from diracnets.training.muon import Muon
from diracnets.training.optimizer import filters_of, make_optimizer
from diracnets.training.settings import OptimizationSettings


@pytest.mark.parametrize("scaled", [False, True])
def test_decays_convolutions_and_linear_weights_alone(scaled, warm_net):
    """A step without gradients but with decay shrinks exactly these."""
    before = {name: parameter.detach().clone() for name, parameter in warm_net.named_parameters()}
    for parameter in warm_net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(OptimizationSettings(lr=1.0, weight_decay=0.5, momentum=0.0), warm_net, scaled=scaled).step()
    for name, parameter in warm_net.named_parameters():
        decayed = name.endswith(("conv.weight", "fc.weight"))
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if decayed else 1.0))


def test_a_first_step_that_a_loss_scaler_leaves_out_leaves_no_trace(warm_net):
    optimizer, scaler = make_optimizer(OptimizationSettings(lr=1.0), warm_net, scaled=True), torch.amp.GradScaler("cpu")
    before = warm_net.fc.bias.detach().clone()
    for gradient in (float("inf"), 0.0):
        scaler.scale(torch.ones(()))
        for parameter in warm_net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.step(optimizer)
        scaler.update()
    assert warm_net.fc.bias.equal(before)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("scale_lr", [None, 0.0, 0.25])
@pytest.mark.parametrize(("stem_lr", "classifier_lr"), [(None, None), (None, 0.125), (0.0625, 0.125)])
def test_every_parameter_has_its_rate(optimizer, scale_lr, stem_lr, classifier_lr, warm_net):
    """Without momentum and decay, a step of gradients of 1 moves what is no filter by the rate."""
    rates = {"lr": 0.5, "scale_lr": scale_lr, "stem_lr": stem_lr, "classifier_lr": classifier_lr}
    optimization = OptimizationSettings(optimizer=optimizer, momentum=0.0, weight_decay=0.0, **rates)
    made = make_optimizer(optimization, warm_net)
    names = {id(parameter): name for name, parameter in warm_net.named_parameters()}
    listed = [names[id(parameter)] for group in made.param_groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names.values())
    before = {name: parameter.detach().clone() for name, parameter in warm_net.named_parameters()}
    for parameter in warm_net.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    for name, parameter in warm_net.named_parameters():
        if optimizer == "muon" and name.startswith("groups.") and name.endswith("conv.weight"):
            norms = (filters.detach().flatten(1).norm(dim=1) for filters in (parameter, before[name]))
            torch.testing.assert_close(*norms)
            assert not parameter.allclose(before[name])
            continue
        own = (
            scale_lr
            if name.endswith(("alpha", "beta"))
            else {"fc": classifier_lr, "stem": stem_lr}.get(name.split(".")[0])
        )
        expected = 0.5 if own is None else own
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, expected))


@pytest.mark.parametrize("classifier_lr", [None, 0.5])
def test_muon_decays_what_is_no_filter(classifier_lr, warm_net):
    optimization = OptimizationSettings(optimizer="muon", weight_decay=0.1, nesterov=True, classifier_lr=classifier_lr)
    made = make_optimizer(optimization, warm_net)
    assert isinstance(made, Muon)
    assert {(group["filters"], group["weight_decay"], group["nesterov"]) for group in made.param_groups} == {
        (True, 0.0, False),
        (False, 0.1, True),
        (False, 0.0, True),
    }
    decayed = [each for group in made.param_groups if group["weight_decay"] for each in group["params"]]
    assert [tuple(parameter.shape) for parameter in decayed] == [(4, 1, 3, 3), (3, 16)]  # stem and classifier


@pytest.mark.parametrize("name", ["diracnet-16-0.25", "plain-16-0.25", "diracnet-18"])
def test_filters_are_those_of_all_blocks(name):
    net = create_model(name, width=0.125) if name == "diracnet-18" else create_model(name)
    expected = [block.conv.weight for group in net.groups for block in group]
    assert len(filters_of(net)) == len(expected)
    assert all(one is other for one, other in zip(filters_of(net), expected, strict=True))


def test_pointwise_and_frozen_convolutions_are_not_turned_and_shared_filters_once():
    one, two, frozen = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3).requires_grad_(False)
    two.weight = one.weight
    net = nn.ModuleDict({"stem": nn.Conv2d(1, 2, 3), "a": one, "b": two, "c": nn.Conv2d(2, 4, 1), "d": frozen})
    assert [id(weight) for weight in filters_of(net)] == [id(one.weight)]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_shared_and_frozen_scales(optimizer):
    """What layers share takes one step, not two; what is frozen is in no group."""
    one, two = DiracConv2d(2, 2, 3, padding=1), DiracConv2d(2, 2, 3, padding=1)
    two.alpha, two.weight = one.alpha, one.weight
    two.beta.requires_grad_(False)
    made = make_optimizer(
        OptimizationSettings(optimizer=optimizer, scale_lr=0.25, momentum=0.0), nn.Sequential(one, two)
    )
    listed = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    assert sorted(listed) == sorted(map(id, (one.weight, one.alpha, one.beta, one.bias, two.bias)))
    for parameter in (one.alpha, one.beta):
        parameter.grad = torch.ones_like(parameter)
    made.step()
    torch.testing.assert_close(one.alpha.detach(), torch.full((2,), 0.75))


@pytest.mark.parametrize(
    ("optimization", "said"),
    [
        (OptimizationSettings(scale_lr=0.1), "no Dirac convolutions"),
        (OptimizationSettings(classifier_lr=0.1), "'fc', but it has none"),
        (OptimizationSettings(stem_lr=0.0), "'stem', but it has none"),
        (OptimizationSettings(optimizer="muon"), "take optimizer sgd"),
    ],
)
def test_a_network_that_has_no_such_parameters(optimization, said):
    with pytest.raises(UsageError, match=said):
        make_optimizer(optimization, nn.Linear(2, 2))
