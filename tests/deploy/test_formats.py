"""What holds for every format whose packages are there."""

import numpy as np
import pytest
import torch

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy.backend import card_in, find
from diracnets.deploy.export import export
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


FORMATS = ["onnx", "openvino", "pt2", pytest.param("aoti", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", FORMATS)
def test_any_number_of_pixel_images(chain, name, tmp_path):
    backend = backend_of(name)
    made = export(chain, name, tmp_path / f"net{backend.suffix}", from_pixels=True)
    size = "height, width" if backend.sizes else "16, 12"
    assert made.input == f"[batch, 3, {size}] uint8 pixels"
    assert card_in(backend, made.path) == CARD
    assert name == "aoti" or b".py" not in made.path.read_bytes()  # no paths of this machine's source files
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 24 if backend.sizes else 16, 12), np.uint8)
    assert np.allclose(backend.load(made.path, CARD)(pixels), computed(chain, pixels), atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_fixed_shapes(chain, name, tmp_path):
    backend = backend_of(name)
    made = export(chain, name, tmp_path / f"net{backend.suffix}", batch=2)
    assert made.input == "[2, 3, 16, 12] float32, normalized"
    run = backend.load(made.path, CARD)
    with pytest.raises(Exception, match=r"[23]"):  # each runtime has its own words and classes
        run(np.zeros((3, 3, 16, 12), np.float32))
