"""Many small random networks: whatever their layers and branches are, the folded one computes the same."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diracnets.folding.fold import fold
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d

DIRAC = (DiracConv1d, DiracConv2d, DiracConv3d)


class Branches(nn.Module):
    """The sum, or all channels, of parts that read the same input."""

    def __init__(self, parts, concatenate, out):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.concatenate = concatenate
        self.out = out

    def forward(self, x):
        outputs = [part(x) for part in self.parts]
        return self.out(torch.cat(outputs, 1) if self.concatenate else sum(outputs[1:], outputs[0]))


class Functional(nn.Module):
    """Functions between modules, one of them with an argument that only the call tells."""

    def __init__(self, conv, norm, axes):
        super().__init__()
        self.conv, self.norm = conv, norm
        self.pool = getattr(F, f"max_pool{axes}d")

    def forward(self, x):
        return torch.relu(self.norm(self.pool(F.dropout(self.conv(x), 0.3, self.training), 3, 1, 1)))


class Writer:
    """Draws layers that keep the size of [batch, channels, *size]."""

    def __init__(self, seed):
        self.choose = random.Random(seed)
        self.axes = self.choose.choice([1, 2, 2, 2, 3])
        self.shared = {}

    def layer(self, name):
        return getattr(nn, f"{name}{self.axes}d")

    def norm(self, channels):
        kind = self.choose.choice(["plain", "plain", "no affine", "sync", "shared", "group"])
        if kind == "shared":
            return self.shared.setdefault(("norm", channels), self.layer("BatchNorm")(channels))
        if kind == "sync":
            return nn.SyncBatchNorm(channels)
        return (
            nn.GroupNorm(1, channels) if kind == "group" else self.layer("BatchNorm")(channels, affine=kind == "plain")
        )

    def conv(self, channels, out):
        bias = self.choose.random() < 0.5
        groups = self.choose.choice([g for g in (1, 1, 2, channels) if channels % g == 0 and out % g == 0])
        if self.choose.random() < 0.15:
            return self.layer("ConvTranspose")(channels, out, 3, padding=1, groups=groups, bias=bias)
        if self.choose.random() < 0.15 and channels == out:
            return self.shared.setdefault(("conv", channels), self.layer("Conv")(channels, out, 3, padding=1))
        kind = DIRAC[self.axes - 1] if self.choose.random() < 0.5 else self.layer("Conv")
        kernel, padding = self.choose.choice([(3, 1), (1, 0), (3, "same"), (1, "valid")])
        mode = self.choose.choice(["zeros", "zeros", "reflect", "circular"])
        return kind(channels, out, kernel, padding=padding, groups=groups, bias=bias, padding_mode=mode)

    def step(self, channels, depth):
        """A few layers, and how many channels come out."""
        out = self.choose.choice([2, 4, 6])
        kind = self.choose.randrange(8 if depth else 6)
        if kind == 0:
            return nn.Sequential(self.norm(channels), self.conv(channels, out), nn.ReLU()), out
        if kind == 1:
            pools = (
                self.layer("MaxPool")(3, 1, 1),
                self.layer("AvgPool")(3, 1, 1),
                self.layer("AvgPool")(3, 1, 1, count_include_pad=False),
            )
            return nn.Sequential(self.conv(channels, out), self.choose.choice(pools), self.norm(out)), out
        if kind == 2:
            return nn.Sequential(
                self.conv(channels, out), nn.Identity(), nn.Dropout(), self.norm(out), self.norm(out)
            ), out
        if kind == 3:
            return Functional(self.conv(channels, out), self.norm(out), self.axes), out
        if kind < 6:
            return nn.Sequential(
                self.conv(channels, out), self.norm(out), nn.ReLU(inplace=self.choose.random() < 0.5)
            ), out
        parts = [self.chain(channels, 2, depth - 1, out)[0] for _ in range(2)]
        if kind == 6:
            return Branches(parts, False, self.norm(out)), out
        return Branches(parts, True, self.norm(2 * out)), 2 * out

    def chain(self, channels, length, depth, out=None):
        steps = []
        for _ in range(length):
            step, channels = self.step(channels, depth)
            steps.append(step)
        if out is not None:
            steps.append(self.conv(channels, out))
            channels = out
        return nn.Sequential(*steps), channels

    def network(self):
        body, channels = self.chain(3, self.choose.randint(1, 4), self.choose.randint(0, 2))
        head = [self.layer("AdaptiveAvgPool")(1), nn.Flatten(), nn.Linear(channels, 5), nn.BatchNorm1d(5)]
        head += [nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 4)]
        return nn.Sequential(body, *(head if self.choose.random() < 0.7 else []))


@pytest.mark.parametrize("seed", range(100))
def test_a_random_network_is_folded_exactly(seed, warm):
    torch.manual_seed(seed)
    writer = Writer(seed)
    model = warm(writer.network(), seed).double()
    images = torch.randn(3, 3, *(6, 5, 4)[: writer.axes]).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    folded = fold(model, images)

    assert not any(isinstance(module, DIRAC) for module in folded.modules())
    with torch.no_grad():
        for batch in (images, 10 * torch.randn_like(images)):
            expected = model(batch)
            assert (folded(batch) - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)
    report = folded.fold_report
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert {entry.norm for entry in report.folded if entry.norm} | report.left.keys() >= norms
    assert {entry.norm for entry in report.folded}.isdisjoint(report.left)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = fold(folded, images)
    assert again.fold_report.folded == ()
    assert all(map(torch.equal, again.state_dict().values(), folded.state_dict().values()))


def test_random_networks_fold_something(warm):
    images = torch.randn(2, 3, 6, 5, 4)
    reports = []
    for seed in range(20):
        writer = Writer(1000 + seed)
        reports.append(fold(warm(writer.network()), images[(..., *(0,) * (3 - writer.axes))]).fold_report)
    assert sum(len(report.folded) for report in reports) > 60
    assert 5 < sum(len(report.left) for report in reports) < 200
