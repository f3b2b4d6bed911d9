"""Quantization without training is better than rounding to the nearest, and refused where it makes no sense."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import diracnets
from diracnets.artifacts.card import ModelCard, card_of
from diracnets.artifacts.model_file import save
from diracnets.cli import main
from diracnets.deploy.backend import Options
from diracnets.deploy.equalize import equalize
from diracnets.deploy.graph import Pool, layers_of
from diracnets.deploy.integer import activations, rounded_chain
from diracnets.deploy.onnx import model_proto
from diracnets.deploy.quantize import quantize
from diracnets.deploy.rounding import pairings
from diracnets.errors import UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model
from diracnets.models.integer import IntConv
from diracnets.runtime.processor import instructions

CARD = ModelCard((1, 8, 8), (0.3,), (0.2,), ("low", "middle", "high"), {"accuracy": 0.9})


def spiked(seed=0):
    """A chain as DiracNets have it: large diagonals, small filters around them, pooling between them."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()]
    for index in range(6):
        conv = nn.Conv2d(12, 12, 3, padding=1)
        with torch.no_grad():
            conv.weight.mul_(0.5)
            conv.weight[:, :, 1, 1].diagonal().copy_(torch.rand(12) * 2 + 0.2)
        layers += [conv, nn.ReLU()]
        if index == 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)).eval().requires_grad_(False)


def test_equalized_layers_compute_the_same():
    chain = spiked()
    layers = layers_of(chain, CARD)
    images = torch.randn(4, 1, 8, 8)
    made = equalize(layers)
    *_, found = activations(made, images)
    assert (found.flatten(1) - chain(images)).abs().max() < 1e-4 * chain(images).abs().max()
    weighted = [layer for layer in made if not isinstance(layer, Pool)]
    for one, two in pairwise(weighted):
        out, into = np.abs(one.weight).max((1, 2, 3)), np.abs(two.weight.reshape(len(two.weight), 12, -1)).max((0, 2))
        np.testing.assert_allclose(out, into, rtol=0.02)


@pytest.mark.parametrize(("bits", "per_channel", "part"), [(8, True, 0.9), (8, False, 0.6), (5, True, 0.5)])
def test_errors_are_smaller_than_those_of_the_nearest(bits, per_channel, part):
    chain = spiked()
    images, others = torch.rand(2, 128, 1, 8, 8).cumsum(3).remainder(1).mul(5).sub(1.5)
    done = quantize(chain, images, images=128, bits=bits, per_channel=per_channel, card=CARD)
    expected = chain(others)
    error = (done.chain(others) - expected).std() / expected.std()
    nearest = rounded_chain(chain, CARD, images, per_channel=per_channel, bits=bits)
    assert error < part * (nearest(others) - expected).std() / expected.std()
    assert all(
        np.abs(layer.weight).max() <= 2 ** (bits - 1) - 1 for layer in done.chain.layers if hasattr(layer, "bias")
    )
    assert {layer.scales.size for layer in done.chain.layers if isinstance(layer, IntConv)} == {
        12 if per_channel else 1
    }
    assert card_of(done.chain).provenance["quantization"]["accuracy_in_float32"] == 0.9
    assert done.agreement > 0.9
    assert [row.name for row in done.layers] == [name for name, each in chain.named_children() if hasattr(each, "bias")]


def test_groups_and_strides():
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 6, (1, 3)),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    chain.eval().requires_grad_(False)
    images = torch.rand(64, 1, 8, 8) * 5 - 1.5
    for per_channel in (True, False):
        done = quantize(chain, images, card=CARD, per_channel=per_channel)
        assert (done.chain(images) - chain(images)).norm() < 0.02 * chain(images).norm()


def worst_case(channels=4):
    """Two layers whose weights are all alike, so that every pair of products is as large as it can be."""
    chain = nn.Sequential(nn.Conv2d(channels, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    for module in chain:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    return chain.eval().requires_grad_(False)


@pytest.mark.parametrize("channels", [3, 4])
def test_no_pair_of_products_exceeds_16_bits(channels):
    card = ModelCard((channels, 3, 3), (0.0,) * channels, (1.0,) * channels)
    images = torch.ones(8, channels, 3, 3)

    def largest(safe):
        chain = quantize(worst_case(channels), images, card=card, saturation_safe=safe).chain
        sums = []
        for layer in chain.layers:
            weight = torch.from_numpy(layer.weight.astype(np.int64)).flatten(1)
            for pairing in pairings(layer.weight.shape[1:]):
                sums.append(int(((weight + weight[:, pairing.clamp(min=0)]) * (pairing >= 0)).abs().max()))
        return chain, max(sums)

    assert largest(False)[1] > 250
    chain, most = largest(True)
    assert most <= 128
    assert (chain(images) - 1).abs().max() < 0.02


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_with_their_own_settings_do_not_saturate(runtime):
    module, onnx = pytest.importorskip(runtime), pytest.importorskip("onnx")
    del onnx
    if "avx512" in " ".join(instructions()) or "vnni" in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has VNNI, with which nothing saturates")
    card = ModelCard((4, 3, 3), (0.0,) * 4, (1.0,) * 4)
    images = torch.ones(1, 4, 3, 3)
    errors = []
    for safe in (False, True):
        chain = quantize(worst_case(), images, card=card, saturation_safe=safe).chain
        proto = model_proto(chain, card, Options()).SerializeToString()
        if runtime == "onnxruntime":
            session = module.InferenceSession(proto, providers=["CPUExecutionProvider"])
            found = session.run(None, {"images": images.numpy()})[0]
        else:
            core = module.Core()
            found = core.compile_model(core.read_model(proto), "CPU")(images.numpy())[0]
        errors.append(float(np.abs(found - chain(images).numpy()).max()))
    assert errors[0] > 0.2
    assert errors[1] < 0.02


def test_what_cannot_be_quantized():
    images = torch.zeros(1, 1, 8, 8)
    with pytest.raises(UsageError, match=r"layer 1 .GELU.* cannot be written"):
        quantize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GELU()), images, card=CARD)
    with pytest.raises(UsageError, match="resnet-20 has branches"):
        quantize(build_model("resnet-20").eval(), images, card=CARD)
    with pytest.raises(UsageError, match="no images to calibrate on"):
        quantize(spiked(), images[:0], card=CARD)
    with pytest.raises(UsageError, match=r"images of \[1, 9, 8\]"):
        quantize(spiked(), torch.zeros(1, 1, 9, 8), card=CARD)
    with pytest.raises(UsageError, match="bits is 9"):
        quantize(spiked(), images, card=CARD, bits=9)
    with pytest.raises(UsageError, match="has no card"):
        quantize(spiked(), images)
    with pytest.raises(UsageError, match="in int8 already"):
        quantize(quantize(spiked(), images, card=CARD).chain, images)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    pytest.importorskip("sklearn")
    file = tmp_path / "net.safetensors"
    data = diracnets.load_data("digits")
    torch.manual_seed(0)
    card = ModelCard(data.input_size, data.mean, data.std, data.classes)
    save(fold(build_model("diracnet-10-0.25", in_channels=1, image_size=8).eval()), file, card=card)
    command = ["quantize", str(file), "--data", "digits", "--images", "32"]
    assert main(command) == 0
    assert "calibrated on 32 training images" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "net-int8.safetensors")]) == 0
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force", "--to", "nowhere"]) == 2
    assert main([*command, "--force", "--images", "0"]) == 2


def test_an_export_that_cannot_be_is_refused_before_anything_is_computed(tmp_path, capsys):
    command = ["quantize", "diracnet-28-0.5-digits", "--out", str(tmp_path / "net.safetensors"), "--to"]
    assert main([*command, "aoti"]) == 2
    assert "aoti cannot be written in int8" in capsys.readouterr().err
    (tmp_path / "net.pt2").touch()
    assert main([*command, "pt2"]) == 2
    assert "net.pt2 is there already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
