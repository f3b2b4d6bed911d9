"""RepVGG's blocks: the formula, and DiracNet's shape."""

import pytest
import torch
from torch.nn import functional as F

from diracnets import create_model, fold
from diracnets.errors import UsageError
from diracnets.models.initializer import paper
from diracnets.models.repvgg import RepBlock, merged


@pytest.mark.parametrize("channels", [(4, 4), (4, 6)])
def test_a_block_adds_its_branches(channels, warm):
    block = warm(RepBlock(*channels, paper(dirac=False)))
    x = torch.randn(2, channels[0], 5, 5)
    expected = block.bn3(F.conv2d(x.relu(), block.conv3.weight, padding=1))
    expected = expected + block.bn1(F.conv2d(x.relu(), block.conv1.weight))
    if channels[0] == channels[1]:
        expected = expected + block.identity(x.relu())
    else:
        assert block.identity is None
    torch.testing.assert_close(block(x), expected)


def test_it_has_the_shape_of_a_diracnet():
    net, dirac = (create_model(f"{family}-16-0.25", image_size=16) for family in ("repvgg", "diracnet"))
    x = torch.randn(2, 3, 16, 16)
    assert [len(group) for group in net.groups] == [len(group) for group in dirac.groups] == [4, 4, 4]
    assert [y.shape for y in net.feature_maps(x)] == [y.shape for y in dirac.feature_maps(x)]
    assert [block.identity is None for group in net.groups for block in group] == [
        *[False] * 4,
        *[True, *[False] * 3] * 2,
    ]


@pytest.mark.parametrize(("name", "millions"), [("repvgg-a0", 8.3), ("repvgg-b0", 14.3)])
def test_the_published_sizes(name, millions):
    net = merged(create_model(name).eval())
    assert net.input_size == (3, 224, 224)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1e6 * millions, rel=0.005)


@pytest.mark.parametrize("name", ["repvgg-10-0.25", "repvgg-a0"])
def test_merged_branches_compute_the_same_and_fold_to_a_chain(name, warm):
    net = create_model(name, image_size=32, width=1.0 if name[7].isdigit() else 0.1, num_classes=5)
    net = warm(net).double()
    x = torch.randn(2, 3, 36, 36, dtype=torch.float64)
    chain = fold(merged(net))
    assert chain.fold_report.chain
    torch.testing.assert_close(chain(x), net(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(UsageError, match="training mode"):
        merged(net.train())
