"""Strided 1x1 convolutions: Dirac ones are computed safely, and of others that are not the user is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diracnets import diracify, fold
from diracnets.nn.dirac import DiracConv2d
from diracnets.nn.kernels import KernelWarning, has_unsafe_kernels, unsafe_convolutions


@pytest.fixture
def unsafe(monkeypatch):
    monkeypatch.setattr("diracnets.nn.kernels.has_unsafe_kernels", lambda: True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 6, 8, 9), (2, 6, 1, 1), (6, 8, 9)])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (3, "valid"), ((1, 2), 0), ((2, 1), 0), (2, 1), (1, 0)])
def test_a_dirac_1x1_convolution_of_any_stride_is_torchs(stride, padding, bias, groups, shape, dtype):
    layer = DiracConv2d(6, 12, 1, stride, padding, groups=groups, bias=bias, dtype=dtype)
    images = torch.randn(shape, dtype=dtype, requires_grad=True)
    kernel = layer.effective_weight().detach()
    ours, truth = layer(images), F.conv2d(images, kernel, layer.bias, stride, padding, 1, groups)
    tolerance = {"rtol": 1.6e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(ours, truth, **tolerance)
    ahead = torch.randn_like(truth)
    torch.testing.assert_close(*(torch.autograd.grad(y, images, ahead)[0] for y in (ours, truth)), **tolerance)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_padding_before_a_strided_1x1_convolution_stays(mode):
    layer = DiracConv2d(3, 4, 1, 2, 1, padding_mode=mode)
    images = torch.randn(2, 3, 6, 6)
    padded = F.pad(images, (1, 1, 1, 1), mode)
    torch.testing.assert_close(layer(images), F.conv2d(padded, layer.effective_weight(), layer.bias, 2))


@pytest.mark.parametrize("channels", [(1, 2), (2, 4), (4, 8), (6, 12), (3, 17)])
def test_narrow_strided_1x1_convolutions_have_right_gradients_in_channels_last(channels):
    layer = DiracConv2d(*channels, 1, 2)
    truth = DiracConv2d(*channels, 1, 2).double()
    truth.load_state_dict(layer.state_dict())
    images = torch.randn(3, channels[0], 16, 16)
    for net in (layer, truth):
        x = images.to(net.weight.dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(20):  # what is written outside of its memory, the allocator may notice
            net.zero_grad()
            net(x).square().mean().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), truth.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "most", "expected"),
    [
        ("AVX2", None, True),
        ("AVX2", "DEFAULT", True),
        ("AVX2", "AVX512_CORE", True),
        ("AVX2", "AVX", False),
        ("AVX2", "sse41", False),
        ("AVX512", None, False),
        ("AVX512", "AVX2", True),
        ("AVX512", "avx2_vnni_2", True),
        ("AVX512", "AVX512_CORE_BF16", False),
        ("DEFAULT", None, False),
    ],
)
def test_the_processor_and_the_environment_tell_which_kernels_are_used(capability, most, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if most:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert has_unsafe_kernels() is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_unsafe_kernels()


@pytest.mark.parametrize(
    ("conv", "named"),
    [
        (nn.Conv2d(4, 8, 1, 2), True),
        (nn.Conv2d(7, 3, 1, (1, 2), padding="valid"), True),
        (type("Sub", (nn.Conv2d,), {})(1, 3, 1, 2), True),
        (nn.Conv2d(8, 16, 1, 2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 1, 2, padding=1), False),
        (nn.Conv2d(4, 8, (1, 3), 2), False),
        (nn.Conv2d(4, 8, 1, 2, groups=2), False),
        (DiracConv2d(4, 8, 1, 2), False),
        (nn.Conv1d(4, 8, 1, 2), False),
    ],
)
def test_the_convolutions_that_are_not_safe_are_named(conv, named, unsafe):
    assert unsafe_convolutions(nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), conv)})) == (["a.1"] if named else [])


def test_nothing_is_named_where_the_kernels_are_safe(monkeypatch):
    monkeypatch.setattr("diracnets.nn.kernels.has_unsafe_kernels", lambda: False)
    assert unsafe_convolutions(nn.Conv2d(4, 8, 1, 2)) == []


def test_diracify_mends_them_and_warns_of_those_it_leaves(unsafe):
    net = nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.Conv2d(8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diracify(net)
    with pytest.warns(KernelWarning, match=r"training '0' can crash .* ONEDNN_MAX_CPU_ISA=AVX ") as told:
        diracify(net, where=["1"])
    assert told[0].filename == __file__


def test_fold_warns_of_those_that_it_makes(unsafe):
    net, _ = diracify(nn.Sequential(nn.Conv2d(4, 8, 1, 2)))
    with pytest.warns(KernelWarning, match="training '0'") as told:
        fold(net.eval(), torch.randn(2, 4, 6, 6))
    assert told[0].filename == __file__
