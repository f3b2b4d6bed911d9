"""What is folded and what is left, and why: one small model for each case."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from diracnets.folding.fold import fold
from diracnets.folding.fuse import scale_and_shift
from diracnets.nn.dirac import DiracConv2d

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def conv(channels=4, out=4, kernel=3, **arguments):
    return nn.Conv2d(channels, out, kernel, **arguments)


class Flowing(nn.Module):
    """Named layers, and a forward given as a function of the model and its inputs."""

    def __init__(self, flow, **layers):
        super().__init__()
        self.flow = flow
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.flow(self, x)


def flowing(flow, **layers):
    return lambda: Flowing(flow, **layers)


def line(*layers):
    return lambda: nn.Sequential(*layers)


def positive(channels=4):
    norm = nn.BatchNorm2d(channels)
    norm.keep_positive = True
    return norm


def without_shift(channels=4):
    norm = nn.BatchNorm2d(channels)
    norm.without_shift = True
    return norm


class Shouting(nn.Conv2d):
    """A subclass of which nothing is known."""


FOLDED = {
    "a convolution": (line(conv(), nn.BatchNorm2d(4)), {"1"}),
    "with strides, dilation, groups": (line(conv(out=8, stride=2, dilation=2, groups=2), nn.BatchNorm2d(8)), {"1"}),
    "depthwise": (line(conv(out=8, groups=4, bias=False), nn.BatchNorm2d(8)), {"1"}),
    "that pads": (line(conv(padding=1), nn.BatchNorm2d(4)), {"1"}),
    "a transposed convolution": (line(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), {"1"}),
    "a transposed one in groups": (line(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), {"1"}),
    "a Dirac convolution": (line(DiracConv2d(4, 6, 3), nn.BatchNorm2d(6)), {"1"}),
    "no affine": (line(conv(bias=False), nn.BatchNorm2d(4, affine=False)), {"1"}),
    "momentum None": (line(conv(), nn.BatchNorm2d(4, momentum=None)), {"1"}),
    "synchronized": (line(conv(), nn.SyncBatchNorm(4)), {"1"}),
    "a linear layer": (line(nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6)), {"2"}),
    "before a linear layer": (line(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 6, bias=False)), {"1"}),
    "Dropout and Identity between": (line(conv(), nn.Dropout2d(), nn.Identity(), nn.BatchNorm2d(4)), {"3"}),
    "max-pool between, scales positive": (line(conv(), nn.MaxPool2d(3, 2, 1), positive()), {"2"}),
    "max-pool function between": (
        flowing(lambda m, x: m.norm(F.max_pool2d(m.conv(x), 2)), conv=conv(), norm=positive()),
        {"norm"},
    ),
    "average pool between": (line(conv(), nn.AvgPool2d(3, 2, ceil_mode=True), nn.BatchNorm2d(4)), {"2"}),
    "average pool that does not count its padding": (
        line(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.BatchNorm2d(4)),
        {"2"},
    ),
    "global average pool between": (line(conv(), nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(4)), {"2"}),
    "before a convolution": (line(nn.BatchNorm2d(4), conv(groups=2)), {"0"}),
    "before one that reflects": (line(nn.BatchNorm2d(4), conv(padding=1, padding_mode="reflect")), {"0"}),
    "before one that pads, no shift": (line(without_shift(), conv(padding=1)), {"0"}),
    "before a transposed one, no shift": (line(without_shift(), nn.ConvTranspose2d(4, 6, 3, groups=2)), {"0"}),
    "before two convolutions": (
        flowing(lambda m, x: m.a(y := m.norm(x)) + m.b(y), norm=nn.BatchNorm2d(4), a=conv(), b=conv()),
        {"norm"},
    ),
    "batch norms in a row": (line(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), {"1", "2", "3"}),
    "batch norms alone": (line(nn.ReLU(), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.ReLU()), {"2"}),
    "without affine alone": (line(nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4), nn.ReLU()), {"2"}),
    "shared by two convolutions": (
        flowing(lambda m, x: m.norm(m.a(x)) - m.norm(m.b(x)), norm=nn.BatchNorm2d(4), a=conv(), b=conv()),
        {"norm"},
    ),
    "a convolution used twice, always with it": (
        flowing(lambda m, x: m.norm(m.conv(F.relu(m.norm(m.conv(x))))), conv=conv(padding=1), norm=nn.BatchNorm2d(4)),
        {"norm"},
    ),
    "in branches": (
        flowing(lambda m, x: F.relu(x + m.norm(m.conv(x))), conv=conv(padding=1), norm=nn.BatchNorm2d(4)),
        {"norm"},
    ),
}

LEFT = {
    "ReLU between": (line(conv(), nn.ReLU(), nn.BatchNorm2d(4)), "2", "follows ReLU"),
    "max-pool between, negative scales": (line(conv(), nn.MaxPool2d(2), nn.BatchNorm2d(4)), "2", "scales are negative"),
    "average pool that counts its padding": (
        line(conv(), nn.AvgPool2d(3, 2, 1), nn.BatchNorm2d(4)),
        "2",
        "averages its padding",
    ),
    "average pool with another divisor": (
        line(conv(), nn.AvgPool2d(2, divisor_override=3), nn.BatchNorm2d(4)),
        "2",
        "divides by another",
    ),
    "before a convolution that pads": (line(nn.BatchNorm2d(4), conv(padding=1)), "0", "pads its input"),
    "before one that pads to the same size": (line(nn.BatchNorm2d(4), conv(padding="same")), "0", "pads its input"),
    "before a transposed one": (
        line(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)),
        "0",
        "a shift cannot be moved past padding",
    ),
    "the convolution's output goes elsewhere": (
        flowing(lambda m, x: (y := m.conv(x)) + m.norm(y), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "also used elsewhere",
    ),
    "the convolution's output is changed in place": (
        flowing(lambda m, x: (F.relu_(y := m.conv(x)), m.norm(y))[1], conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "also used elsewhere",
    ),
    "the input is changed in place": (
        flowing(lambda m, x: m.conv((m.norm(y := x + 1), y.mul_(2))[0]), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "in place",
    ),
    "a convolution used twice, once without it": (
        flowing(lambda m, x: m.conv(F.relu(m.norm(m.conv(x)))), conv=conv(padding=1), norm=nn.BatchNorm2d(4)),
        "norm",
        "also called where",
    ),
    "shared, one use cannot be folded": (
        flowing(lambda m, x: m.norm(m.conv(x)) + m.norm(F.relu(x)), conv=conv(padding=1), norm=nn.BatchNorm2d(4)),
        "norm",
        "follows relu",
    ),
    "twice in a row": (
        flowing(lambda m, x: m.norm(m.norm(m.conv(x))), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "follows BatchNorm2d",
    ),
    "two follow one convolution": (
        flowing(lambda m, x: m.a(y := m.conv(x)) + m.b(y), conv=conv(), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4)),
        "a",
        "also used elsewhere",
    ),
    "never called": (flowing(lambda m, x: m.conv(x), conv=conv(), norm=nn.BatchNorm2d(4)), "norm", "never calls it"),
    "its parameters are used": (
        flowing(lambda m, x: m.norm(m.conv(x)) + m.conv.weight.sum(), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "directly",
    ),
    "a linear layer on more dimensions": (line(nn.Linear(8, 4), nn.BatchNorm2d(4)), "1", "4 dimensions instead of 2"),
    "channels that are pooled": (
        line(nn.Flatten(), nn.Linear(256, 8), nn.MaxPool1d(2), nn.BatchNorm1d(4)),
        "3",
        "may pool over channels",
    ),
    "an unknown subclass": (line(Shouting(4, 4, 3), nn.BatchNorm2d(4)), "1", "follows Shouting"),
    "a parametrized convolution": (
        lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.BatchNorm2d(4)),
        "1",
        "follows ParametrizedConv2d",
    ),
    "a pruned convolution": (
        lambda: nn.Sequential(prune.l1_unstructured(conv(), "weight", 0.5), nn.BatchNorm2d(4)),
        "1",
        "a forward hook is on '0'",
    ),
    "a pruned batch norm": (
        lambda: nn.Sequential(conv(), prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 0.5)),
        "1",
        "a forward hook is on '1'",
    ),
    "its weight is read through the module's dictionaries": (
        flowing(lambda m, x: m.norm(m.conv(x)) * m._modules["conv"].weight.sum(), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "directly",
    ),
    "a decoder tied to it": (
        flowing(lambda m, x: F.conv_transpose2d(m.norm(m.conv(x)), m.conv.weight), conv=conv(), norm=nn.BatchNorm2d(4)),
        "norm",
        "directly",
    ),
    "an instance norm": (line(conv(), nn.InstanceNorm2d(4, affine=True)), "1", "statistics from each input"),
    "a group norm": (line(conv(), nn.GroupNorm(2, 4)), "1", "statistics from each input"),
}


def warmed(warm, make):
    torch.manual_seed(0)
    model = warm(make())
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "keep_positive"):
                module.weight.abs_()
            if hasattr(module, "without_shift"):
                module.running_mean.zero_()
                module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d) and module.affine and not hasattr(module, "keep_positive"):
                module.weight[0] = -module.weight[0].abs()
    return model


def check_equal(folded, model, images=IMAGES):
    with torch.no_grad():
        torch.testing.assert_close(folded(images.clone()), model(images.clone()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case, warm):
    make, norms = FOLDED[case]
    model = warmed(warm, make)
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert {entry.norm for entry in folded.fold_report.folded} - {None} == norms
    left = {name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__} - norms
    assert folded.fold_report.left.keys() == left


@pytest.mark.parametrize("case", LEFT)
def test_left_with_a_reason(case, warm):
    make, name, reason = LEFT[case]
    model = warmed(warm, make)
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert reason in folded.fold_report.left[name]
    assert name not in {entry.norm for entry in folded.fold_report.folded}


def test_tied_weights_stay_tied(warm):
    model = nn.Sequential(conv(padding=1), nn.BatchNorm2d(4), conv(padding=1))
    model[2].weight = model[0].weight
    folded = fold(warm(model), IMAGES)
    assert folded[0].weight is folded[2].weight
    assert "shares its parameters with '2'" in folded.fold_report.left["1"]


def test_layers_under_two_names_and_in_plain_lists_are_replaced_everywhere(warm):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.alias, self.relu = self.conv, nn.ReLU()
            self.order = [self.conv, self.norm, self.relu]

        def forward(self, x):
            for layer in self.order:
                x = layer(x)
            return x - 1

    model = warm(Listed())
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert type(folded.conv) is nn.Conv2d
    assert folded.conv is folded.alias is folded.order[0]
    assert type(folded.norm) is type(folded.order[1]) is nn.Identity


def test_what_depends_on_data_is_opaque_and_the_rest_is_folded(warm):
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.dirac, self.norm = DiracConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.dirac(x)) if x.sum() > 0 else x

    model = warm(nn.Sequential(conv(), nn.BatchNorm2d(4), Choosing()))
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    check_equal(folded, model, -IMAGES)
    assert {entry.norm for entry in folded.fold_report.folded} == {None, "1"}
    assert "'2' cannot be traced: TraceError" in folded.fold_report.left["2.norm"]
    assert type(folded[2].dirac) is nn.Conv2d

    alone = fold(warm(Choosing()), IMAGES)
    assert [(entry.layer, entry.kind) for entry in alone.fold_report.folded] == [("dirac", "dirac")]
    assert "the model cannot be traced: TraceError" in alone.fold_report.left["norm"]


def test_all_ways_through_flags_are_considered(warm):
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.second, self.last = conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)

        def forward(self, x, features=False, mask=None):
            x = self.conv(x)
            if features:
                return x
            x = self.last(self.second(self.norm(x)))
            return x if mask is None else x * mask

    model = warm(Flagged())
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    with torch.no_grad():
        assert torch.equal(folded(IMAGES, features=True), model(IMAGES, features=True))
    assert {entry.norm for entry in folded.fold_report.folded} == {"last", "norm"}
    assert {entry.layer for entry in folded.fold_report.folded} == {"second"}


def test_arguments_that_may_be_missing_are_considered_given_too(warm):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def forward(self, x, mask=None):
            x = self.conv(x)
            return self.norm(x if mask is None else x * mask)

    model = warm(Masked())
    folded = fold(model, IMAGES)
    assert "follows mul" in folded.fold_report.left["norm"]
    with torch.no_grad():
        assert torch.equal(folded(IMAGES, torch.tensor(2.0)), model(IMAGES, torch.tensor(2.0)))


def test_a_hook_on_the_model_keeps_the_model(warm):
    model = warm(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert not folded.fold_report.chain
    assert [entry.norm for entry in folded.fold_report.folded] == ["1"]


def test_forward_hooks_are_kept_and_see_what_they_saw(warm):
    model = nn.Sequential(nn.Sequential(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)), conv(), nn.BatchNorm2d(4), nn.ReLU())
    seen = []
    for layer in (model[0], model[0][0], model[1]):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    warm(model)
    folded = fold(model, IMAGES)
    report = folded.fold_report
    assert "a forward hook is on '0.0'" in report.left["0.1"]
    assert "a forward hook is on '1'" in report.left["2"]
    seen.clear()
    check_equal(folded, model)
    assert len(seen) == 6
    for ours, theirs in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_part_with_a_hook_is_folded_inside(warm):
    model = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()), conv())
    outputs = []
    model[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    folded = fold(warm(model), IMAGES)
    check_equal(folded, model)
    assert [(entry.layer, entry.norm) for entry in folded.fold_report.folded] == [("0.0", "0.1")]
    torch.testing.assert_close(outputs[-2], outputs[-1], rtol=1e-4, atol=1e-5)


class VGG(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.features = nn.Sequential(
            *(conv(padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(conv(out=6, bias=False), nn.BatchNorm2d(6)),
        )
        self.dropout = nn.Dropout()
        self.head = head
        self.classifier = nn.Linear(6 if "average" in head.__name__ else 24, 3)

    def forward(self, x):
        return self.classifier(self.dropout(self.head(F.relu(self.features(x)))))


def flatten_function(x):
    return torch.flatten(x, 1)


def flatten_method(x):
    return x.flatten(start_dim=1)


def view_size(x):
    return x.view(x.size(0), -1)


def reshape_shape(x):
    x = x.contiguous()
    return x.reshape((x.shape[0], -1))


def view_size_item(x):
    return x.view(x.size()[0], -1)


def average_mean(x):
    return x.mean((2, 3))


def average_mean_kept(x):
    return torch.flatten(torch.mean(x, dim=[2, 3], keepdim=True), 1)


def average_function(x):
    return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)


HEADS = (
    *(flatten_function, flatten_method, view_size, view_size_item, reshape_shape),
    *(average_mean, average_mean_kept, average_function),
)


@pytest.mark.parametrize("head", HEADS)
def test_a_straight_line_becomes_a_flat_chain(head, warm):
    model = warm(VGG(head))
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert type(folded) is nn.Sequential
    assert folded.fold_report.chain
    kinds = [type(layer).__name__ for layer in folded]
    assert kinds[:5] == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU"]
    assert kinds[-2:] == ["Flatten", "Linear"]
    assert all(type(layer).__module__.startswith("torch.nn.modules") for layer in folded)


@pytest.mark.parametrize("head", [lambda x: x.view(-1, 24), lambda x: torch.cat([x.flatten(1)])])
def test_what_no_module_does_keeps_the_model(head, warm):
    model = warm(VGG(head))
    folded = fold(model, IMAGES)
    check_equal(folded, model)
    assert type(folded) is VGG
    assert not folded.fold_report.chain
    assert type(folded.features[1]) is nn.Identity


def test_the_scales_of_a_batch_norm(warm):
    norm = warm(nn.BatchNorm2d(4))
    scale, shift = scale_and_shift(norm)
    with torch.no_grad():
        torch.testing.assert_close(IMAGES * scale[:, None, None] + shift[:, None, None], norm(IMAGES))
