import copy

import pytest
import torch
from torch import nn

from diracnets.artifacts.create import create_model
from diracnets.nn.dirac import DiracConv2d
from diracnets.training.muon import Muon, _by_steps, orthogonalized
from diracnets.training.optimizer import filters_of, make_optimizer
from diracnets.training.settings import OptimizationSettings


@pytest.mark.parametrize("shape", [(3, 4, 36), (2, 32, 16), (1, 16, 16), (1, 1, 9)])
def test_directions_stay_and_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 1e-3
    found = orthogonalized(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ found @ right.mT  # diagonal, where the singular vectors are the same
    diagonal = turned.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(turned, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
    large = values > 0.05 * values.amax(1, keepdim=True)
    assert ((diagonal > 0.5) & (diagonal < 1.3))[large].all()


@pytest.mark.parametrize("shape", [(1, 64, 576), (2, 32, 16)])
def test_small_singular_values_are_not_lost_in_the_rounding_of_their_squares(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrices = left * torch.logspace(0, -6, min(shape[1:]), dtype=torch.float64) @ right
    exact, found = orthogonalized(matrices), orthogonalized(matrices.float())
    assert (found - exact).norm() < 1e-3 * exact.norm()
    classic = matrices / torch.linalg.matrix_norm(matrices, keepdim=True)
    for _ in range(5):
        square = classic @ classic.mT
        classic = 3.4445 * classic - 4.775 * square @ classic + 2.0315 * square @ square @ classic
    torch.testing.assert_close(exact, classic)
    torch.testing.assert_close(_by_steps(matrices / torch.linalg.matrix_norm(matrices, keepdim=True)), classic)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_imprecise_products_that_were_asked_for_spoil_nothing(precision, dtype):
    torch.manual_seed(0)
    matrices = (torch.randn(1, 64, 8) @ torch.randn(1, 8, 576)).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = orthogonalized(matrices)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.dtype == dtype
    assert torch.linalg.svdvals(found.float()).max() < 1.3


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("rows", [127, 128])
def test_bfloat16_is_for_large_float32_matrices_where_it_is_fast(rows, amx, monkeypatch):
    monkeypatch.setattr("diracnets.training.muon.instructions", lambda: {"amx_bf16"} if amx else {"avx512_bf16"})
    torch.manual_seed(0)
    matrices = torch.randn(2, 256, rows)
    found, exact = orthogonalized(matrices), orthogonalized(matrices.double())
    assert found.dtype == torch.float32
    error = ((found - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < 0.05 if amx and rows == 128 else error < 1e-4
    values = torch.linalg.svdvals(found)
    assert ((values > 0.6) & (values < 1.3)).all()


def test_each_matrix_of_a_batch_is_treated_alone():
    torch.manual_seed(0)
    matrices = torch.randn(5, 6, 20)
    together = orthogonalized(matrices)
    torch.testing.assert_close(together, torch.cat([orthogonalized(matrix[None]) for matrix in matrices]))


def test_no_gradient_gives_no_direction():
    assert orthogonalized(torch.zeros(1, 3, 9)).equal(torch.zeros(1, 3, 9))


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (32, 2, 3, 3), (8, 4, 3)])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_step_turns_filters_by_about_the_rate_and_keeps_their_norm(shape, rate):
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(shape) * 7)
    optimizer = Muon([{"params": [filters], "filters": True, "lr": rate, "momentum": 0.0}])
    before = filters.detach().flatten(1).clone()
    filters.grad = torch.randn(shape) * 1e-6
    optimizer.step()
    after = filters.detach().flatten(1)
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    angles = nn.functional.cosine_similarity(before, after).clamp(max=1).acos()
    assert rate / 2 < angles.square().mean().sqrt() < 1.3 * rate


def test_norms_stay_through_many_steps():
    torch.manual_seed(0)
    scales = torch.logspace(-4, 4, 6).view(6, 1, 1, 1)
    filters = nn.Parameter(torch.randn(6, 4, 3, 3) * scales)
    optimizer = Muon([{"params": [filters], "filters": True, "lr": 0.3, "momentum": 0.9}])
    before = filters.detach().clone()
    for _ in range(1000):
        filters.grad = torch.randn_like(filters) / scales  # as of a function to which only directions count
        optimizer.step()
    after, first = (each.detach().flatten(1).norm(dim=1) for each in (filters, before))
    torch.testing.assert_close(after, first, rtol=1e-6, atol=0)
    assert nn.functional.cosine_similarity(filters.detach().flatten(1), before.flatten(1)).abs().max() < 0.9


@pytest.mark.parametrize("kind", [DiracConv2d, nn.Conv2d])
def test_directions_take_the_same_path_whatever_the_norms_are(kind):
    torch.manual_seed(0)
    layer, norm = kind(4, 6, 3, bias=False), nn.BatchNorm2d(6, eps=1e-12)
    nets = [nn.Sequential(*copy.deepcopy((layer, norm))) for _ in range(2)]
    unit = nn.functional.normalize(layer.weight.detach().flatten(1)).view_as(layer.weight)
    with torch.no_grad():
        nets[0][0].weight.copy_(unit)
        nets[1][0].weight.copy_(unit * torch.logspace(-2, 2, 6).view(6, 1, 1, 1))
    optimizers = [Muon([{"params": [net[0].weight], "filters": True, "lr": 0.1, "momentum": 0.6}]) for net in nets]
    images, wanted = torch.randn(16, 4, 6, 6), torch.randn(16, 6, 4, 4)
    for _ in range(5):
        for net, optimizer in zip(nets, optimizers, strict=True):
            net.zero_grad()
            (net(images) * wanted).mean().backward()
            optimizer.step()
    one, other = (nn.functional.normalize(net[0].weight.detach().flatten(1)) for net in nets)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert not one.allclose(unit.flatten(1), atol=0.1)


def test_steps_go_down():
    torch.manual_seed(0)
    layer, images, wanted = nn.Conv2d(3, 6, 3), torch.randn(16, 3, 6, 6), torch.randn(16, 6, 4, 4)
    optimizer = Muon([{"params": [layer.weight], "filters": True, "lr": 0.02, "momentum": 0.6}])
    losses = []
    for _ in range(30):
        loss = -(layer(images) * wanted).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_what_is_no_filter_takes_the_steps_of_sgd(nesterov, momentum, weight_decay):
    if nesterov and not momentum:
        pytest.skip("SGD has no such thing")
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    other = copy.deepcopy(layer)
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    for optimizer, model in (
        (Muon([{"params": layer.parameters(), **settings}]), layer),
        (torch.optim.SGD(other.parameters(), **settings), other),
    ):
        for step in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, step + 0.5)
            optimizer.step()
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layers_of_one_shape_are_turned_as_each_alone(memory_format):
    torch.manual_seed(0)
    one, two = (nn.Parameter(torch.randn(4, 4, 3, 3).to(memory_format=memory_format)) for _ in range(2))
    alone = nn.Parameter(two.detach().clone())
    gradients = torch.randn(2, 4, 4, 3, 3)
    settings = {"filters": True, "lr": 0.1, "momentum": 0.5}
    together, single = Muon([{"params": [one, two], **settings}]), Muon([{"params": [alone], **settings}])
    one.grad, two.grad, alone.grad = gradients[0], gradients[1], gradients[1].clone()
    for _ in range(2):
        together.step()
        single.step()
    torch.testing.assert_close(two.detach(), alone.detach())
    assert two.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_filters_without_direction_and_layers_without_gradient_stay(gradient, dtype):
    filters = nn.Parameter((torch.ones(3, 2, 3, 3) * torch.tensor([0.0, 1e-13, 1.0]).view(3, 1, 1, 1)).to(dtype))
    idle = nn.Parameter(torch.ones(2, 2, 3, 3))
    optimizer = Muon([{"params": [filters, idle], "filters": True, "lr": 0.1, "momentum": 0.5}])
    before, of_idle = filters.detach().clone(), idle.detach().clone()
    torch.manual_seed(0)
    filters.grad = gradient * torch.randn_like(filters)
    optimizer.step()
    assert filters[:2].equal(before[:2])
    assert filters.isfinite().all()
    assert filters[2].allclose(before[2], rtol=1e-3) == (gradient == 0)
    assert idle.equal(of_idle)


def test_a_trained_network_with_branches_is_taken_as_it_is(warm):
    net = warm(create_model("wrn-10-0.25", num_classes=3, in_channels=1, image_size=8))
    before, images = copy.deepcopy(net), torch.randn(4, 1, 8, 8)
    assert filters_of(net)
    optimizer = make_optimizer(OptimizationSettings(optimizer="muon"), net)
    assert net(images).equal(before(images))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for one, other in zip(filters_of(net), filters_of(before), strict=True):
        torch.testing.assert_close(one.detach().flatten(1).norm(dim=1), other.detach().flatten(1).norm(dim=1))
        assert not one.allclose(other)


def test_a_group_without_rate_is_refused():
    with pytest.raises(ValueError, match="lr"):
        Muon([{"params": [nn.Parameter(torch.ones(2, 2, 3, 3))], "filters": True, "momentum": 0.9}])


def test_the_state_goes_into_a_file_and_back():
    def make():
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(5))]
        groups = [{"params": [parameters[0]], "filters": True}, {"params": [parameters[1]], "nesterov": True}]
        return parameters, Muon([{"lr": 0.1, "momentum": 0.9, **group} for group in groups])

    def step(parameters, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    parameters, optimizer = make()
    step(parameters, optimizer, 1)
    again, resumed = make()
    for parameter, saved in zip(again, parameters, strict=True):
        parameter.data.copy_(saved)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(parameters, optimizer, 2)
    step(again, resumed, 2)
    assert all(one.equal(other) for one, other in zip(parameters, again, strict=True))


def test_the_order_of_memory_does_not_matter():
    start, gradients = torch.randn(6, 4, 3, 3), [torch.randn(6, 4, 3, 3) for _ in range(3)]
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        filters = nn.Parameter(start.clone(memory_format=memory_format))
        optimizer = Muon([{"params": [filters], "filters": True, "lr": 0.1, "momentum": 0.6}])
        for gradient in gradients:
            filters.grad = gradient.clone(memory_format=memory_format)
            optimizer.step()
        found.append(filters.detach())
    assert not found[0].allclose(start)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
