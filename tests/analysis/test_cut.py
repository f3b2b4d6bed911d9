import pytest
import torch
from torch import nn

from diracnets import create_model, fold
from diracnets.analysis.cut import candidates, output_statistics, settle, without
from diracnets.errors import UsageError


def conv(channels_in, channels_out, **options):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, **options)


@pytest.fixture
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def chain():
    """Three layers behind a stem, pooling before the third; the second scales and shifts its channels only."""
    torch.manual_seed(0)
    made = nn.Sequential(
        conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), conv(4, 4), nn.MaxPool2d(2), nn.ReLU(), conv(4, 4), nn.Flatten()
    )
    with torch.no_grad():
        nn.init.dirac_(made[4].weight)
        made[4].weight *= torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None, None]
        made[4].bias.copy_(torch.tensor([-0.5, 0.0, 0.3, 1.0]))
        made[2].bias.fill_(6.0)  # nothing is negative before the second layer
    return made.eval()


def test_a_layer_that_is_a_line_is_taken_out_without_any_change(chain, images):
    first = candidates(chain, images)[0]
    assert (first.layer, first.relu, first.before) == ("4", "3", "2")
    assert first.explained == pytest.approx(1, abs=1e-6)
    shorter = without(chain, first)
    assert [name for name, _ in shorter.named_children()] == ["0", "1", "2", "5", "6", "7", "8"]
    torch.testing.assert_close(shorter(images), chain(images), rtol=1e-4, atol=1e-4)


def test_the_line_goes_through_max_pooling(images):
    torch.manual_seed(0)
    chain = nn.Sequential(conv(3, 4, bias=False), nn.MaxPool2d(2), nn.ReLU(), conv(4, 4)).eval()
    with torch.no_grad():
        nn.init.dirac_(chain[3].weight)
        chain[0].weight.abs_()
    (only,) = candidates(chain, images.abs())
    assert only.explained == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(without(chain, only)(images.abs()), chain(images.abs()), rtol=1e-4, atol=1e-4)


def test_a_relu_in_place_changes_nothing(images):
    torch.manual_seed(0)
    chains = [nn.Sequential(conv(3, 4), nn.ReLU(inplace=inplace), conv(4, 4)) for inplace in (False, True)]
    chains[1].load_state_dict(chains[0].state_dict())
    first, second = (candidates(chain, images)[0].explained for chain in chains)
    assert first == pytest.approx(second)


def test_candidates_come_nearest_first_and_the_chain_stays(chain, images):
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    found = candidates(chain, images)
    assert found[0].layer == "4"
    assert {candidate.layer for candidate in found} == {"2", "4", "7"}
    explained = [candidate.explained for candidate in found]
    assert explained == sorted(explained, reverse=True)
    assert explained[-1] < 0.5
    without(chain, found[-1])
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


def test_settling_gives_the_outputs_the_statistics_of_the_whole_chain(chain, images):
    chain[2].bias.data.zero_()  # so that the layer's ReLU throws away half
    taken = next(candidate for candidate in candidates(chain, images) if candidate.layer == "4")
    assert 0.3 < taken.explained < 0.98  # the rest of the variance is missing without the layer
    assert (taken.slope > 0).all()
    wanted = output_statistics(chain, images)
    shorter = without(chain, taken)
    wanted[taken.before] = wanted.pop(taken.layer)
    before = output_statistics(shorter, images)
    settle(shorter, images, wanted)
    after = output_statistics(shorter, images)
    assert wanted.keys() == after.keys()
    for name in wanted:
        for mine, theirs in zip(after[name], wanted[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(before[name][1], wanted[name][1], rtol=1e-2) for name in wanted)


def test_a_chain_that_is_as_it_should_be_is_left_alone(chain, images):
    expected = chain(images)
    settle(chain, images, output_statistics(chain, images))
    torch.testing.assert_close(chain(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "middle",
    [
        [nn.ReLU(), conv(4, 8)],
        [nn.ReLU(), conv(4, 4, stride=2)],
        [nn.AvgPool2d(2), nn.ReLU(), conv(4, 4)],
        [nn.GELU(), conv(4, 4)],
        [nn.ReLU(), nn.ReLU(), conv(4, 4)],
        [nn.ReLU(), nn.MaxPool2d(2), conv(4, 4)],
        [conv(4, 4)],
    ],
)
def test_what_cannot_be_taken_out_is_no_candidate(middle, images):
    assert candidates(nn.Sequential(conv(3, 4), *middle), images) == []


def test_a_folded_network_keeps_what_it_carries(images):
    net = create_model("diracnet-10-0.5", image_size=8).eval()
    chain = fold(net)
    found = candidates(chain, images)
    assert len(found) == 4  # all but the two that double the width
    shorter = without(chain, found[0])
    assert shorter.input_size == (3, 8, 8)
    assert shorter(images).shape == (16, 10)
    assert not any(parameter.requires_grad for parameter in shorter.parameters())


def test_only_chains_can_be_cut(images):
    with pytest.raises(UsageError, match="a DiracNet is not a chain"):
        candidates(create_model("diracnet-10-0.5"), images)
