"""Residual networks become chains that compute exactly the same, or are refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import diracnets
from diracnets.errors import FoldError, UsageError
from diracnets.folding import affine
from diracnets.folding import unbranch as module_under_test
from diracnets.folding.unbranch import unbranch
from diracnets.models.build import build_model
from diracnets.nn.dirac import DiracConv2d

KINDS = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
EVEN = {"even windows", "averaged 2x2 shortcut"}  # networks that take no images of an odd size
X = torch.randn(2, 4, 10, 10, generator=torch.Generator().manual_seed(0))


class Post(nn.Module):
    """torchvision's BasicBlock or Bottleneck, with ReLUs and sums in place."""

    def __init__(self, before, after, stride=1, bottleneck=False):
        super().__init__()
        sizes = [(before, 2, 1, 1), (2, 2, 3, stride), (2, after, 1, 1)] if bottleneck else None
        sizes = sizes or [(before, after, 3, stride), (after, after, 3, 1)]
        convs = [nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in sizes]
        self.convs, self.norms = nn.ModuleList(convs), nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        identity, out = x, x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            out = self.relu(norm(conv(out)))
        out = self.norms[-1](self.convs[-1](out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TorchvisionLike(nn.Module):
    def __init__(self, bottleneck):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 5, 7, 2, 3, bias=False), nn.BatchNorm2d(5)
        self.pool, self.avgpool = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((1, 1))
        self.blocks = nn.Sequential(*(Post(*sizes, bottleneck=bottleneck) for sizes in [(5, 5), (5, 8, 2), (8, 8)]))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks(self.pool(F.relu(self.bn(self.conv(x)), inplace=True)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Beside(nn.Module):
    """`after(x + branch(x))`, or what `join` makes of the two."""

    def __init__(self, *branch, shortcut=None, before=None, after=None, join=torch.add):
        super().__init__()
        self.before, self.after = before or nn.ReLU(), after or nn.ReLU()
        self.branch, self.shortcut, self.join = nn.Sequential(*branch), shortcut or nn.Identity(), join

    def forward(self, x):
        x = self.before(x)
        return self.after(self.join(self.branch(x), self.shortcut(x)))


def conv(before=4, after=4, size=3, stride=1, **more):
    if "padding" not in more:
        more["padding"] = size // 2
    return nn.Conv2d(before, after, size, stride, **more)


def bn(channels=4):
    return nn.BatchNorm2d(channels)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.scale.exp() * -x + self.shift


class FlattenedBySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Beside(conv(), nn.ReLU(), conv())

    def forward(self, x):
        return self.block(x).view(x.size(0), -1)


def mlp():
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Beside(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 4), before=nn.BatchNorm1d(4)),
    )


EXACT = {  # network, and the channels after each convolution of its chain
    "post-activation": (Beside(conv(), bn(), nn.ReLU(), conv(), bn()), [8, 4]),
    "signed": (Beside(conv(), nn.ReLU(), conv(), before=conv()), [4, 12, 4]),
    "pre-activation": (
        nn.Sequential(
            *(
                Beside(bn(), nn.ReLU(), conv(), bn(), nn.ReLU(), conv(), before=nn.Identity(), after=nn.Identity())
                for _ in range(2)
            )
        ),
        None,
    ),
    "linear branches": (Beside(conv(), bn(), shortcut=nn.Sequential(conv(size=1), bn())), [4]),
    "strided": (Beside(conv(4, 6, 3, 2), nn.ReLU(), conv(6, 6), shortcut=conv(4, 6, 1, 2)), [10, 6]),
    "strided late": (Beside(conv(), nn.ReLU(), conv(4, 6, 3, 2), shortcut=conv(4, 6, 3, 2)), [8, 6]),
    "strided 3x3 on the shortcut": (
        Beside(conv(4, 6, 3, 2), nn.ReLU(), conv(6, 6), shortcut=conv(4, 6, 3, 2)),
        [18, 6],
    ),
    "averaged shortcut": (
        Beside(conv(4, 6, 3, 2), nn.ReLU(), conv(6, 6), shortcut=nn.Sequential(nn.AvgPool2d(3, 2, 1), conv(4, 6, 1))),
        [18, 6],
    ),
    "signed and subsampled later": (
        Beside(
            conv(), nn.ReLU(), conv(), nn.ReLU(), conv(stride=2), shortcut=conv(size=1, stride=2), before=nn.Identity()
        ),
        [12, 12, 4],
    ),
    "subsampled shortcut": (Beside(conv(4, 4, 3, 2), nn.ReLU(), conv(), shortcut=nn.MaxPool2d(1, 2)), [8, 4]),
    "padding after a bias": (Beside(conv(), bn(), conv(), nn.ReLU(), conv()), [8, 8, 4]),
    "even windows": (
        Beside(conv(size=4, padding=1, stride=2), nn.ReLU(), conv(), shortcut=conv(size=1, stride=2)),
        [8, 4],
    ),
    "dilated": (Beside(conv(dilation=2, padding=2), nn.ReLU(), conv(size=5, padding="same", dilation=2)), [8, 4]),
    "oblong": (Beside(conv(size=(3, 1), padding=(1, 0)), nn.ReLU(), conv(size=(1, 5), padding=(0, 2))), [8, 4]),
    "scaled": (Beside(conv(), nn.ReLU(), conv(), join=lambda branch, x: x + 0.1 * branch + 1), [8, 4]),
    "no ReLU at the end": (Beside(conv(), nn.ReLU(), conv(), after=nn.Dropout()), [8, 4]),
    "other layers where all paths meet": (
        nn.Sequential(
            conv(groups=2),
            nn.Sigmoid(),
            Beside(conv(), nn.ReLU(), conv()),
            nn.MaxPool2d(2),
            conv(padding_mode="reflect"),
            nn.ReLU6(),
        ),
        [4, 8, 4, 4],
    ),
    "Dirac": (Beside(DiracConv2d(4, 4, 3, padding=1), bn(), nn.ReLU(), DiracConv2d(4, 4, 3, padding=1), bn()), [8, 4]),
    "linear layers": (mlp(), None),
    "groups": (Beside(conv(groups=2), nn.ReLU(), conv(groups=4)), [8, 4]),
    "averaged 2x2 shortcut": (
        Beside(conv(4, 6, 3, 2), nn.ReLU(), conv(6, 6), shortcut=nn.Sequential(nn.AvgPool2d(2, 2), conv(4, 6, 1))),
        None,
    ),
    "slices and channels of zeros": (
        Beside(
            conv(4, 7, 3, 2),
            nn.ReLU(),
            conv(7, 7),
            shortcut=Call(lambda x: F.pad(x[:, :, ::2, ::2], (0,) * 4 + (1, 2))),
        ),
        [11, 7],
    ),
    "channels of zeros side by side": (
        Beside(conv(4, 8, 3), shortcut=Call(lambda x: torch.cat([x, torch.zeros_like(x)], 1))),
        [8],
    ),
    "side by side": (Beside(conv(), nn.ReLU(), join=lambda *both: torch.cat(both, dim=1), after=conv(8, 4)), [8, 4]),
    "some channels": (Beside(conv(4, 2), shortcut=Call(lambda x: x[:, 1:3] - 2 * x[:, :2])), [2]),
    "ReLU6": (Beside(conv(), nn.ReLU6(), conv()), [12, 4]),
    "LeakyReLU": (Beside(conv(), nn.LeakyReLU(0.1), conv()), [12, 4]),
    "PReLU": (Beside(conv(), nn.PReLU(4), conv()), [12, 4]),
    "clamps": (Beside(Call(lambda x: x.clamp(min=0.5)), conv(), Call(lambda x: F.hardtanh(x, 0, 3)), conv()), None),
    "numbers of each channel": (
        Beside(conv(), Scaled(), nn.ReLU(), conv(), join=lambda a, b: torch.sub(b, a, alpha=0.5) / 2 - 3),
        [8, 4],
    ),
    "flattened by the size of the input": (FlattenedBySize(), [8, 4]),
    "a branch of two": (Beside(Beside(conv(), nn.ReLU(), conv()), nn.ReLU(), conv()), [8, 8, 4]),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name, warm):
    net, widths = EXACT[name]
    chain = unbranch(warm(net), X)
    report = chain.unbranch_report
    assert report.max_rel_float64 < 1e-12
    assert report.other_probe
    for height, width in ((6, 8), (7, 9)):
        images = 3 * X[:1, :, :height, :width]
        if height % 2 and name in EVEN:
            with pytest.raises(RuntimeError, match="size"):
                net(images)
        else:
            assert torch.allclose(chain(images), net(images), rtol=1e-4, atol=1e-3)
    if widths:
        assert [layer.out_channels for layer in chain if isinstance(layer, nn.Conv2d)] == widths


@pytest.mark.parametrize(
    "name", ["resnet-18", "wrn-10-0.25", "repvgg-10-0.25", "dirac-wrn-10-0.25", "diracnet-10-0.25"]
)
def test_own_networks(name, warm):
    size = {"width": 0.05, "image_size": 64} if name == "resnet-18" else {}
    net = warm(build_model(name, **size))
    chain = diracnets.unbranch(net)
    assert {type(layer) for layer in chain} <= set(KINDS)
    assert chain.unbranch_report.max_rel_float64 < 1e-11
    assert chain.input_size == net.input_size
    assert not any(parameter.requires_grad for parameter in chain.parameters())


@pytest.mark.parametrize("bottleneck", [False, True])
def test_torchvision_like(bottleneck, warm):
    net = warm(TorchvisionLike(bottleneck))
    chain = unbranch(net, torch.randn(2, 4, 40, 40))
    assert {type(layer) for layer in chain} <= set(KINDS)
    report = chain.unbranch_report
    assert (report.sums, report.max_rel_float64 < 1e-12) == (3, True)
    assert report.multiply_adds_after > report.multiply_adds_before
    assert "3 sums of skip-connections" in str(report)


def test_steps_in_place_change_what_others_read(warm):
    class InPlace(Beside):
        def forward(self, x):
            y = self.branch[0](x)
            F.relu(y, inplace=True)
            z = self.branch[1](y)
            return (z.add_(y) + y).relu_()

    assert unbranch(warm(InPlace(conv(), conv())), X).unbranch_report.max_rel_float64 < 1e-12


def test_dead_channels_are_carried_as_pairs(warm):
    block = Beside(bn(), nn.ReLU(), conv(), nn.ReLU(), conv(), before=conv())
    warm(block)
    with torch.no_grad():
        block.branch[0].weight[:2] = torch.tensor([0.0, 1e-9])
    chain = unbranch(block, X)
    assert next(layer.out_channels for layer in chain if isinstance(layer, nn.Conv2d)) >= 10
    assert chain.unbranch_report.max_rel < 1e-5


REFUSED = {
    "Sigmoid": (Beside(conv(), nn.Sigmoid(), conv()), "Sigmoid 'branch.1' is none of"),
    "parametrized": (
        Beside(nn.utils.parametrizations.weight_norm(conv())),
        "remove_parametrizations",
    ),
    "crop": (
        Beside(conv(padding=0), shortcut=Call(lambda x: x[:, :, 1:-1, 1:-1])),
        "in the forward of Call 'shortcut'",
    ),
    "pixels": (
        Beside(Call(lambda x: x * torch.ones(10)), nn.ReLU(), conv()),
        "Call 'branch.0' makes a tensor of its own",
    ),
    "averages rounded up": (
        Beside(conv(stride=2), nn.ReLU(), conv(), shortcut=nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)),
        r"where its maps divide by 2, AvgPool2d\(2, 2\) is the same",
    ),
    "of one size at even sizes alone": (
        Beside(
            nn.Sequential(conv(stride=2), nn.ReLU(), conv(stride=2)),
            shortcut=nn.Sequential(nn.AvgPool2d(2, 2), nn.ReLU(), conv(stride=2)),
        ),
        "images of other sizes, such as 11x11",
    ),
    "several outputs": (Call(lambda x: (x, x)), "wrap the model in a module"),
    "padding": (Beside(conv(padding_mode="reflect"), nn.ReLU()), "Conv2d 'branch.0' pads with reflect values"),
    "uneven padding": (Beside(conv(size=2, padding="same"), nn.ReLU()), "pads one side more"),
    "max-pool": (Beside(conv(), nn.ReLU(), nn.MaxPool2d(3, 1, 1)), "MaxPool2d 'branch.2' takes the largest"),
    "average of fewer": (Beside(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv()), "divides by fewer pixels"),
    "concatenation": (Beside(conv(), join=lambda *both: torch.cat(both, 2)), "'cat' in the forward of the model puts"),
    "product": (Beside(conv(), join=torch.mul), "'mul' in the forward of the model multiplies"),
    "broadcast": (Beside(conv(4, 1), nn.ReLU()), "'add' in the forward of the model adds values of different sizes"),
    "another size": (
        Beside(conv(padding=0), nn.ReLU(), conv(), shortcut=nn.Sequential(conv(), nn.ReLU(), conv(padding=0))),
        "different sizes",
    ),
    "batch statistics": (Beside(conv(), nn.InstanceNorm2d(4)), "InstanceNorm2d 'branch.1' is none of"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, warm):
    net, reason = REFUSED[name]
    with pytest.raises(FoldError, match=reason):
        unbranch(warm(net), X)


def test_refuses_what_it_cannot_see(warm):
    class Flag(nn.Module):
        def forward(self, x, double: bool = False):
            return 2 * x if double else x

    class Parameter(Beside):
        def forward(self, x):
            return F.conv2d(x, self.branch[0].weight, padding=1)

    hooked = warm(Beside(conv()))
    hooked.branch[0].register_forward_hook(lambda *_: None)
    for net, reason in [
        (Flag().eval(), "arguments that change"),
        (Beside(conv()).train(), "training mode"),
        (hooked, "a forward hook is on 'branch.0'"),
        (warm(Parameter(conv())), "uses .* itself, not by a layer"),
    ]:
        with pytest.raises(FoldError, match=reason):
            unbranch(net, X)
    with pytest.raises(UsageError):
        unbranch("resnet-18")


@pytest.mark.parametrize("fault", [1e-5, float("nan")])
def test_finds_a_planted_fault(fault, warm, monkeypatch):
    right = module_under_test.straightened

    def wrong(*arguments):
        found = right(*arguments)
        found.layers[1].weight.data[-1, -1, 1, 1] += fault  # an identity that carries
        return found

    monkeypatch.setattr(module_under_test, "straightened", wrong)
    with pytest.raises(FoldError, match="not the original"):
        unbranch(warm(Beside(conv(), nn.ReLU(), conv())), X)


def test_windows_of_other_sizes_fit_into_one():
    atom = affine.Atom(1, True)
    kinds = [
        affine.Window((3, 3), padding=(2, 2), dilation=(2, 2)),
        affine.Window((5, 1), padding=(2, 0)),
        affine.Window(),
    ]
    kinds.append(affine.Window((3, 3), padding=(1, 1)))
    weights = [torch.randn(1, 1, *kind.kernel) for kind in kinds]
    terms = [affine.Term(atom, weight, kind, "a") for weight, kind in zip(weights, kinds, strict=True)]
    layer = affine.layer_of([affine.Affine(tuple(terms), torch.zeros(1))], [atom], flat=False)
    x = torch.randn(1, 1, 6, 7)
    expected = sum(F.conv2d(x, w, padding=k.padding, dilation=k.dilation) for w, k in zip(weights, kinds, strict=True))
    torch.testing.assert_close(layer(x), expected)
