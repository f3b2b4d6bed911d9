"""Folding as a whole: DiracNets, dtypes, in place, the report, that nothing wrong passes, and what is refused."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm

from diracnets.artifacts.create import create_model
from diracnets.errors import FoldError, UsageError
from diracnets.folding import fuse
from diracnets.folding import rules as plan_module
from diracnets.folding.fold import fold
from diracnets.folding.probe import probe_inputs
from diracnets.folding.report import FoldReport
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d
from diracnets.nn.diracify import diracify

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
PAPER = {  # trainable parameters before and after, arXiv 1706.00388
    "diracnet-16-1": (173_402, 172_042),
    "diracnet-28-1": (368_730, 366_026),
    "diracnet-28-5": (9_124_250, 9_110_730),
    "diracnet-28-10": (36_450_090, 36_423_050),
    "diracnet-34-2": (1_854_378, 1_847_626),
    "diracnet-34-4": (7_395_146, 7_381_642),
    "diracnet-100-1": (1_540_698, 1_529_930),
    "diracnet-400-1": (6_423_898, 6_379_530),
    "diracnet-18": (11_523_368, 11_511_784),
    "diracnet-34": (21_638_952, 21_616_232),
}


def small(warm):
    """Something of everything: Dirac, two kinds of batch norms, a branch."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.dirac, self.bn1 = DiracConv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.conv, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.up = nn.ConvTranspose2d(6, 3, 2, 2)
            self.left = nn.BatchNorm2d(3)

        def forward(self, x):
            x = F.relu(self.bn1(self.dirac(x)))
            return self.left(F.relu(self.up(x + self.bn2(self.conv(x)))))

    torch.manual_seed(0)
    return warm(Small())


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["diracnet-10-0.25", "diracnet-16-1", "diracnet-28-1", "diracnet-100-1", "plain-16-0.5"]
)
def test_a_diracnet_becomes_a_bare_chain(name, warm):
    torch.manual_seed(0)
    net = warm(create_model(name))
    chain = fold(net)
    assert type(chain) is nn.Sequential
    kinds = [type(layer).__name__ for layer in chain]
    assert set(kinds) == {"Conv2d", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Linear"}
    convs = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert kinds.count("Conv2d") == kinds.count("ReLU") == convs
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(chain(images), net(images), rtol=1e-4, atol=1e-5)
    if name in PAPER:
        report = chain.fold_report
        assert (report.parameters_before, report.parameters_after) == PAPER[name]


def test_an_imagenet_net(warm):
    net = warm(create_model("diracnet-18", width=0.125))
    chain = fold(net)
    assert [type(layer).__name__ for layer in chain][:4] == ["Conv2d", "MaxPool2d", "ReLU", "Conv2d"]
    assert not chain.fold_report.left
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(chain(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_of_folded_nets_are_the_papers(name):
    with torch.device("meta"):
        net = create_model(name)
    before = sum(parameter.numel() for parameter in net.parameters())
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    after = sum(conv.weight.numel() + conv.out_channels for conv in convs)
    after += sum(parameter.numel() for parameter in net.fc.parameters())
    assert (before, after) == PAPER[name]


@pytest.mark.parametrize("dirac", [DiracConv1d, DiracConv2d, DiracConv3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtype_and_memory_format_stay(dirac, dtype, channels_last, warm):
    axes = int(dirac.__name__[-2])
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    norm = getattr(nn, f"BatchNorm{axes}d")
    model = warm(nn.Sequential(dirac(4, 6, 3, groups=2), nn.ReLU(), dirac(6, 6, 2, bias=False), norm(6))).to(dtype)
    if channels_last and axes in formats:
        model = model.to(memory_format=formats[axes])
    folded = fold(model, torch.randn(2, 4, *(6,) * axes).to(dtype))
    for index, layer in ((0, folded[0]), (2, folded[2])):
        assert type(layer) is getattr(nn, f"Conv{axes}d")
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer.weight.stride() == model[index].weight.stride()
    assert folded.fold_report.dtype == str(dtype).removeprefix("torch.")


def test_folded_weights_are_rounded_once(warm):
    model = warm(nn.Sequential(DiracConv2d(4, 6, 3), nn.BatchNorm2d(6))).to(torch.bfloat16)
    wide = fold(copy.deepcopy(model).double(), IMAGES.double())
    folded = fold(model, IMAGES.to(torch.bfloat16))
    assert torch.equal(folded[0].weight, wide[0].weight.to(torch.bfloat16))
    assert torch.equal(folded[0].bias, wide[0].bias.to(torch.bfloat16))


def test_the_original_is_untouched(warm):
    model = small(warm)
    model.conv.weight.requires_grad_(False)
    handle = model.dirac.register_forward_hook(lambda *_: None)
    before = tensors(model)
    state = torch.get_rng_state()
    folded = fold(model, IMAGES)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, tensors(model).values(), before.values()))
    assert not hasattr(model, "fold_report")
    assert type(model.dirac) is DiracConv2d
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["conv.weight"]
    assert handle.id in model.dirac._forward_hooks
    with torch.no_grad():
        for tensor in folded.state_dict().values():
            tensor.zero_()
    assert all(map(torch.equal, tensors(model).values(), before.values()))


def test_the_result_is_for_inference(warm):
    model = small(warm)
    folded = fold(model, IMAGES)
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    folded.requires_grad_(True)
    folded(IMAGES).sum().backward()
    with torch.inference_mode():
        folded = fold(warm(model), IMAGES)
    folded.requires_grad_(True)(IMAGES).sum().backward()


def test_in_place(warm):
    model = small(warm)
    expected = fold(model, IMAGES)
    inner = model.up
    folded = fold(model, IMAGES, inplace=True)
    assert folded is model
    assert type(model.dirac) is nn.Conv2d
    assert type(model.bn1) is type(model.bn2) is nn.Identity
    assert model.up is inner
    assert tensors(model).keys() == tensors(expected).keys()
    assert all(map(torch.equal, tensors(model).values(), tensors(expected).values()))
    assert model.fold_report == expected.fold_report
    net = warm(create_model("diracnet-16-0.25"))
    assert fold(net, inplace=True) is net
    assert net.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 16, 8, 8)


def test_in_place_under_two_names(warm):
    model = small(warm)
    model.twin = model.conv
    fold(model, IMAGES, inplace=True)
    assert model.twin is model.conv
    assert model.conv.weight.requires_grad is False


def test_the_example_is_not_changed(warm):
    images = IMAGES.clone()
    fold(warm(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))), images)
    assert torch.equal(images, IMAGES)


def test_in_place_changes_nothing_when_it_fails(warm, monkeypatch):
    model = small(warm)
    model.held = {"layers": [model.conv]}
    before = tensors(model)
    with pytest.raises(FoldError, match=r"Small\.held holds layers"):
        fold(model, IMAGES, inplace=True)
    del model.held
    monkeypatch.setattr(plan_module.fuse, "scale_outputs", lambda w, b, scale, shift, **_: (w * 2, shift))
    with pytest.raises(FoldError, match="not the original"):
        fold(model, IMAGES, inplace=True)
    assert type(model.dirac) is DiracConv2d
    assert tensors(model).keys() == before.keys()
    assert all(map(torch.equal, tensors(model).values(), before.values()))


def test_folding_again_changes_nothing(warm):
    for model in (warm(create_model("diracnet-16-0.25")), small(warm)):
        example = None if hasattr(model, "input_size") else IMAGES
        once = fold(model, example)
        twice = fold(once, example)
        assert type(twice) is type(once)
        assert tensors(twice).keys() == tensors(once).keys()
        assert all(map(torch.equal, tensors(twice).values(), tensors(once).values()))
        assert twice.fold_report.folded == ()


def test_single_layers(warm):
    dirac = warm(DiracConv2d(4, 6, 3))
    conv = fold(dirac, IMAGES)
    assert type(conv) is nn.Conv2d
    torch.testing.assert_close(conv.weight, dirac.effective_weight(), check_device=False)
    assert fold(dirac, IMAGES, inplace=True) is dirac
    norm = fold(warm(nn.BatchNorm2d(4)), IMAGES)
    assert norm.fold_report.left


def test_a_diracified_net(warm):
    model, _ = diracify(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    folded = fold(warm(model), IMAGES)
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.ReLU, nn.Conv2d]


def test_several_inputs_and_outputs(warm):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x, scale, *, add=0):
            x = self.norm(self.conv(x))
            return {"scaled": x * scale + add, "both": (x, x.argmax(1), 3)}

    model = warm(Pair())
    folded = fold(model, (IMAGES, torch.tensor(2.0)))
    assert type(folded.norm) is nn.Identity
    assert folded.fold_report.probe == ((2, 4, 8, 8), ())


WRONG = {
    "scale_outputs": lambda right: lambda w, b, scale, shift, **kw: right(w, b, scale * 1.001, shift, **kw),
    "scale_inputs": lambda right: lambda w, b, scale, shift, **kw: right(w, b, scale, shift + 0.1, **kw),
}


@pytest.mark.parametrize("function", WRONG)
def test_a_wrong_fold_is_caught_and_its_layer_named(function, warm, monkeypatch):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    model += nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)) if function == "scale_outputs" else nn.Sequential()
    model += nn.Sequential() if function == "scale_outputs" else nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    monkeypatch.setattr(fuse, function, WRONG[function](getattr(fuse, function)))
    with pytest.raises(FoldError, match=r"first layer to differ is '5', with '4'"):
        fold(warm(model), IMAGES)


def test_a_wrong_fold_that_the_output_hides_is_caught(warm, monkeypatch):
    model = warm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    model[1].weight.data.mul_(1e-5)
    model[1].bias.data.mul_(1e-5)
    model[2].weight.data.mul_(1e-12)
    fold(model, IMAGES)
    right = fuse.scale_outputs
    monkeypatch.setattr(fuse, "scale_outputs", lambda w, b, scale, shift, **kw: right(w, b, scale * 1.001, shift, **kw))
    with pytest.raises(FoldError, match=r"first layer to differ is '1'"):
        fold(model, IMAGES)


def test_a_wrong_rounding_is_caught(warm, monkeypatch):
    import diracnets.folding.fold as fold_module

    def careless(layer, original, name):
        layer = right(layer, original, name)
        for parameter in layer.parameters():
            parameter.data.mul_(1.001)
        return layer

    right = fold_module.as_in
    monkeypatch.setattr(fold_module, "as_in", careless)
    with pytest.raises(FoldError, match="first layer to differ is 'bn1', with 'dirac'"):
        fold(small(warm), IMAGES)


def test_a_batch_norm_that_forward_looks_at_is_noticed(warm):
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return x if isinstance(self.norm, nn.BatchNorm2d) else x * 2

    with pytest.raises(FoldError, match="though all layers agree"):
        fold(warm(Looking()), IMAGES)


def test_random_outputs_are_noticed(warm):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(F.dropout(self.conv(x)))

    model = warm(Noisy())
    state = torch.get_rng_state()
    with pytest.raises(FoldError, match="different outputs for the same input, first at 'norm'"):
        fold(model, IMAGES)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shrink", [1e-3, 1e-30])
def test_nets_whose_signal_dies_out_are_no_false_alarm(shrink, warm):
    torch.manual_seed(0)
    blocks = [nn.Sequential(DiracConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(4)]
    model = warm(nn.Sequential(*blocks))
    for block in blocks[1:]:
        block[1].weight.data.mul_(shrink)
        block[1].bias.data.zero_()
        block[1].running_mean.zero_()
        block[0].bias.data.zero_()
    fold(model, IMAGES)
    blocks[1][0].weight.data.mul_(-1)
    blocks[1][1].running_mean.fill_(1e30)  # all dead behind it
    fold(model, IMAGES)


def broken(change):
    def make(warm):
        model = small(warm)
        with torch.no_grad():
            change(model)
        return model

    return make


def fill(name, value):
    def change(model):
        tensor = dict(model.state_dict())[name]
        tensor.view(-1)[-1] = value

    return broken(change)


class Unending(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.generator = (number for number in range(3))

    def forward(self, x):
        return self.conv(x)


REFUSED = {
    "training mode": (broken(lambda m: m.train()), "is in training mode.*model.eval"),
    "a batch norm in training mode": (broken(lambda m: m.bn2.train()), "BatchNorm2d 'bn2' is in training mode"),
    "without running statistics": (
        broken(lambda m: setattr(m, "bn1", nn.BatchNorm2d(6, track_running_stats=False).eval())),
        "'bn1' has no running statistics",
    ),
    "NaN weight": (fill("dirac.weight", float("nan")), "dirac.weight is not finite"),
    "infinite scale": (fill("bn1.weight", float("inf")), "bn1.weight is not finite"),
    "NaN mean": (fill("bn2.running_mean", float("nan")), "bn2.running_mean is not finite"),
    "negative variance": (fill("bn2.running_var", -1.0), "bn2.running_var is negative"),
    "too large for its dtype": (
        broken(lambda m: (m.half(), m.bn2.running_var.zero_(), m.conv.weight.mul_(3000), m.bn2.weight.mul_(300))),
        "exceeds torch.float16|overflows in torch.float16",
    ),
    "lazy": (broken(lambda m: setattr(m, "up", nn.LazyConv2d(3, 1).eval())), "up.weight has no values yet"),
    "on no device": (broken(lambda m: m.to("meta")), "has no values yet"),
    "cannot be copied": (lambda warm: Unending().eval(), "Unending cannot be copied .*generator"),
    "no such input": (broken(lambda m: setattr(m, "dirac", nn.Conv2d(5, 6, 3).eval())), "the model cannot be run"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, warm):
    make, message = REFUSED[case]
    model = make(warm)
    images = IMAGES.half() if case == "too large for its dtype" else IMAGES
    with pytest.raises(FoldError, match=message):
        fold(model, images)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_old_weight_norm_is_left(warm):
    model = warm(nn.Sequential(weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)))
    folded = fold(model, IMAGES)
    assert "a forward hook is on '0'" in folded.fold_report.left["1"]
    torch.testing.assert_close(folded(IMAGES), model(IMAGES))
    assert model[0].weight.grad_fn is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_models_are_refused_and_scripted_parts_left(warm):
    inner = warm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    scripted = torch.jit.script(inner)
    with pytest.raises(FoldError, match="fold it before that"):
        fold(scripted, IMAGES)
    model = warm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), scripted))
    folded = fold(model, IMAGES)
    assert [entry.norm for entry in folded.fold_report.folded] == ["1"]


def test_an_example_is_asked_for(warm):
    with pytest.raises(FoldError, match=r"the input size of Small is not known.*example_input"):
        fold(small(warm))
    with pytest.raises(UsageError, match="example_input is a list"):
        fold(small(warm), [IMAGES])
    with pytest.raises(UsageError, match=r"takes a torch\.nn\.Module, not 'diracnet-28-1'"):
        fold("diracnet-28-1")


def test_outputs_that_cannot_be_compared(warm):
    class Wordy(nn.Module):
        def forward(self, x):
            return "cat"

    class Objecting(nn.Module):
        def forward(self, x):
            return x, object()

    class Undefined(nn.Module):
        def forward(self, x):
            return x / 0 - x / 0

    for model, message in ((Wordy(), "returns no tensor"), (Objecting(), "returns a object"), (Undefined(), "is NaN")):
        with pytest.raises(FoldError, match=message):
            fold(model.eval(), IMAGES)


def test_the_probe():
    net = create_model("diracnet-34", width=0.125)
    (images,) = probe_inputs(net)
    assert images.shape == (2, 3, 64, 64)
    assert torch.equal(images, probe_inputs(net)[0])
    assert probe_inputs(create_model("diracnet-16-0.25", image_size=(8, 40)).double())[0].shape == (2, 3, 8, 16)
    assert probe_inputs(net.bfloat16())[0].dtype == torch.bfloat16
    model = nn.Linear(5, 2)
    model.input_size = (5,)
    assert probe_inputs(model)[0].shape == (2, 5)


def test_the_report(warm):
    report = fold(small(warm), IMAGES).fold_report
    assert isinstance(report, FoldReport)
    assert [(entry.layer, entry.kind, entry.norm) for entry in report.folded] == [
        ("dirac", "dirac", None),
        ("dirac", "batch norm", "bn1"),
        ("conv", "batch norm", "bn2"),
    ]
    assert report.left == {"left": "it follows relu; the model's output follows it"}
    assert 0 < report.max_rel_float64 < 1e-13
    assert 0 < report.max_rel < 1e-5
    assert json.loads(json.dumps(dataclasses.asdict(report)))["folded"][1]["norm"] == "bn1"
    text = str(report)
    assert "1 Dirac parameterizations and 2 batch norms" in text
    assert "left        left: it follows relu" in text
    assert "2x4x8x8" in text


def test_convolutions_that_share_their_weight_alone_are_refused_by_name():
    model = nn.Sequential(DiracConv2d(4, 4, 3), nn.ReLU(), DiracConv2d(4, 4, 3)).eval()
    model[2].weight = model[0].weight
    images = torch.randn(1, 4, 8, 8)
    with pytest.raises(UsageError, match="'0' and '2' share their weight but not alpha, beta"):
        fold(model, images)
    model[2].alpha, model[2].beta = model[0].alpha, model[0].beta
    torch.testing.assert_close(fold(model, images)(images), model(images))
