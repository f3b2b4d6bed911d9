"""`pip install "diracnets[mobile]"` makes these run."""

import numpy as np
import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy import executorch
from diracnets.deploy.backend import card_in
from diracnets.deploy.export import export
from diracnets.deploy.integer import rounded_chain

installed = not executorch.BACKEND.missing()
needs_executorch = pytest.mark.skipif(not installed, reason="ExecuTorch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # ExecuTorch's own, of torch and Python

CARD = ModelCard((3, 16, 12), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=("a", "b", "c", "d"))


def chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval().requires_grad_(False)


def integers():
    return rounded_chain(chain(), CARD, images(16))


def images(count):
    return torch.randn(count, *CARD.input_size, generator=torch.Generator().manual_seed(1))


def test_an_integer_chain_keeps_its_numbers_in_operators_of_real_ones():
    net = integers()
    difference = executorch.QuantizedChain(net)(images(64)) - net(images(64))
    assert difference.abs().max() < 1.01 * net.output.scale
    assert (difference == 0).float().mean() > 0.8


@needs_executorch
@pytest.mark.slow
@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("make", [chain, integers])
def test_a_file_takes_any_number_of_images(tmp_path, make, from_pixels):
    made = export(make(), "executorch", tmp_path / "net.pte", from_pixels=from_pixels, card=CARD)
    assert made.input.startswith("[batch, 3, 16, 12]")
    assert card_in(executorch.BACKEND, made.path) == CARD
    run = executorch.BACKEND.load(made.path, CARD)
    given = np.random.default_rng(0).integers(0, 256, (executorch.MOST + 5, *CARD.input_size), np.uint8)
    if not from_pixels:
        given = given.astype(np.float32) / 64 - 2
    assert np.abs(run(given) - np.concatenate([run(given[:5]), run(given[5:])])).max() < 1e-6


@needs_executorch
@pytest.mark.slow
def test_xnnpack_computes_all_layers_of_an_int8_chain_in_int8():
    from diracnets.deploy.backend import Options

    made = executorch.program(integers(), CARD, Options(batch=2))
    names = [str(node.target) for node in made.exported_program().graph.nodes if node.op == "call_function"]
    assert sum("executorch_call_delegate" in name for name in names) == 1
    assert not any("quantize" in name for name in names if "call_delegate" not in name)
