"""Models in which something else uses a convolution's weight: their layers are left, none is silently different."""

import functools
import io
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from diracnets.errors import UsageError
from diracnets.nn.bytecode import weight_reads
from diracnets.nn.dirac import DiracConv2d
from diracnets.nn.diracify import diracify, undiracify


def convolution(layer=nn.Conv2d):
    torch.manual_seed(0)
    return layer(3, 8, 3, padding=1)


class Net(nn.Module):
    """A convolution, another one, and a hook for subclasses: forward is `use(conv(x))`."""

    def __init__(self, layer=nn.Conv2d):
        super().__init__()
        self.conv = convolution(layer)
        self.other = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.use(self.conv(self.other(x)))

    def use(self, x):
        return x


class Tied(Net):
    def use(self, x):
        return F.conv_transpose2d(x, self.conv.weight, padding=1)


class Standardized(Net):
    def forward(self, x):
        w = self.conv.weight
        return F.conv2d(self.other(x), (w - w.mean()) / w.std(), self.conv.bias)


class Flipped(Net):
    def forward(self, x):
        x = self.other(x)
        filters = self.conv
        return self.conv(x) + F.conv2d(x, filters.weight.flip(3), filters.bias, padding=1)


class Penalized(Net):
    def forward(self, x):
        return self.conv(self.other(x)), self.penalty

    @property
    def penalty(self):
        return self.conv.weight.square().sum()


class Inner(Net):
    def use(self, x):
        return sum([F.conv_transpose2d(y, w, padding=1) for y in [x] for w in [self.conv.weight]])


class ByName(Net):
    def use(self, x):
        return F.conv_transpose2d(x, getattr(self.conv, "weight"), padding=1)  # noqa: B009


class ByIndex(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.parts = nn.ModuleList([self.conv])

    def use(self, x):
        return F.conv_transpose2d(x, self.parts[-1].weight, padding=1)


class Decorated(Net):
    @torch.no_grad()
    def use(self, x):
        return F.conv_transpose2d(x, self.conv.weight, padding=1)


class Plain:
    """No module, but holds one."""

    def __init__(self, conv):
        self.held = conv

    def back(self, x):
        return F.conv_transpose2d(x, self.held.weight, padding=1)


class Helped(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.helper = Plain(self.conv)

    def use(self, x):
        return self.helper.back(x)


class AllParameters(Net):
    def forward(self, x):
        return self.conv(self.other(x)) * sum(p.square().sum() for p in self.conv.parameters())


class Held(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.kept = [self.conv.weight]

    def use(self, x):
        return F.conv_transpose2d(x, self.kept[0], padding=1)


class HeldView(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.deconv = nn.ConvTranspose2d(8, 3, 3, padding=1)
        self.deconv.weight.data = self.conv.weight.data

    def use(self, x):
        return self.deconv(x)


class Decoder(Net):
    def decode(self, x):
        return F.conv_transpose2d(x, self.conv.weight, padding=1)


def back(x, conv):
    return F.conv_transpose2d(x, conv.weight, padding=1)


class ByFunction(Net):
    def use(self, x):
        return back(x, self.conv)


class ByPartial(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.function = functools.partial(back, conv=self.conv)

    def use(self, x):
        return self.function(x)


class Back(nn.Module):
    def forward(self, x, conv):
        return F.conv_transpose2d(x, conv.weight, padding=1)


class ByModule(Net):
    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.back = Back()

    def use(self, x):
        return self.back(x, self.conv)


class ByLoop(Net):
    def use(self, x):
        for layer in [self.conv]:
            x = F.conv_transpose2d(x, layer.weight, padding=1)
        return x


class ByNames(Net):
    def use(self, x):
        for name in ("weight",):
            x = F.conv_transpose2d(x, getattr(self.conv, name), padding=1)
        return x


def hooked(layer=nn.Conv2d):
    net = Net(layer)
    net.conv.register_forward_hook(lambda conv, given, out: out * conv.weight.norm())
    return net


def clamped(layer=nn.Conv2d):
    net = Net(layer)
    net.conv.register_forward_pre_hook(lambda conv, given: (conv.weight.data.clamp_(-0.05, 0.05), None)[1])
    return net


def replaced(layer=nn.Conv2d):
    net = Net(layer)
    net.conv.forward = types.MethodType(lambda conv, x: F.conv2d(x, conv.weight, padding=1), net.conv)
    return net


def replaced_outside(layer=nn.Conv2d):
    net = Net(layer)
    net.forward = types.MethodType(lambda net, x: F.conv2d(net.other(x), net.conv.weight), net)
    return net


CERTAIN = [
    Tied, Standardized, Flipped, Penalized, Inner, ByIndex, Decorated, Helped, AllParameters, Held, HeldView, Decoder,
    hooked, clamped, replaced, replaced_outside,
]  # fmt: skip
POSSIBLE = [ByName, ByFunction, ByPartial, ByModule, ByLoop, ByNames]
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(net):
    out = net(IMAGES)
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("make", CERTAIN)
@pytest.mark.parametrize("example_input", [None, IMAGES])
def test_layers_whose_weight_is_read_are_left(make, example_input):
    net = make()
    expected = outputs(net)
    dirac, report = diracify(net, preserve=True, example_input=example_input, inplace=make is HeldView)
    torch.testing.assert_close(outputs(dirac), expected, rtol=1e-4, atol=1e-5)
    assert "conv" in report.left
    assert report.left["conv"].startswith(("its weight is read by ", "shares its weight with ", "its forward was"))
    assert report.converted == ("other",)


@pytest.mark.parametrize("make", POSSIBLE)
def test_layers_whose_weight_may_be_read_are_left_unless_a_run_tells(make):
    net = make()
    expected = outputs(net)
    dirac, report = diracify(net, preserve=True)
    assert set(report.left) == {"conv", "other"}
    assert "does not tell which layer's; give an example_input" in report.left["other"]
    for example_input in (IMAGES, (IMAGES,)):
        dirac, report = diracify(net, preserve=True, example_input=example_input)
        torch.testing.assert_close(outputs(dirac), expected, rtol=1e-4, atol=1e-5)
        assert report.converted == ("other",)
        assert report.left == {"conv": "its weight is used by conv_transpose2d while the model runs"}


@pytest.mark.parametrize("make", CERTAIN)
def test_undiracify_leaves_them_too(make):
    net = make(DiracConv2d)
    expected = outputs(net)
    with pytest.warns(UserWarning, match="stay Dirac convolutions: conv: (its weight is read|shares|its forward)"):
        plain = undiracify(net, inplace=make is HeldView)  # a copy would hold two tensors
    assert type(plain.conv) is DiracConv2d
    torch.testing.assert_close(outputs(plain), expected, rtol=1e-4, atol=1e-5)


def test_undiracify_of_what_a_hook_computes_leaves_it():
    net = nn.Sequential(DiracConv2d(3, 8, 3), nn.ReLU(), DiracConv2d(8, 8, 3)).eval()
    prune.l1_unstructured(net[2], "weight", amount=0.5)
    with torch.no_grad():
        expected = net(IMAGES)
        with pytest.warns(UserWarning, match="2: its weight is computed by another parameterization"):
            plain = undiracify(net)
        torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-4, atol=1e-5)
        prune.remove(net[2], "weight")
        plain = undiracify(net)
        torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.ReLU, nn.Conv2d]


def test_a_layer_tied_to_one_that_stays_stays_too():
    net = nn.Sequential(convolution(), nn.ConvTranspose2d(8, 3, 1), convolution(), convolution())
    net[2].weight = net[0].weight
    net[2].register_forward_hook(lambda conv, given, out: out * conv.weight.norm())
    net[3].weight.data = net[0].weight.data.view_as(net[3].weight)
    _, report = diracify(net, inplace=True)
    assert report.converted == ()
    assert set(report.left) == {"0", "1", "2", "3"}


class Innocent(Net):
    """Asks weights for what does not depend on their numbers, reads weights of other layers, and writes at first."""

    def __init__(self, layer=nn.Conv2d):
        super().__init__(layer)
        self.norm = nn.LayerNorm(8)
        self.weight = nn.Parameter(torch.ones(()))
        self.config = types.SimpleNamespace(weight=2.0)
        self.init_weights()

    def init_weights(self):
        for layer in (self.conv, self.other):
            nn.init.normal_(layer.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        x = x.to(self.conv.weight.device, self.conv.weight.dtype).to(next(self.parameters()).dtype)
        x = super().forward(x) * self.config.weight + self.conv.weight.new_zeros(1)
        assert x.shape[1] == self.conv.weight.shape[0]
        maps = F.layer_norm(x.movedim(1, 3), (8,), weight=self.norm.weight, bias=self.norm.bias)
        return maps * self.weight


def test_what_does_not_use_the_numbers_is_no_reason():
    net = Innocent()
    dirac, report = diracify(net, preserve=True)
    assert report.converted == ("conv", "other")
    torch.testing.assert_close(dirac(IMAGES), net(IMAGES), rtol=1e-4, atol=1e-4)


def test_graph_modules():
    tied, plain = torch.fx.symbolic_trace(Tied()), torch.fx.symbolic_trace(nn.Sequential(convolution(), nn.ReLU()))
    _, report = diracify(tied)
    assert report.converted == ("other",)
    assert "read by GraphModuleImpl.forward" in report.left["conv"]
    _, report = diracify(plain)
    assert report.converted == ("0",)


def test_parameters_in_one_piece_of_memory_are_not_shared():
    net = nn.Sequential(convolution(), nn.Conv2d(8, 3, 3))
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()).detach(), net.parameters())
    _, report = diracify(net, inplace=True)
    assert report.converted == ("0", "1")


def test_a_run_changes_nothing_and_its_failure_is_told():
    net = ByLoop()
    net.norm = nn.BatchNorm2d(3)
    net.use = types.MethodType(lambda self, x: self.norm(ByLoop.use(self, F.dropout(x))), net)
    random, before = torch.get_rng_state(), net.norm.running_mean.clone()
    diracify(net, preserve=True, example_input=IMAGES, inplace=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(net.norm.running_mean, before)
    assert not net.conv._forward_pre_hooks
    assert not net.conv._forward_hooks
    with pytest.raises(UsageError, match="does not run on example_input: "):
        diracify(ByLoop(), example_input=IMAGES[:, :2])


def test_dtypes_and_kinds_of_weights_that_are_left():
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1, dtype=torch.complex64), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    )
    net[1].weight = nn.Parameter(net[1].weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    net[2].weight = nn.Parameter(torch.randint(9, (3, 3, 1, 1)), requires_grad=False)
    _, report = diracify(net)
    assert report.converted == ("3",)
    assert "complex64" in report.left["0"]
    assert "float8_e4m3fn" in report.left["1"]
    assert "int64" in report.left["2"]


def test_meta_device():
    with torch.device("meta"):
        net = Net()
    dirac, report = diracify(net, preserve=True)
    assert report.converted == ("conv", "other")
    assert dirac.conv.alpha.is_meta
    assert type(undiracify(dirac).conv) is nn.Conv2d


def test_a_diracified_model_is_copied_saved_and_traced():
    dirac, _ = diracify(nn.Sequential(convolution(), nn.ReLU()), preserve=True)
    file = io.BytesIO()
    torch.save(dirac, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    expected = dirac(IMAGES)
    assert torch.equal(loaded(IMAGES), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(dirac)(IMAGES), expected)
    assert dirac.double()(IMAGES.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda self: self.a.b.weight, [("self", ("a", "b"))]),
        (lambda self: self.parts[2].weight, [("self", ("parts", 2))]),
        (lambda self: self.parts["x"].weight, [("self", ("parts", "x"))]),
        (lambda self, i: self.parts[i].weight, [(None, ())]),
        (lambda self: getattr(self, "0").weight, [("self", ("0",))]),
        (lambda self: getattr(getattr(self, "0"), "1").conv.weight, [("self", ("0", "1", "conv"))]),
        (lambda self: max(self, "0").weight, [(None, ())]),
        (lambda self: lambda: self.conv.weight, [("self", ("conv",))]),
        (lambda self: lambda self: self.conv.weight, [(None, ())]),
        (lambda self: F.weight.shape, []),
        (lambda x: F.linear(x, weight=x, bias=getattr(x, "bias")), []),  # noqa: B009
    ],
)
def test_reads_in_byte_code(function, found):
    assert [(read.base, read.path) for read in weight_reads(function.__code__)] == found
