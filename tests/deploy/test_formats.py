"""What holds for every format whose packages are there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config as inductor

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy.backend import card_in, find
from diracnets.deploy.export import export, probe_pixels
from diracnets.deploy.integer import rounded_chain
from diracnets.errors import UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model

CARD = ModelCard((3, 16, 12), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=tuple("abcd"))


def backend_of(name):
    backend = find(name)
    if missing := backend.missing():
        pytest.skip(f"{name} needs {missing}")
    return backend


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    made = fold(build_model("diracnet-10-0.25", num_classes=4, image_size=(16, 12)).eval())
    attach_card(made, CARD)
    return made


def computed(chain, pixels):
    mean, std = torch.tensor(CARD.mean)[:, None, None], torch.tensor(CARD.std)[:, None, None]
    with torch.no_grad():
        return chain((torch.from_numpy(pixels) / 255 - mean) / std).numpy()


FORMATS = ["onnx", "openvino", "pt2"]


@pytest.mark.parametrize("name", FORMATS)
def test_any_number_of_pixel_images(chain, name, tmp_path):
    backend = backend_of(name)
    made = export(chain, name, tmp_path / f"net{backend.suffix}", from_pixels=True)
    assert made.input == "[batch, 3, height, width] uint8 pixels"
    assert card_in(backend, made.path) == CARD
    assert b".py" not in made.path.read_bytes()  # no paths of this machine's source files
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 24, 12), np.uint8)
    assert np.allclose(backend.load(made.path, CARD)(pixels), computed(chain, pixels), atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_fixed_shapes(chain, name, tmp_path):
    backend = backend_of(name)
    made = export(chain, name, tmp_path / f"net{backend.suffix}", batch=2)
    assert made.input == "[2, 3, 16, 12] float32, normalized"
    run = backend.load(made.path, CARD)
    with pytest.raises(Exception, match=r"[23]"):  # each runtime has its own words and classes
        run(np.zeros((3, 3, 16, 12), np.float32))


def test_channels_last_weights_are_written_without_a_warning(tmp_path):
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    small.to(memory_format=torch.channels_last)
    export(small, "pt2", tmp_path / "net.pt2", card=replace(CARD, classes=()), batch=1)
    assert not small[0].weight.is_contiguous()  # nor is the caller's network changed


@pytest.mark.slow
def test_code_compiled_ahead_of_time_is_for_one_size(chain, tmp_path, monkeypatch):
    backend = backend_of("aoti")
    small = nn.Sequential(*list(chain)[:2], *list(chain)[-3:-1]).eval()  # compiling takes long
    monkeypatch.setattr(inductor.aot_inductor, "precompile_headers", False, raising=False)  # which takes longer still
    made = export(small, "aoti", tmp_path / "net.pt2", card=replace(CARD, classes=()), from_pixels=True)
    assert made.input == "[batch, 3, 16, 12] uint8 pixels"
    assert card_in(backend, made.path).mean == CARD.mean
    run = backend.load(made.path, CARD)
    with pytest.raises(UsageError, match=r"takes images of \['batch', 3, 16, 12\], not of \[1, 3, 24, 12\]"):
        run(np.zeros((1, 3, 24, 12), np.uint8))


@pytest.fixture(scope="module")
def integers(chain):
    images = (torch.from_numpy(probe_pixels(8, CARD.input_size)) / 255 - 0.5) / 0.3
    return rounded_chain(chain, CARD, images)


@pytest.mark.parametrize(
    ("name", "from_pixels"),
    [("onnx", False), ("onnx", True), ("openvino", False), pytest.param("pt2", True, marks=pytest.mark.slow)],
)
def test_the_integers_of_a_chain(integers, name, from_pixels, tmp_path):
    backend = backend_of(name)
    made = export(integers, name, tmp_path / f"net{backend.suffix}", from_pixels=from_pixels)
    assert made.precision == "int8"
    assert made.input.startswith("[batch, 3, 16, 12]")
    assert made.difference <= (0 if name == "pt2" else 1.01 * integers.output.scale)
    assert card_in(backend, made.path) == CARD
