"""Sprint: its maps shrink as its docstring says, it folds to a chain, and its width is in its name."""

import pytest
import torch
from torch import nn

from diracnets import create_model, fold
from diracnets.errors import UsageError


def test_the_maps_have_the_sizes_that_the_shape_is_chosen_for():
    net = create_model("diracnet-sprint-0.125")
    maps = [tuple(features.shape[1:]) for features in net.feature_maps(torch.randn(1, 3, 32, 32))]
    assert maps == [(8, 15, 15), (32, 7, 7), (32, 3, 3), (32, 3, 3)]


@pytest.mark.parametrize("family", ["diracnet", "plain"])
def test_it_folds_to_convolutions_relus_and_pooling(family, warm):
    net = warm(create_model(f"{family}-sprint-0.125", num_classes=7))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # as they are; what is negative could not pass the pooling
    chain = fold(net)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(chain(images), net(images), atol=1e-4, rtol=1e-4)
    kinds = [type(layer) for layer in chain]
    assert kinds.count(nn.Conv2d) == 8
    assert kinds.count(nn.ReLU) == 8
    assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize("init", ["paper", "deep"])
def test_batch_norms_have_shifts_alone_to_train(init):
    norms = [
        each for each in create_model("diracnet-sprint-0.125", init=init).modules() if hasattr(each, "running_var")
    ]
    assert len(norms) == 8
    for norm in norms:
        assert norm.weight.equal(torch.ones_like(norm.weight))
        assert (norm.weight.requires_grad, norm.bias.requires_grad) == (False, True)


def test_a_name_without_width_means_width_1():
    with torch.device("meta"):
        one, same = create_model("plain-sprint"), create_model("plain-sprint-1")
    assert {name: t.shape for name, t in one.state_dict().items()} == {n: t.shape for n, t in same.state_dict().items()}


def test_images_that_pooling_leaves_nothing_of_are_refused():
    assert create_model("plain-sprint-0.125", image_size=9).eval()(torch.randn(1, 3, 9, 9)).shape == (1, 10)
    with pytest.raises(UsageError, match="8x8"):
        create_model("plain-sprint", image_size=8)


@pytest.mark.parametrize(("channels", "width"), [(1, 1.0), (3, 1.0), (3, 0.25), (4, 2.0)])
def test_the_stem_starts_as_smooth_patterns_and_their_negatives(channels, width):
    weight = create_model(f"diracnet-sprint-{width}", in_channels=channels).stem.conv.weight.detach().flatten(1)
    signed = min(len(weight), 2 * 4 * channels)
    torch.testing.assert_close(weight[0:signed:2], -weight[1:signed:2])
    torch.testing.assert_close(weight[0], torch.full_like(weight[0], weight[0, 0].item()))
    gram = weight[0:signed:2] @ weight[0:signed:2].T
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-6, rtol=0)
