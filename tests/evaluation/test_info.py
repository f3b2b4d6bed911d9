"""Costs are those of the paper, and agree with what really runs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import diracnets
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.model_file import save
from diracnets.errors import FileError, UsageError
from diracnets.evaluation.info import describe
from diracnets.folding.structure import folded_structure
from diracnets.models.build import on_meta


@pytest.mark.parametrize("name", ["diracnet-52-1", "dirac-wrn-28-2", "resnet-38", "resnet-164", "repvgg-22-1"])
def test_parameters_after_folding_are_counted_on_shallow_networks(name):
    folded = folded_structure(on_meta({"name": name}))
    assert describe(name).folded_parameters == sum(each.numel() for each in folded.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "folded", "giga_multiply_adds"),
    [
        ("diracnet-18", 11_523_368, 11_511_784, 1.80),
        ("diracnet-34", 21_638_952, 21_616_232, 3.65),
        ("diracnet-28-10", 36_450_090, 36_423_050, None),
        ("diracnet-100-1", 1_540_698, 1_529_930, None),
    ],
)
def test_networks_of_the_paper(name, parameters, folded, giga_multiply_adds):
    info = describe(name)
    assert (info.kind, info.parameters, info.folded_parameters) == ("network", parameters, folded)
    assert info.weight_bytes["float32"] == 4 * folded
    assert info.weight_bytes["float16"] == 2 * folded
    assert folded < info.weight_bytes["int8"] < 1.2 * folded
    assert giga_multiply_adds is None or round(info.multiply_adds / 1e9, 2) == giga_multiply_adds


@pytest.mark.parametrize(("name", "field"), [("resnet-18", 435), ("wrn-16-1", 53), ("repvgg-16-1", 62)])
def test_the_receptive_field_of_a_sum_is_that_of_its_widest_branch(name, field):
    assert describe(name).receptive_field == (field, field)


def biases(shapes):
    """What the flop counter leaves out: an addition for each output of a layer with a bias."""
    return sum(shape.numel() for layer, shape in shapes if getattr(layer, "bias", None) is not None)


MIXED = [
    (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=4)),
    (
        nn.Conv2d(3, 4, (3, 1), dilation=(2, 1)),
        nn.ConvTranspose2d(4, 6, 3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    ),
]


@pytest.mark.parametrize("layers", MIXED, ids=["grouped", "transposed"])
def test_multiply_adds_are_half_of_torchs_flops_and_the_biases(layers):
    chain = nn.Sequential(*layers).eval()
    attach_card(chain, ModelCard((3, 16, 16), (0.0,) * 3, (1.0,) * 3))
    shapes = []
    x = torch.randn(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        for layer in chain:
            x = layer(x)
            shapes.append((layer, x.shape))
    assert describe(chain).multiply_adds == counter.get_total_flops() // 2 + biases(shapes)
    assert [layer.output_shape for layer in describe(chain).layers] == [tuple(shape[1:]) for _, shape in shapes]


def touched(chain, size):
    """Rows of the image that the middle output depends on, by its gradient; kernels of ones hide nothing."""
    for parameter in chain.parameters():
        nn.init.ones_(parameter)
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    y = chain.double()(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows, columns = (x.grad.abs().sum(dims) > 0 for dims in ((0, 1, 3), (0, 1, 2)))
    return tuple(int(axis.nonzero().max() - axis.nonzero().min()) + 1 for axis in (rows, columns))


FIELDS = [
    (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)),
    (nn.Conv2d(3, 4, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, (3, 5), padding=2)),
    (nn.Conv2d(3, 4, 3, dilation=(2, 3)), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3)),
    (nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(3, 4, 2)),
    (nn.AvgPool2d(2), nn.Conv2d(3, 3, 2), nn.AdaptiveAvgPool2d(4)),
]


@pytest.mark.parametrize("layers", FIELDS, ids=["plain", "strides", "dilation", "upsampled", "adaptive"])
def test_receptive_field_is_what_the_gradient_reaches(layers):
    chain = nn.Sequential(*layers).eval()
    attach_card(chain, ModelCard((3, 66, 66), (0.0,) * 3, (1.0,) * 3))
    stated, reached = describe(chain).receptive_field, touched(chain, 66)
    # where outputs fall unevenly on the pixels, the stated one is that of the worst placed output
    assert all(real <= said <= real + 2 for real, said in zip(reached, stated, strict=True))
    assert stated == reached or isinstance(layers[-2], nn.Upsample) or isinstance(layers[-1], nn.AdaptiveAvgPool2d)


def test_network_and_its_chain_cost_the_same(tmp_path):
    net = diracnets.create_model("diracnet-16-0.5", num_classes=3, image_size=16).eval()
    chain = diracnets.fold(net)
    card = ModelCard((3, 16, 16), (0.5,) * 3, (0.2,) * 3, ("a", "b", "c"), {"epochs": 2}, {"max_abs": 1e-7})
    save(chain, tmp_path / "model.safetensors", card=card)
    before, after = describe(net), describe(tmp_path / "model.safetensors")
    assert (before.kind, after.kind) == ("network", "chain")
    assert before.name == "diracnet-16-0.5"
    assert after.multiply_adds == before.multiply_adds == describe(chain).multiply_adds
    assert after.parameters == after.folded_parameters == before.folded_parameters
    assert after.receptive_field == before.receptive_field
    assert after.weight_bytes == before.weight_bytes
    assert after.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert after.card == card
    assert len(after.layers) == len(chain)
    assert json.loads(json.dumps(after.to_data()))["layers"][0]["name"] == after.layers[0].name


def test_describing_takes_no_memory_and_draws_no_random_numbers():
    state = torch.get_rng_state()
    info = describe("diracnet-28-100")  # 3.6 billion parameters, 14.6 GB
    assert info.parameters > 3_600_000_000
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["diracnet-10-0.25", "diracnet-28-0.5-digits"])
def test_a_name_goes_before_a_folder_of_that_name_but_not_before_a_file(name, tmp_path, monkeypatch):
    expected = describe(name)
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert describe(name) == expected
    Path(name).rmdir()
    Path(name).write_text("no network")
    with pytest.raises(FileError, match=name):
        describe(name)


def test_what_cannot_be_described(tmp_path):
    with pytest.raises(UsageError, match="did you mean diracnet-28-1"):
        describe("diracnt-28-1")
    for missing in ("model.safetensors", tmp_path / "model", "folder/model"):
        with pytest.raises(FileError, match="there is no file"):
            describe(missing)
    with pytest.raises(UsageError, match="input size"):
        describe(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(UsageError, match="not a flat chain"):
        describe(nn.Linear(3, 4))
