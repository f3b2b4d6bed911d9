import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from diracnets.training.averaging import Average
from diracnets.training.settings import OptimizationSettings


def run(optimization, steps=20):
    """The weights of each step of a made-up run, and the average's after it."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    average = Average(optimization, net, steps)
    weights = []
    for step in range(steps):
        nn.init.normal_(net.weight)
        average.update(net, step)
        weights.append(net.weight.detach().clone())
    return weights, average


@pytest.mark.parametrize(("last", "count"), [(0.25, 5), (1.0, 20), (0.001, 1)])
def test_the_last_steps_are_averaged_evenly(last, count):
    weights, average = run(OptimizationSettings(swa_fraction=last))
    torch.testing.assert_close(average.net.weight.detach(), torch.stack(weights[-count:]).mean(0))


def test_the_moving_average_decays():
    weights, average = run(OptimizationSettings(ema_decay=0.9))
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(average.net.weight.detach(), expected)


def test_nothing_is_averaged_before_its_time():
    net = nn.Linear(3, 2)
    average = Average(OptimizationSettings(swa_fraction=0.5), net, 10)
    average.update(net, 4)
    assert not average.started()
    average.update(net, 5)
    assert average.started()


def test_torch_s_update_bn_takes_the_mean_over_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    batches = [torch.randn(8, 1, 6, 6) * 3 + 1 for _ in range(3)]
    update_bn(batches, net)
    seen = torch.stack([net[0](images).detach() for images in batches])  # [batches, images, channels, height, width]
    torch.testing.assert_close(net[1].running_mean, seen.mean((1, 3, 4)).mean(0))
    torch.testing.assert_close(net[1].running_var, seen.var((1, 3, 4)).mean(0))
    assert not net.training
    assert net[1].momentum == 0.1
