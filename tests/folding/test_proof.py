"""The check of a fold: what it runs on, in which precision, and that rounding errors are told from wrong folds."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from diracnets.errors import FoldError, UsageError
from diracnets.folding import fuse
from diracnets.folding.difference import Run, compare, first_difference, run
from diracnets.folding.fold import fold
from diracnets.folding.probe import in_float64, other_inputs
from diracnets.folding.proof import Witness
from diracnets.folding.tree import layout_of, leaves, mapped
from diracnets.models.build import build_model

IMAGES = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.before, self.after = before, after
        self.blur = torch.ones(4, 1, 3, 3) / 9

    def forward(self, x):
        return self.after(self.norm(self.conv(self.before(x))))


class Blurred(Net):
    def forward(self, x):
        return F.conv2d(self.norm(self.conv(x)), self.blur, groups=4)


def half_conv(warm):
    model = warm(Net(lambda x: x.bfloat16()))
    model.conv.bfloat16()
    model.norm.bfloat16()
    return model


NOT_IN_FLOAT64 = {
    "bytes": (lambda warm: warm(Net(lambda x: x.float() / 255)), (255 * IMAGES).byte()),
    "a cast": (lambda warm: warm(Net(lambda x: x.to(torch.float32))), IMAGES),
    "a constant": (lambda warm: warm(Blurred()), IMAGES),
    "made inside": (lambda warm: warm(Net(after=lambda x: x @ torch.ones(6, 6))), IMAGES),
    "mixed": (half_conv, IMAGES),
}


@pytest.mark.parametrize("case", NOT_IN_FLOAT64)
def test_what_does_not_run_in_float64_is_checked_in_its_own_dtype(case, warm, monkeypatch):
    make, probe = NOT_IN_FLOAT64[case]
    model = make(warm)
    report = fold(model, probe).fold_report
    assert [entry.norm for entry in report.folded] == ["norm"]
    assert report.max_abs_float64 is report.max_rel_float64 is None
    assert any("float64" in note and "checked only in its own dtype" in note for note in report.notes)
    assert "  float64" not in str(report)
    json.loads(json.dumps(dataclasses.asdict(report)), parse_constant=pytest.fail)
    right = fuse.scale_outputs
    wrong = 2.0 if case == "mixed" else 1 + 1e-4
    monkeypatch.setattr(fuse, "scale_outputs", lambda w, b, scale, shift, **kw: right(w, b, wrong * scale, shift, **kw))
    with pytest.raises(FoldError, match="first layer to differ is 'norm', with 'conv'"):
        fold(model, probe)


def test_a_cast_that_float64_survives(warm):
    for after in (lambda x: x.float(), lambda x: x.float().double()):
        report = fold(warm(Net(after=after)).double(), IMAGES.double()).fold_report
        assert [entry.norm for entry in report.folded] == ["norm"]
    assert fold(warm(Net(after=lambda x: x.half())), IMAGES).fold_report.notes


class Body(nn.Sequential):
    """As deep as to show rounding in whole numbers."""

    def __init__(self, end):
        layers = [(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()) for _ in range(6)]
        super().__init__(*(layer for three in layers for layer in three), nn.Conv2d(4, 4, 1))
        self.end = end

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return self.end(x)


WHOLE = {
    "bytes": lambda y: (y.sigmoid() * 255).round().to(torch.uint8),
    "an order": lambda y: y.flatten(1).argsort(1),
    "classes": lambda y: y.argmax(1),
    "a mask": lambda y: y > 0,
    "a structure": lambda y: {"class": y.argmax(1), "order": [y.argsort(1)]},
}


@pytest.mark.parametrize("end", WHOLE)
def test_whole_numbers_are_compared_by_what_they_come_from(end, warm, monkeypatch):
    torch.manual_seed(0)
    model = warm(Body(WHOLE[end]))
    images = torch.randn(2, 4, 32, 32)
    report = fold(model, images).fold_report
    assert len([entry for entry in report.folded if entry.norm]) == 6
    assert 0 < report.max_rel < 1e-4
    assert 0 < report.max_rel_float64 < 1e-12
    right = fuse.scale_outputs
    monkeypatch.setattr(fuse, "scale_outputs", lambda w, b, s, shift, **kw: right(w, b, s, shift + 1e-5, **kw))
    with pytest.raises(FoldError, match="first layer to differ is '1', with '0'"):
        fold(model, images)


def test_whole_numbers_that_rounding_changes_are_counted(warm):
    torch.manual_seed(0)
    model = warm(Body(WHOLE["an order"]))
    report = fold(model, torch.randn(2, 4, 96, 96)).fold_report
    assert any("integers of its output differ, where rounding decides" in note for note in report.notes)


def test_whole_numbers_that_nothing_explains():
    a, b = Run(torch.tensor([1, 2])), Run(torch.tensor([1, 3]))
    assert compare(a, a).relative == 0
    assert compare(a, b).relative == float("inf")
    assert compare(a, Run(torch.tensor([1.0, 2.0]))).relative == float("inf")
    assert compare(Run((torch.ones(2), a.output)), Run((torch.ones(2), b.output))).unequal == 1


class Wave(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def chaos(depth, gain):
    """Amplifies what rounding changes in each layer."""
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), Wave()]
        nn.init.constant_(layers[-2].weight, gain)
        nn.init.normal_(layers[-2].bias)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("depth", [8, 24])
def test_a_network_that_amplifies_rounding_errors_is_no_wrong_fold(depth, monkeypatch):
    model = chaos(depth, 20.0)
    report = fold(model, IMAGES).fold_report
    assert len(report.folded) == depth
    (note,) = (note for note in report.notes if "rounding errors" in note)
    assert "each layer was also compared" in note
    if depth == 24:
        assert report.max_rel_float64 > 1e-3
    right = fuse.scale_outputs
    calls = iter(range(1000))

    def wrong_at_the_sixth(weight, bias, scale, shift, **arguments):
        return right(weight, bias, scale * (1 + 1e-7 * (next(calls) == 5)), shift, **arguments)

    monkeypatch.setattr(fuse, "scale_outputs", wrong_at_the_sixth)
    with pytest.raises(FoldError, match=r"first layer to differ is '16', with '15', by 1\.0e-07 of its largest"):
        fold(model, IMAGES)


def test_wrong_rounding_in_a_network_that_amplifies_it_is_caught(monkeypatch):
    import diracnets.folding.fold as fold_module

    def careless(layer, original, name):
        layer = right(layer, original, name)
        if name == "15":
            layer.weight.data.mul_(1 + 1e-4)
        return layer

    right = fold_module.as_in
    monkeypatch.setattr(fold_module, "as_in", careless)
    with pytest.raises(FoldError, match="first layer to differ is '16', with '15'"):
        fold(chaos(24, 20.0), IMAGES)


def test_a_deep_network_whose_signal_dies_out_folds():
    torch.manual_seed(0)
    report = fold(build_model("plain-100-0.25").eval()).fold_report
    assert len(report.folded) == 97
    assert report.chain


def test_layers_that_are_zero_up_to_rounding(warm, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1))
    model += nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    warm(model).double()
    with torch.no_grad():
        for index in (0, 3):  # each output is the difference of two that are the same
            model[index].weight[:] = 1.0
            model[index].bias.zero_()
        model[1].weight.fill_(1.0)
        model[1].bias.copy_(model[1].running_mean / (model[1].running_var + model[1].eps).sqrt())
        model[1].running_var.fill_(1.0)
        model[1].bias.copy_(model[1].running_mean / (1 + model[1].eps) ** 0.5)
        model[2].weight.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1, 1).expand(4, 4, 1, 1))
    report = fold(model, IMAGES.double()).fold_report
    assert len(report.folded) == 3


class Alike(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True).expand_as(x).round()


def test_a_layer_that_is_exactly_zero_until_it_is_folded(monkeypatch):
    model = nn.Sequential(Alike(), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():  # whole numbers cancel without rounding; multiplied by the scale of the norm they do not
        filters = torch.randint(-8, 8, (4, 2), generator=torch.Generator().manual_seed(0)).float()
        model[1].weight.copy_(torch.cat([filters, -filters.sum(1, keepdim=True)], 1)[..., None, None])
        model[2].weight.copy_(torch.tensor([0.3, -0.7, 1.1, 0.9]))
    images = 100 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert not model[:3](images).any()
    assert not fold(model, images).fold_report.left
    right = fuse.scale_outputs

    def wrong(weight, bias, scale, shift, **arguments):
        return right(weight, bias, scale, shift + 1e-9, **arguments)

    monkeypatch.setattr(fuse, "scale_outputs", wrong)
    with pytest.raises(FoldError, match="the first layer to differ is '2', with '1', which was zero"):
        fold(model, images)


def test_the_other_batch_shows_what_the_given_one_hides(warm):
    class Hiding(Net):
        def forward(self, x):
            y = self.norm(self.conv(x))
            return torch.where(x.abs().amax() > 1, y * len(self.state_dict()), y)

    with pytest.raises(FoldError, match="though all layers agree"):
        fold(warm(Hiding()), IMAGES)


def test_other_inputs():
    index, image = torch.tensor([3, 1]), torch.rand(1, 3, 6, 4)
    shapes = [tuple(each.shape for each in leaves(inputs)) for inputs in other_inputs(({"a": image}, index))]
    assert shapes[0] == ((2, 3, 8, 5), (2,))
    assert shapes[-1] == (image.shape, (2,))
    (first, *_) = other_inputs((image, (255 * image).byte()))
    assert first[0].min() < 0
    assert first[1].dtype == torch.uint8
    batches = [inputs[0].shape for inputs in other_inputs((torch.rand(5, 7),))]
    assert set(batches) == {(1, 7), (5, 7)}


def test_the_report_names_the_other_batch(warm):
    report = fold(warm(Net()), IMAGES).fold_report
    assert report.other_probe == ((1, 4, 10, 10),)
    assert "checked on  2x4x8x8, and on 1x4x10x10 of another range" in str(report)
    fixed = warm(nn.Sequential(Net(), nn.Flatten(), nn.Linear(144, 3)))
    assert fold(fixed, IMAGES).fold_report.other_probe == ((1, 4, 8, 8),)
    picky = Net(before=lambda x: torch.log(1.5 - x.abs()))  # of [0, 1.5) alone
    assert fold(warm(picky), IMAGES).fold_report.other_probe == ()


class Passing(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *arguments, **named):
        return self.net(*arguments, **named)


class PassingPositional(Passing):
    def forward(self, *arguments):
        """Says so."""
        return self.net(*arguments)


WRAPPERS = {
    "averaged": AveragedModel,
    "data parallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "of any class": Passing,
    "positional": PassingPositional,
    "twice": lambda net: AveragedModel(nn.DataParallel(net)),
}


class Scaling(Passing):
    def forward(self, *arguments):
        return 2 * self.net(*arguments)


@pytest.mark.parametrize(
    "wrap", [*WRAPPERS.values(), Passing, PassingPositional], ids=[*WRAPPERS, "class", "positional"]
)
def test_wrappers_are_taken_off(wrap, warm):
    net = warm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    folded = fold(wrap(net).eval(), IMAGES)
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.ReLU]
    assert folded.fold_report.folded[0].norm == "1"
    torch.testing.assert_close(folded(IMAGES), net(IMAGES))
    inner = warm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    around = nn.Sequential(Passing(inner) if wrap is WRAPPERS["compiled"] else wrap(inner), nn.ReLU()).eval()
    folded = fold(around, IMAGES)
    assert len(folded.fold_report.folded) == 1
    torch.testing.assert_close(folded(IMAGES), around(IMAGES))


def test_wrappers_in_place(warm):
    wrapped = AveragedModel(warm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))).eval()
    expected = wrapped(IMAGES).detach()
    assert fold(wrapped, IMAGES, inplace=True) is wrapped
    assert type(wrapped.module[1]) is nn.Identity
    torch.testing.assert_close(wrapped(IMAGES), expected)
    net = torch.compile(warm(nn.Conv2d(4, 4, 1)), backend="eager")
    with pytest.raises(FoldError, match="fold it before that"):
        fold(net, IMAGES, inplace=True)


def test_what_does_more_than_pass_on_is_no_wrapper(warm):
    model = warm(Scaling(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))
    folded = fold(model, IMAGES)
    torch.testing.assert_close(folded(IMAGES), model(IMAGES))
    assert type(folded) is Scaling
    hooked = Passing(warm(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))).eval()
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    folded = fold(hooked, IMAGES)
    assert [entry.norm for entry in folded.fold_report.folded] == ["net.1"]
    torch.testing.assert_close(folded(IMAGES), hooked(IMAGES))


def test_a_list_is_an_argument_in_a_tuple():
    with pytest.raises(UsageError, match=r"a list; .*\(example,\) for a single one of another type"):
        fold(nn.Identity().eval(), [IMAGES])


def test_records():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)).eval()
    first = run(model, (IMAGES,), "the model", keep=True)
    assert [record.name for record in first.records] == ["0", "1"]
    given = {"0": [torch.full_like(first.kept["0"][0], -1.0)]}
    second = run(model, (IMAGES,), "the model", given=given)
    assert not second.output.any()
    assert given["0"][0].max() == -1  # a layer that works in place does not change it
    assert first_difference(first.records, second.records, 1e-6) is not None
    assert first_difference(first.records, second.records, 1e-6, ("1",)) is None
    witness = Witness(in_float64(model), (IMAGES.double(),), "the model")
    assert witness.eps == torch.finfo(torch.float64).eps
    assert (
        Witness(model.bfloat16(), (IMAGES.bfloat16(),), "the model").tolerance == 16 * torch.finfo(torch.bfloat16).eps
    )


def test_structures():
    value = {"a": [1, (2, None)], "b": torch.Size([3])}
    assert leaves(value) == [1, 2, None, 3]
    assert mapped(lambda leaf: leaf and leaf + 1, value) == {"a": [2, (3, None)], "b": torch.Size([4])}
    assert layout_of(value) == layout_of({"a": [0, ("x", 0)], "b": torch.Size([4])})
    assert layout_of([1]) != layout_of((1,))
    assert layout_of({"a": 1}) != layout_of({"b": 1})
