import pytest
import torch
from torch import nn

from diracnets import DiracConv2d
from diracnets.nn import small_maps


def conv(channels_in=64, channels_out=80, size=3, **arguments):
    return DiracConv2d(channels_in, channels_out, size, **{"padding": size // 2, "bias": False, **arguments})


def images(side=2, channels=64, **arguments):
    return torch.randn(6, channels, side, side + 1, **arguments).contiguous(memory_format=torch.channels_last)


def gradients(layer, x, seed=0):
    """The output, and the gradients of the input and of the filters, in bfloat16 autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    random = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    return out.detach(), *torch.autograd.grad((out.float() * random).sum(), [x, *layer.parameters()])


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 1, 2, 3), (2, 3, 1, 0)])
def test_training_computes_what_torch_does(size, order, monkeypatch):
    """Whatever the order of the images' axes in memory."""
    back = [order.index(axis) for axis in range(4)]
    layer, x = conv(size=size), images(1).permute(order).contiguous().permute(back)
    taken = []
    convolve = small_maps.convolve
    monkeypatch.setattr(small_maps, "convolve", lambda *given: taken.append(given) or convolve(*given))
    ours = gradients(layer, x)
    assert taken
    monkeypatch.setattr(small_maps, "suits", lambda *given: False)
    theirs = gradients(layer, x)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=0.01 * other.abs().max().item(), rtol=0.02)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (2, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (5, 1), (5, 7)])
def test_gradient_of_filters_in_float64(kernel, size):
    x, weight = torch.randn(4, 3, *size).double(), torch.randn(7, 3, *kernel).double().requires_grad_()
    out = nn.functional.conv2d(x, weight, padding="same")
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(small_maps.filters_gradient(x, grad, kernel), expected)


def test_second_derivatives(monkeypatch):
    layer, x = conv().bfloat16(), images().bfloat16()

    def twice():
        out = layer(x)
        (first,) = torch.autograd.grad(out.float().square().mean(), layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.float().square().sum(), layer.weight)
        return type(out.grad_fn).__name__, second

    name, ours = twice()
    monkeypatch.setattr(small_maps, "suits", lambda *given: False)
    other_name, theirs = twice()
    assert name != other_name
    torch.testing.assert_close(ours, theirs, atol=0.02 * theirs.abs().max().item(), rtol=0.05)


def suited(layer, x):
    return small_maps.suits(layer, x, layer.effective_weight())


def test_suits_many_channels_over_small_maps_in_bfloat16():
    layer, x = conv().bfloat16(), images().bfloat16()
    assert suited(layer, x)
    assert suited(conv(padding="same").bfloat16(), x)
    assert suited(layer, images(7).bfloat16())  # of 7x8 pixels, and 64 channels
    assert not suited(layer, images(8).bfloat16())
    assert not suited(conv(), x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert suited(conv(), x.float())
    with torch.autocast("cpu", torch.float16):
        assert not suited(conv(), x.float())
    with torch.no_grad():
        assert not suited(layer, x)
    assert not small_maps.suits(layer, x, layer.effective_weight().detach())


@pytest.mark.parametrize(
    "arguments",
    [
        {"bias": True},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": 0},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"size": 2, "padding": 1},
    ],
)
def test_other_convolutions_are_left_to_torch(arguments):
    assert not suited(conv(**arguments).bfloat16(), images().bfloat16())


def test_functional_transforms_go_another_way():
    layer = conv().bfloat16()
    x = images().bfloat16()
    parameters = dict(layer.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).float().square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    torch.testing.assert_close(found["weight"], layer.weight.grad, atol=0.02, rtol=0.05)


def test_batches_of_one_and_of_none():
    layer = conv().bfloat16()
    for count in (1, 0):
        x = images()[:count].bfloat16().requires_grad_()
        layer.zero_grad()
        layer(x).float().sum().backward()
        assert x.grad.shape == x.shape
        assert layer.weight.grad.any() == (count > 0)


def test_dtypes_that_autocast_leaves_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert conv().double()(images().double()).dtype == torch.float64
        with pytest.raises(RuntimeError, match="Long"):
            conv()(images().long())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # of torch's own forward mode
def test_forward_mode():
    layer, x = conv().bfloat16(), images().bfloat16()
    with torch.autograd.forward_ad.dual_level():
        out = layer(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        found = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(found, layer(torch.ones_like(x)), atol=0.01, rtol=0.02)


def test_gradients_of_a_batch_at_once():
    layer, x = conv().bfloat16(), images().bfloat16().requires_grad_()
    out = layer(x)
    several = torch.randn(2, *out.shape).bfloat16()
    (together,) = torch.autograd.grad(out, x, several, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in several]
    torch.testing.assert_close(together, torch.stack(alone), atol=0.02, rtol=0.02)
