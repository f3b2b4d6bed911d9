import pytest
import torch
from blocks import (
    ComposedDiracConv2d,
    DiverseBlock,
    NormAndPad,
    PairedBlock,
    composed_block,
    dirac_block,
    network_of,
)
from torch import nn

from diracnets import DiracConv2d
from diracnets.errors import UsageError
from diracnets.models.diracnet import DiracNet
from diracnets.models.initializer import paper
from diracnets.models.repvgg import RepBlock


def warmed(block, channels):
    """With random scales, and statistics of some images."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(4):
            block(torch.randn(16, channels, 6, 6) + 0.5)
    return block.eval().double()


def as_convolution(block, channels_in, channels_out):
    """The 3x3 convolution behind the ReLU that gives what the block gives, found with images of single pixels."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1).double()
    with torch.no_grad():
        nothing = block(torch.zeros(1, channels_in, 5, 5).double())
        conv.bias.copy_(nothing[0, :, 2, 2])
        for channel in range(channels_in):
            for row in range(3):
                for column in range(3):
                    pixel = torch.zeros(1, channels_in, 5, 5).double()
                    pixel[0, channel, row + 1, column + 1] = 1
                    conv.weight[:, channel, row, column] = (block(pixel) - nothing)[0, :, 2, 2]
    return conv


def rep_block(channels_in, channels_out):
    return RepBlock(channels_in, channels_out, paper(dirac=False, scale=1.0))


@pytest.mark.parametrize("channels", [(4, 4), (3, 5)])
@pytest.mark.parametrize("kind", [DiverseBlock, PairedBlock, dirac_block, composed_block, rep_block])
def test_a_block_is_one_convolution_after_training(kind, channels):
    torch.manual_seed(0)
    block = warmed(kind(*channels), channels[0])
    if isinstance(block, PairedBlock):
        block.slope = 1.0
    conv = as_convolution(block, *channels)
    images = torch.randn(4, channels[0], 7, 6).double()
    torch.testing.assert_close(block(images), conv(images.relu()))  # at the borders too


def test_a_pair_is_more_than_one_convolution_while_its_activation_is_there():
    torch.manual_seed(0)
    block = warmed(PairedBlock(4, 4), 4)
    images = torch.randn(4, 4, 6, 6).double()
    assert not torch.allclose(block(images), as_convolution(block, 4, 4)(images.relu()), atol=1e-3)


def test_the_composed_formula_is_the_same_weight_and_gradient():
    torch.manual_seed(0)
    composed = ComposedDiracConv2d(3, 5)
    ours = DiracConv2d(3, 5, 3, padding=1, bias=False)
    with torch.no_grad():
        composed.alpha.uniform_(0.5, 2)
        composed.beta.uniform_(0.5, 2)
    ours.load_state_dict({key: value for key, value in composed.state_dict().items() if key != "identity"})
    images = torch.randn(2, 3, 6, 6)
    for layer in (composed, ours):
        layer(images).square().sum().backward()
    for name in ("weight", "alpha", "beta"):
        torch.testing.assert_close(getattr(composed, name).grad, getattr(ours, name).grad, rtol=1e-4, atol=1e-4)


def test_the_border_is_made_by_statistics_that_have_to_be_there():
    with pytest.raises(UsageError, match="running statistics"):
        NormAndPad(2, track_running_stats=False)(torch.randn(2, 2, 3, 3))


@pytest.mark.parametrize("block", [DiverseBlock, PairedBlock, dirac_block, composed_block])
def test_networks_of_blocks_have_a_diracnets_shape(block):
    net = network_of(block, "16-0.25")
    assert [len(group) for group in net.groups] == [4, 4, 4]
    shapes = [list(maps.shape) for maps in net.feature_maps(torch.randn(2, 3, 32, 32))]
    assert shapes == [[2, 4, 32, 32], [2, 8, 16, 16], [2, 16, 8, 8]]
    assert not isinstance(net, DiracNet)


@pytest.mark.parametrize("block", [DiverseBlock, PairedBlock, dirac_block])
def test_networks_for_imagenets_images(block):
    with torch.device("meta"):
        net = network_of(block, "18")
        assert [len(group) for group in net.groups] == [4, 4, 4, 4]
        assert net.eval()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


@pytest.mark.parametrize(("size", "words"), [("28", "without a width"), ("17-1", "the depth must be")])
def test_sizes_that_there_are_not(size, words):
    with pytest.raises(UsageError, match=words):
        network_of(PairedBlock, size)
