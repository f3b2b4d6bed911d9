"""The layer: the formula against its plain definition, its gradients, and everything that modules are put through."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d, effective_weights
from diracnets.nn.effective_weight import dirac_weight

DIRAC = {1: DiracConv1d, 2: DiracConv2d, 3: DiracConv3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def randomized(layer):
    for scale in (layer.alpha, layer.beta):
        nn.init.normal_(scale)
    return layer


def reference(layer):
    """The effective weight by the book: a dense delta, torch's own normalization."""
    delta = nn.init.dirac_(torch.empty_like(layer.weight), layer.groups)
    normalized = F.normalize(layer.weight.flatten(1), dim=1).view_as(layer.weight)
    per_filter = (-1, *(1,) * (layer.weight.ndim - 1))
    return layer.alpha.view(per_filter) * delta + layer.beta.view(per_filter) * normalized


class Together(nn.Module):
    """A chain that computes the effective weights of its layers at once, as DiracNet does."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer, weight in zip(self.layers, effective_weights(self.layers), strict=True):
            x = layer(x, weight).relu()
        return x


def spread(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("dimensions", "channels", "groups", "kernel"),
    [
        (dimensions, channels, groups, kernel)
        for dimensions, channels, groups, kernel in itertools.product(
            (1, 2, 3), ((4, 4), (4, 8), (8, 4), (6, 6)), (1, 2), (1, 2, 3, 4)
        )
        if channels[0] % groups == 0 and channels[1] % groups == 0
    ],
)
def test_effective_weight_is_the_formula(dimensions, channels, groups, kernel):
    layer = randomized(DIRAC[dimensions](*channels, kernel, groups=groups, dtype=torch.float64))
    torch.testing.assert_close(layer.effective_weight(), reference(layer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rectangular_kernels_and_depthwise(groups):
    layer = randomized(DiracConv2d(4, 8, (3, 5), groups=groups, padding=(1, 2), dtype=torch.float64))
    torch.testing.assert_close(layer.effective_weight(), reference(layer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "bias": False},
        {"groups": 4, "padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate", "stride": 3},
    ],
    ids=str,
)
def test_takes_all_arguments_of_the_layer_it_replaces(dimensions, arguments):
    layer = randomized(DIRAC[dimensions](4, 8, 3, dtype=torch.float64, **arguments))
    ordinary = CONV[dimensions](4, 8, 3, dtype=torch.float64, **arguments)
    with torch.no_grad():
        ordinary.weight.copy_(reference(layer))
        if layer.bias is not None:
            ordinary.bias.copy_(layer.bias)
    x = spread((2, 4, *(9,) * dimensions))
    torch.testing.assert_close(layer(x), ordinary(x), rtol=1e-10, atol=1e-10)
    assert isinstance(layer, CONV[dimensions])
    assert repr(layer) == "Dirac" + repr(ordinary)


def test_starts_as_the_paper_says():
    torch.manual_seed(0)
    layer = DiracConv2d(64, 64, 3)
    assert (layer.alpha == 1).all()
    assert (layer.beta == torch.tensor(0.1)).all()
    assert abs(layer.weight.std() - 1) < 0.02
    assert abs(DiracConv2d(64, 64, 3, init="kaiming").weight.std() - (2 / (64 * 9)) ** 0.5) < 0.002
    other = DiracConv2d(4, 4, 3, alpha=0.5, beta=2.0)
    assert (other.alpha == 0.5).all()
    assert (other.beta == 2).all()
    nn.init.zeros_(other.alpha)
    other.reset_parameters()
    assert (other.alpha == 0.5).all()
    with pytest.raises(UsageError, match="xavier"):
        DiracConv2d(4, 4, 3, init="xavier")


def test_identity_passes_its_input_through():
    layer = DiracConv2d(6, 6, 3, padding=1, bias=False, beta=0.0)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 3, 3), 1), ((4, 2, 3, 3), 2), ((3, 4, 2, 2), 1), ((2, 2, 1, 2, 3), 1)]
)
def test_gradients(shape, groups):
    inputs = [spread(shape).requires_grad_(), spread(shape[0]).requires_grad_(), spread(shape[0]).requires_grad_()]
    assert torch.autograd.gradcheck(lambda w, a, b: dirac_weight(w, a, b, groups), inputs)
    assert torch.autograd.gradgradcheck(lambda w, a, b: dirac_weight(w, a, b, groups), inputs)


@pytest.mark.slow
def test_gradients_of_layers_together():
    net = Together(
        [randomized(DiracConv2d(*c, 3, groups=g)) for c, g in [((2, 3), 1), ((3, 4), 1), ((4, 4), 2)]]
    ).double()
    net.layers[1].alpha.requires_grad_(False)
    names = [name for name, _ in net.named_parameters()]
    inputs = [p.detach().clone().requires_grad_(p.requires_grad) for p in net.parameters()]
    x = spread((1, 2, 7, 7))

    def outputs(*values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, inputs)
    assert torch.autograd.gradgradcheck(outputs, inputs)


def test_gradients_agree_with_autograd_through_the_definition():
    layer = randomized(DiracConv2d(4, 8, 3, groups=2, dtype=torch.float64))
    seen = torch.autograd.grad((layer.effective_weight() ** 3).sum(), [layer.weight, layer.alpha, layer.beta])
    expected = torch.autograd.grad((reference(layer) ** 3).sum(), [layer.weight, layer.alpha, layer.beta])
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_filter_of_zeros_stays_finite(dtype):
    layer = DiracConv2d(4, 4, 3, dtype=dtype)
    with torch.no_grad():
        layer.weight[1] = 0
    out = layer.effective_weight()
    (out.float() * torch.randn(out.shape)).sum().backward()
    assert out.isfinite().all()
    assert (layer.weight.grad[1] == 0).all()
    assert (layer.weight.grad[0] != 0).any()
    for parameter in (layer.weight, layer.alpha, layer.beta):
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    layer = randomized(DiracConv2d(32, 32, 3, dtype=dtype))
    single = copy.deepcopy(layer).float()
    torch.testing.assert_close(layer.effective_weight(), single.effective_weight().to(dtype), rtol=0, atol=0)
    layer.effective_weight().float().square().sum().backward()
    single.effective_weight().to(dtype).float().square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, single.weight.grad.to(dtype), rtol=2e-2, atol=1e-4)


def test_autocast():
    layer = randomized(DiracConv2d(8, 8, 3, padding=1))
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert layer.effective_weight().dtype == torch.float32
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=3e-2, atol=3e-2)
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_channels_last_is_kept():
    layer = randomized(DiracConv2d(8, 8, 3, padding=1)).to(memory_format=torch.channels_last)
    assert layer.effective_weight().is_contiguous(memory_format=torch.channels_last)
    assert not layer.effective_weight().is_contiguous()
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.sum().backward()
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)
    for weight in effective_weights([layer, copy.deepcopy(layer)]):
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_layers_together_are_the_layers_one_by_one():
    layers = [randomized(DiracConv2d(*c, 3, groups=g)) for c, g in [((4, 4), 1), ((4, 8), 2), ((4, 4), 1), ((4, 4), 2)]]
    layers.append(randomized(DiracConv2d(4, 4, 3)).to(memory_format=torch.channels_last))
    layers.append(randomized(DiracConv2d(4, 4, 3, dtype=torch.float64)))
    parameters = [p for layer in layers for p in (layer.weight, layer.alpha, layer.beta)]
    together = effective_weights(layers)
    alone = [layer.effective_weight() for layer in layers]
    grads = []
    for weights in (together, alone):
        grads.append(torch.autograd.grad([weight.pow(3).sum() for weight in weights], parameters))
    for mine, theirs in zip((*together, *grads[0]), (*alone, *grads[1]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_saves_nothing_beyond_the_effective_weight():
    layers = [DiracConv2d(16, 16, 3) for _ in range(4)]
    own = {p.data_ptr() for layer in layers for p in layer.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        effective_weights(layers)
    assert kept
    assert all(t.data_ptr() in own for t in kept)


def test_copies_pickles_and_state_dicts():
    layer = randomized(DiracConv2d(4, 8, 3, groups=2, padding="same"))
    x = torch.randn(1, 4, 7, 7)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    fresh = DiracConv2d(4, 8, 3, groups=2, padding="same")
    assert sorted(layer.state_dict()) == ["alpha", "beta", "bias", "weight"]
    fresh.load_state_dict(layer.state_dict(), strict=True)
    for twin in (*twins, fresh):
        assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twins[0].weight += 1
    assert not torch.equal(twins[0](x), layer(x))
    assert torch.equal(twins[1](x), layer(x))


def test_averaged_model():
    layer = DiracConv2d(4, 4, 3)
    average = AveragedModel(layer)
    average.update_parameters(layer)
    with torch.no_grad():
        layer.alpha += 2
    average.update_parameters(layer)
    torch.testing.assert_close(average.module.alpha, torch.full((4,), 2.0))


def chain(kind):
    torch.manual_seed(0)
    layers = [randomized(DiracConv2d(channels, 4, 3, padding=1)) for channels in (3, 4)]
    return Together(layers) if kind == "together" else nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())


both = pytest.mark.parametrize("kind", ["layers", "together"])


@pytest.mark.slow
@both
def test_compiles_without_graph_breaks(kind):
    net = chain(kind)
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    compiled(x).sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    for mine, p in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad)


@both
def test_exports(kind):
    net = chain(kind).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_symbolic_traces(dimensions, padding_mode):
    make = DIRAC[dimensions]
    net = nn.Sequential(make(3, 4, 3, padding=1, padding_mode=padding_mode), nn.ReLU(), make(4, 4, 1, stride=2))
    x, traced = torch.randn(2, 3, *(6,) * dimensions), torch.fx.symbolic_trace(net)
    for made in (traced, pickle.loads(pickle.dumps(traced)), copy.deepcopy(traced)):
        torch.testing.assert_close(made(x), net(x))
    traced(x).sum().backward()
    assert net.state_dict().keys() == traced.state_dict().keys()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@both
def test_traces_to_a_script_that_can_be_saved(kind, tmp_path):
    net = chain(kind).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.jit.trace(net, x).save(tmp_path / "net.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "net.pt")(x), net(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_is_not_scripted():
    with pytest.raises(UsageError, match="DiracConv2d cannot be compiled"):
        torch.jit.script(nn.Sequential(nn.ReLU(), DiracConv2d(3, 4, 3)))


@pytest.mark.parametrize(
    "dtype",
    [torch.complex64, torch.complex128, torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn],
)
def test_dtypes_without_a_meaning_are_refused(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"cannot be {name}; choose one of float16, bfloat16, float32, float64"):
        DiracConv2d(3, 4, 3, dtype=dtype)
    weight, scale = torch.zeros(4, 3, 3, 3).to(dtype), torch.ones(4)
    with pytest.raises(UsageError, match=name):
        dirac_weight(weight, scale, scale)
    layer = DiracConv2d(3, 4, 3)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    for call in (layer.effective_weight, lambda: effective_weights([layer]), lambda: layer(torch.zeros(1, 3, 5, 5))):
        with pytest.raises(UsageError, match=name):
            call()


def test_meta_device():
    with torch.device("meta"):
        layer = DiracConv2d(3, 4, 3, stride=2)
        assert layer(torch.empty(1, 3, 9, 9)).shape == (1, 4, 4, 4)
    assert layer.to_empty(device="cpu").weight.device.type == "cpu"
    layer.reset_parameters()
    assert (layer.alpha == 1).all()


@both
def test_functional_call_and_vmap_over_stacked_parameters(kind):
    nets = [chain(kind).double() for _ in range(3)]
    for net in nets:
        for p in net.parameters():
            nn.init.normal_(p)
    parameters, _ = torch.func.stack_module_state(nets)
    x = spread((2, 3, 6, 6))

    def loss(values):
        return torch.func.functional_call(nets[0], values, (x,)).square().mean()

    losses = torch.func.vmap(loss)(parameters)
    grads = torch.func.vmap(torch.func.grad(loss))(parameters)
    for index, net in enumerate(nets):
        expected = net(x).square().mean()
        torch.testing.assert_close(losses[index], expected)
        expected.backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(grads[name][index], parameter.grad)


@pytest.mark.parametrize("batched", list(itertools.product([False, True], repeat=3))[1:])
def test_vmap_over_some_of_the_parameters(batched):
    values = [spread((5, 4, 3, 3, 3)), spread((5, 4)), spread((5, 4))]
    each = [[value[index if over else 0] for value, over in zip(values, batched, strict=True)] for index in range(5)]
    given = [value if over else value[0] for value, over in zip(values, batched, strict=True)]
    found = torch.vmap(dirac_weight, in_dims=tuple(0 if over else None for over in batched))(*given)
    torch.testing.assert_close(found, torch.stack([dirac_weight(*parameters) for parameters in each]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_activations(dtype):
    layer, x = DiracConv2d(32, 32, 3, padding=1, bias=False).to(dtype), torch.randn(2, 32, 2, 2, dtype=dtype)
    layer(x).float().square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).float().square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_frozen_layers_cost_no_gradient_of_their_filters():
    layers = [DiracConv2d(3, 3, 3) for _ in range(3)]
    layers[1].requires_grad_(False)
    together = effective_weights(layers)
    assert [weight.requires_grad for weight in together] == [True, False, True]
    for layer, weight in zip(layers, together, strict=True):
        assert weight.equal(layer.effective_weight())
