"""Initialization: what is drawn and set, what overrides what, and that a signal passes through many blocks."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diracnets import Init, create_model
from diracnets.errors import UsageError
from diracnets.models.build import build_model
from diracnets.models.init import upgraded
from diracnets.models.initializer import DEEP_BIAS, MOST_BETA, carriers, deep, paper, resolved
from diracnets.models.names import parse
from diracnets.nn.dirac import DiracConv2d


def norms(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}


def initialized(net):
    """What a network's tensors say of its initialization: std of the filters, alpha, beta, biases, scales."""
    convs = [module for module in net.groups.modules() if isinstance(module, nn.Conv2d)]
    filters = torch.cat([conv.weight.flatten() for conv in convs])
    scales = [(conv.alpha, conv.beta) for conv in convs if isinstance(conv, DiracConv2d)]
    alphas, betas = ({round(x, 4) for tensor in each for x in tensor.tolist()} for each in zip(*scales, strict=True))
    biases = {round(x, 4) for norm in norms(net).values() for x in norm.bias.tolist()}
    return (
        filters.std().item(),
        alphas,
        betas,
        biases,
        {x for norm in norms(net).values() for x in norm.weight.tolist()},
    )


def test_the_papers_is_the_default():
    torch.manual_seed(0)
    std, alphas, betas, biases, scales = initialized(create_model("diracnet-16-1"))
    assert std == pytest.approx(1, abs=0.02)
    assert (alphas, betas, biases) == ({1.0}, {0.1}, {0.0})
    assert len(scales) > 100
    assert 0 <= min(scales) < 0.1 < 0.9 < max(scales) <= 1


def test_deep_goes_by_the_number_of_blocks():
    torch.manual_seed(0)
    std, alphas, betas, biases, scales = initialized(create_model("diracnet-52-0.5", init="deep"))
    expected = deep(48)
    assert std < 0.3
    assert (alphas, betas, scales) == ({1.0}, {round(expected.beta, 4)}, {1.0})
    assert biases == {round(expected.bias, 4), 0.0}  # 0 before the classifier


def test_of_two_channels_one_carries_and_one_works():
    blocks = [block for group in create_model("diracnet-52-0.5", init="carriers").groups for block in group]
    own = carriers(48)
    assert own.beta == pytest.approx(0.2)
    for block in blocks:
        block.conv.reset_parameters()
        for scales, expected in ((block.conv.alpha, [1.0, 0.1]), (block.conv.beta, [own.beta, 1.0])):
            torch.testing.assert_close(scales.detach().view(-1, 2).unique(dim=0), torch.tensor([expected]))
    biases = [block.bn.bias.detach().view(-1, 2).unique(dim=0).tolist() for block in blocks]
    assert biases == [[[1.5, 0.0]]] * 47 + [[[0.0, 0.0]]]  # 0 before the classifier, where 1.5 is too much
    assert carriers(996).beta == pytest.approx(20 / 996)


def test_carriers_need_identities():
    for name in ("plain-16-0.5", "wrn-16-0.5", "resnet-18"):
        with pytest.raises(UsageError, match="this network has none"):
            build_model(name, init="carriers", device="meta")


def test_scales_for_each_filter_are_as_many():
    assert DiracConv2d(2, 3, 3, alpha=(1, 2, 3)).alpha.tolist() == [1, 2, 3]
    assert DiracConv2d(2, 3, 3, alpha=torch.tensor(2.0), device="meta").alpha.shape == (3,)
    assert DiracConv2d(2, 3, 3, beta=torch.tensor(2.0)).beta.tolist() == [2, 2, 2]
    with pytest.raises(UsageError, match=r"shape \(2,\) are given for 3 filters"):
        DiracConv2d(2, 3, 3, beta=(1, 2))


def test_what_is_given_counts_instead_of_the_schemes_own():
    torch.manual_seed(0)
    net = create_model("diracnet-16-1", init=Init("deep", filters=0.01, alpha=0.5, beta=0.25, bias=-1.5))
    std, alphas, betas, biases, scales = initialized(net)
    assert std == pytest.approx(0.01, rel=0.02)
    assert (alphas, betas, biases, scales) == ({0.5}, {0.25}, {-1.5, 0.0}, {1.0})
    twin = create_model(**net.config)
    assert twin.config == net.config
    assert initialized(twin)[1:] == initialized(net)[1:]


@pytest.mark.parametrize("name", ["plain-10-0.25", "wrn-10-0.25", "dirac-wrn-10-0.25", "resnet-20", "vgg-16"])
@pytest.mark.parametrize("bias", [0.125, -2.0])
def test_all_norms_before_a_relu_are_shifted_the_one_before_the_classifier_only_a_little(name, bias):
    net = create_model(name, init=Init(bias=bias))
    *others, last = (set(norm.bias.tolist()) for norm in norms(net).values())
    assert last == {bias if abs(bias) <= 4 / math.sqrt(net.num_features) else 0.0}
    assert all(biases == {bias} for biases in others)


@pytest.mark.parametrize(("name", "size"), [("resnet-18", {"width": 0.125}), ("repvgg-10-0.25", {})])
def test_what_is_added_before_a_relu_is_shifted_once(name, size):
    net = create_model(name, init=Init(bias=0.75), **size)  # not too much for 16 channels before the classifier
    shifted = {key for key, norm in norms(net).items() if norm.bias[0] == 0.75}
    others = norms(net).keys() - shifted
    assert all(key.endswith((".bn1", ".bn3", "stem.bn")) for key in shifted)
    ends = (".bn2", "shortcut.bn") if name == "resnet-18" else (".bn1", ".identity")
    assert others
    assert all(key.endswith(ends) and not norms(net)[key].bias.any() for key in others)


@pytest.mark.parametrize("blocks", [1, 12, 24, 48, 96, 396, 996, 10**9])
def test_deep_has_the_same_bias_and_a_beta_that_falls_with_depth(blocks):
    init, twice = deep(blocks), deep(2 * blocks)
    assert 0 < twice.beta <= init.beta <= MOST_BETA
    if init.beta < MOST_BETA:
        assert init.beta * blocks == pytest.approx(twice.beta * 2 * blocks)
    assert deep(blocks, dirac=False).bias == init.bias == twice.bias == DEEP_BIAS


@torch.no_grad()
def test_what_one_relu_has_cut_off_the_next_ones_let_pass():
    """Why one bias suits any depth: between identities, batch norms and ReLUs soon change nothing more."""
    torch.manual_seed(0)
    lost = []
    x = torch.randn(200_000, dtype=torch.float64) + DEEP_BIAS
    for _ in range(300):
        cut = x.relu()
        lost.append((cut - x).square().mean().item())
        x = (cut - cut.mean()) / cut.std() + DEEP_BIAS
    assert lost[0] == pytest.approx(0.0753, rel=0.05)
    assert sum(lost[1:]) < lost[0]
    assert lost[-1] < 1e-5


@torch.no_grad()
def test_deep_keeps_what_tells_images_apart():
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    left = {}
    for init in ("paper", "deep"):
        net = create_model("diracnet-202-0.5", image_size=8, init=init)
        x = net.stem(images)
        before = x
        for block in net.groups[0]:
            x = block(x)
        both = [(y - y.mean(0)).flatten(1) for y in (before, x)]  # differences between the images
        left[init] = nn.functional.cosine_similarity(*both).mean().item()
    assert left["paper"] < 0.2
    assert left["deep"] > 0.4


@pytest.mark.parametrize("name", ["diracnet-16-0.5", "plain-16-0.5", "repvgg-16-0.5", "wrn-16-0.5"])
@torch.no_grad()
def test_what_the_classifier_gets_is_no_larger_where_relus_are_shifted(name):
    """The mean of its input, which all images share, sets the largest rate at which it is stable (docs/depth.md)."""
    torch.manual_seed(0)
    net = create_model(name, num_classes=0, init=Init("deep", bias=2.55))
    mean = net(torch.randn(64, 3, 32, 32)).mean(0)
    assert mean.square().mean() < 0.7  # 6.5 with the shift


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "shallow"}, "init is 'shallow'; choose one of paper, deep, kaiming"),
        ({"init": "dep"}, "did you mean deep"),
        ({"init": {"scheme": "deep", "gamma": 1.0}}, "init has no 'gamma'"),
        ({"init": lambda: Init(filters=0.0)}, "filters are 0.0"),
        ({"init": lambda: Init(filters=math.nan)}, "filters are nan"),
        ({"init": lambda: Init(filters=True)}, "filters are True"),
        ({"init": lambda: Init(bias=math.inf)}, "bias is inf"),
        ({"init": lambda: Init(alpha="1")}, "alpha is '1'"),
        ({"name": "plain-16-1", "init": lambda: Init(alpha=1.0)}, "alpha is 1.0, but this network has no Dirac"),
        ({"name": "wrn-16-1", "init": lambda: Init("deep", beta=0.1)}, "beta is 0.1, but this network has no Dirac"),
    ],
)
def test_what_is_no_initialization_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        create_model(
            **{
                "name": "diracnet-16-0.25",
                **{key: value() if callable(value) else value for key, value in arguments.items()},
            }
        )


def test_each_scheme_is_resolved_to_its_values():
    assert resolved(Init(), 24, True, scale="uniform") == paper(dirac=True)
    assert resolved(Init("deep"), 24, False, scale=1.0) == deep(24, dirac=False)
    assert resolved(Init("kaiming"), 24, True, scale=1.0) == replace(paper(dirac=True, scale=1.0), filters="kaiming")
    assert resolved(Init("deep", 0.1, 2.0, 3.0, 4.0), 24, True, 1.0) == replace(
        deep(24), filters=0.1, alpha=2.0, beta=3.0, bias=4.0
    )
    with pytest.raises(UsageError, match="blocks is 0"):
        deep(0)


@pytest.mark.parametrize("init", [Init(), Init("kaiming"), Init("deep", filters=0.5, alpha=0.0, beta=-1.0, bias=2.0)])
def test_a_networks_config_holds_plain_values_that_make_it_again(init):
    net = create_model("diracnet-16-0.25", init=init)
    config = json.loads(json.dumps(net.config))
    assert upgraded(config) == config
    assert Init.of(config["init"]) == init
    assert create_model(**config).config == net.config


OLD = [
    ({"start": "deep"}, Init("deep")),
    ({"start": "deep", "init": "kaiming", "bias": 0.5}, Init("deep", filters="kaiming", bias=0.5)),
    ({"start": "paper", "init": "kaiming"}, Init("kaiming")),
    ({"init": "normal"}, Init(filters="normal")),
    ({"init": 0.25}, Init(filters=0.25)),
    ({"alpha": 0.0, "beta": 1.0}, Init(alpha=0.0, beta=1.0)),
    ({"bias": 0.5}, Init(bias=0.5)),
    ({"init": "kaiming", "alpha": 2.0}, Init("kaiming", alpha=2.0)),
]


@pytest.mark.parametrize(("arguments", "init"), OLD)
def test_arguments_of_earlier_versions_are_taken_with_a_warning(arguments, init):
    with pytest.warns(DeprecationWarning, match="parts of init now") as warned:
        net = create_model("diracnet-10-0.25", **arguments)
    assert len(warned) == 1
    assert net.config["init"] == init.to_data()
    with pytest.warns(DeprecationWarning, match="parts of init now"):
        assert build_model("diracnet-10-0.25", **arguments).config["init"] == init.to_data()


def test_the_warning_says_what_to_write_instead_and_where():
    with pytest.warns(DeprecationWarning, match=r"init=Init\(scheme='deep', bias=0.5\)") as warned:
        create_model("diracnet-10-0.25", start="deep", bias=0.5)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(("config", "init"), [*OLD, ({"init": "kaiming"}, Init("kaiming")), ({}, Init())])
def test_what_earlier_versions_wrote_is_upgraded_without_a_warning(config, init):
    nothing = dict.fromkeys(("start", "init", "alpha", "beta", "bias")) if config else {}
    assert upgraded({"name": "diracnet-10-0.25", **nothing, **config}) == {
        "name": "diracnet-10-0.25",
        "init": init.to_data(),
    }


@pytest.mark.parametrize("scheme", ["deep", "carriers"])
def test_a_plain_network_can_be_initialized_to_what_the_dirac_network_computes(warm, scheme):
    """All that is left between the two is what training makes of their parameters."""
    made = []
    for name in ("plain-16-0.5", "diracnet-16-0.5"):
        torch.manual_seed(3)
        made.append(create_model(name, init=Init(scheme, alpha=1.0, beta=0.3)).eval())
    plain, dirac = made
    assert not any(isinstance(module, DiracConv2d) for module in plain.modules())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(plain(images), dirac(images), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("bias", "correlation"), [(0.0, 0.09), (1.0, 0.94)])
def test_the_page_on_depth_says_what_relus_between_identities_leave(bias, correlation):
    text = " ".join((Path(__file__).parents[2] / "docs" / "depth.md").read_text().split())
    assert "is still 0.94, where it is 0.09 without a bias" in text
    torch.manual_seed(0)
    first = x = torch.randn(50_000, dtype=torch.float64) + bias
    for _ in range(1000):
        cut = x.relu()
        x = (cut - cut.mean()) / cut.std() + bias
    assert torch.corrcoef(torch.stack([x, first]))[0, 1].item() == pytest.approx(correlation, abs=0.02)


def test_the_page_on_depth_has_the_numbers_of_the_formulas():
    text = " ".join((Path(__file__).parents[2] / "docs" / "depth.md").read_text().split())
    (sentence,) = re.findall(r"that is (beta [\d.]+ at 28 layers.*? at 1,000)\. ", text)
    found = re.findall(r"([\d.]+) at ([\d,]+)", sentence)
    assert len(found) == 4
    for beta, layers in found:
        expected = deep(parse(f"diracnet-{layers.replace(',', '')}-1").blocks).beta
        assert float(beta) == pytest.approx(expected, abs=0.005)
