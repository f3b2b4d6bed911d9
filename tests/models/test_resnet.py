"""Residual networks: the published sizes, what a block computes, and that bottlenecks fold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diracnets import create_model, fold, list_models
from diracnets.models.build import on_meta
from diracnets.models.initializer import deep, paper
from diracnets.models.resnet import PostActivation, PreActivation, subsampling
from diracnets.nn.dirac import DiracConv2d

EXACT = {  # as in other implementations of the same layouts
    ("wrn-28-10", 10): 36_479_194,
    ("wrn-28-10", 100): 36_536_884,
    ("wrn-16-8", 10): 10_961_370,
    ("wrn-40-4", 10): 8_949_210,
    ("resnet-20", 10): 272_282,
    ("resnet-110", 10): 1_730_522,
    ("resnet-164", 10): 1_703_258,
    ("resnet-1001", 10): 10_327_706,
    ("resnet-18", 1000): 11_689_512,
    ("resnet-34", 1000): 21_797_672,
}
PAPERS = {"wrn-28-10": 36.5, "wrn-16-8": 11.0, "wrn-40-4": 8.9, "resnet-164": 1.7, "resnet-1001": 10.2}  # millions


@pytest.mark.parametrize(("name", "classes"), EXACT)
def test_parameter_counts_are_the_published_ones(name, classes):
    net = on_meta({"name": name, "num_classes": classes})
    assert sum(parameter.numel() for parameter in net.parameters()) == EXACT[name, classes]
    if name in PAPERS:  # the papers count the weights of convolutions and classifier
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert round(sum(layer.weight.numel() for layer in layers) / 1e6, 1) == PAPERS[name]


@pytest.mark.parametrize("name", ["wrn-28-10", "resnet-20", "resnet-164", "resnet-18"])
def test_all_convolutions_but_the_stem_can_be_dirac_ones(name):
    net, dirac = (on_meta({"name": prefix + name}) for prefix in ("", "dirac-"))
    made = [key for key, layer in dirac.named_modules() if isinstance(layer, DiracConv2d)]
    assert made == [key for key, layer in net.named_modules() if isinstance(layer, nn.Conv2d)][1:]
    scales = sum(2 * dirac.get_submodule(key).out_channels for key in made)
    count, plain = (sum(parameter.numel() for parameter in both.parameters()) for both in (dirac, net))
    assert count == plain + scales


@pytest.mark.parametrize("name", ["resnet-20", "resnet-110", "resnet-164", "resnet-1001", "resnet-18", "resnet-34"])
def test_depths_are_weight_layers_without_those_on_shortcuts(name):
    net = on_meta({"name": name})
    layers = [key for key, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert sum("shortcut" not in key for key in layers) == int(name.removeprefix("resnet-"))


def test_the_depth_of_a_wide_resnet_counts_its_shortcuts_but_not_its_classifier():
    net = on_meta({"name": "wrn-28-10"})
    assert sum(isinstance(layer, nn.Conv2d) for layer in net.modules()) == 28


@pytest.mark.parametrize("dirac", [False, True])
@pytest.mark.parametrize(("channels", "sizes", "stride"), [((4, 6, 6), (3, 3), 2), ((8, 2, 2, 8), (1, 3, 1), 1)])
def test_a_pre_activation_block_is_the_papers(channels, sizes, stride, dirac, warm):
    block = warm(PreActivation(channels, sizes, stride, paper(dirac))).double()
    weights = [
        conv.effective_weight() if dirac else conv.weight for conv in block.modules() if isinstance(conv, nn.Conv2d)
    ]
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    x = torch.randn(2, channels[0], 7, 7, dtype=torch.float64)
    y = activated = norms[0](x).relu()
    for index, (size, weight) in enumerate(zip(sizes, weights, strict=False)):
        y = norms[index](y).relu() if index else y
        y = F.conv2d(y, weight, padding=size // 2, stride=stride if size == 3 and index == sizes.index(3) else 1)
    changes = stride != 1 or channels[0] != channels[-1]
    shortcut = F.conv2d(activated, weights[-1], stride=stride) if changes else x
    assert len(weights) == len(sizes) + changes
    torch.testing.assert_close(block(x), y + shortcut)


@pytest.mark.parametrize(("channels", "stride"), [((4, 6), 2), ((5, 5), 1)])
def test_a_block_of_resnet_18_is_the_papers(channels, stride, warm):
    block = warm(PostActivation(*channels, stride, paper(dirac=False)))
    x = torch.randn(2, channels[0], 7, 7)
    y = block.bn1(F.conv2d(x, block.conv1.weight, padding=1, stride=stride)).relu()
    y = block.bn2(F.conv2d(y, block.conv2.weight, padding=1))
    changes = channels[0] != channels[1]
    shortcut = block.shortcut.bn(F.conv2d(x, block.shortcut.conv.weight, stride=stride)) if changes else x
    torch.testing.assert_close(block(x), (y + shortcut).relu())


@pytest.mark.parametrize("dirac", [False, True])
def test_a_bottleneck_folds_what_follows_its_convolutions(dirac, warm):
    block = warm(PreActivation((6, 2, 2, 8), (1, 3, 1), 2, deep(54, dirac)))
    report = fold(block, torch.randn(2, 6, 8, 8)).fold_report
    assert list(report.left) == ["before.bn"]
    assert report.max_rel_float64 < 1e-12
    assert sum(entry.kind == "batch norm" for entry in report.folded) == 2


@pytest.mark.parametrize("name", ["wrn-16-1", "wrn-16-0.5", "resnet-20"])
def test_groups_halve_the_image_and_the_stem_is_never_wider(name):
    net = create_model(name)
    sizes = [tuple(features.shape[2:]) for features in net.feature_maps(torch.randn(1, 3, 20, 18))]
    assert sizes == [(20, 18), (10, 9), (5, 5)]
    first = 8 if name == "wrn-16-0.5" else 16
    assert net.stem.conv.out_channels == first


@pytest.mark.parametrize("name", [name for name in list_models() if not name.endswith(("-400-1", "-1000-1", "-1001"))])
def test_no_network_has_a_strided_1x1_convolution(name):
    """Their gradients corrupt memory on processors without AVX-512."""
    net = on_meta({"name": name})
    convs = [conv for conv in net.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1)]
    assert all(conv.stride == (1, 1) for conv in convs)


def test_the_names_of_a_shortcuts_weights_stay():
    before, after = PreActivation((4, 6, 6), (3, 3), 2, paper(False)), PostActivation(4, 6, 2, paper(False))
    assert [key for key in before.state_dict() if "shortcut" in key] == ["shortcut.weight"]
    assert {key.rpartition(".")[0] for key in after.state_dict() if "shortcut" in key} == {
        "shortcut.conv",
        "shortcut.bn",
    }


@pytest.mark.parametrize("dirac", [False, True])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [6, 7])
def test_a_shortcuts_gradients_are_those_of_a_strided_convolution(size, stride, dirac):
    conv = paper(dirac).conv(3, 5, size=1).double()
    weight = conv.effective_weight() if dirac else conv.weight
    images = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    ours, strided = conv(subsampling(stride)(images)), F.conv2d(images, weight, stride=stride)
    torch.testing.assert_close(ours, strided)
    ahead, wanted = torch.randn_like(ours), (images, conv.weight)
    torch.testing.assert_close(*(torch.autograd.grad(y, wanted, ahead, retain_graph=True) for y in (ours, strided)))


@pytest.mark.parametrize("name", ["wrn-10-0.25", "dirac-wrn-10-0.25", "resnet-8"])
def test_narrow_networks_train_in_channels_last(name):
    net = create_model(name).to(memory_format=torch.channels_last)
    for _ in range(20):
        net(torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
