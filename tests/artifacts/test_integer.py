"""An int8 model file gives back the integers that were saved, is used like any other, and a wrong one is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diracnets
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.model_file import save
from diracnets.artifacts.model_format import KEY, hash_of
from diracnets.cli import main
from diracnets.errors import FileError, UsageError
from diracnets.evaluation.metrics import evaluate
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLinear, IntPool

CARD = ModelCard((1, 8, 8), (0.3,), (0.2,), ("low", "middle", "high"))


@pytest.fixture
def chain():
    rng = np.random.default_rng(0)
    a, b, c, d = (Quantization(*each) for each in ((0.02, 5), (0.05, -128), (0.03, -20), (0.1, 17)))

    def weights(scales, *shape):
        integers = rng.integers(-127, 128, shape).astype(np.int8)
        bias = rng.integers(-2000, 2000, shape[0]).astype(np.int32)
        return integers, rng.uniform(0.0005, 0.002, scales).astype(np.float32), bias

    return IntegerChain(
        [
            IntConv("a", *weights(6, 6, 1, 3, 3), a, b, True, (1, 8, 8), (6, 4, 8), (2, 1), (1, 1), (1, 1), 1),
            IntPool("b", "max", (3, 2), (1, 2), (1, 0), b, (6, 4, 8), (6, 4, 4)),
            IntConv("c", *weights(1, 4, 3, 3, 3), b, c, False, (6, 4, 4), (4, 4, 4), (1, 1), (2, 2), (2, 2), 2),
            IntPool("d", "average", (4, 2), (4, 2), (0, 0), c, (4, 4, 4), (4, 1, 2)),
            IntLinear("e", *weights(1, 5, 8), c, d, True, (4, 1, 2), (5, 1, 1)),
            IntLinear("f", *weights(3, 3, 5), d, c, False, (5, 1, 1), (3, 1, 1)),
        ]
    )


def test_saved_and_loaded(chain, tmp_path):
    path = tmp_path / "int8.safetensors"
    save(chain, path, card=CARD)
    loaded = diracnets.load(path)
    assert isinstance(loaded, IntegerChain)
    assert loaded.card == CARD
    for one, other in zip(chain.layers, loaded.layers, strict=True):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            wanted, found = getattr(one, field.name), getattr(other, field.name)
            assert np.array_equal(wanted, found), field.name
            assert getattr(wanted, "dtype", None) == getattr(found, "dtype", None)
    images = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(images), chain(images))
    assert torch.equal(loaded.half()(images), chain(images))
    with safe_open(path, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"I8", "I32", "F32"}  # noqa: SIM118


def test_used_like_any_model_file(chain, stripes, tmp_path, capsys):
    path = tmp_path / "int8.safetensors"
    save(chain, path, card=CARD)
    assert main(["verify", str(path)]) == 0
    assert main(["info", str(path)]) == 0
    text = capsys.readouterr().out
    assert "largest difference 0.0e+00" in text
    assert "(int8 chain)" in text
    assert "5,184" not in text
    image = tmp_path / "image.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(image)
    assert diracnets.predict(path, image)[0].label in CARD.classes
    assert evaluate(diracnets.load(path), stripes.val).count == 30
    with pytest.raises(UsageError, match="IntegerChain"):
        diracnets.load(path, folded=False)


def test_shapes_and_costs_of_an_int8_file(chain, tmp_path):
    save(chain, tmp_path / "int8.safetensors", card=CARD)
    info = diracnets.describe(tmp_path / "int8.safetensors")
    assert [layer.name for layer in info.layers] == ["a", "a_relu", "b", "c", "d", "e_flatten", "e", "e_relu", "f"]
    assert info.parameters == sum(layer.weight.size + layer.bias.size for layer in chain.layers if layer.name in "acef")
    assert info.multiply_adds == 32 * 6 * (9 + 1) + 16 * 4 * (27 + 1) + 5 * (8 + 1) + 3 * (5 + 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content, tensors: content["quantizations"].pop(), "not those of its layers"),
        (lambda content, tensors: content["quantizations"][1].update(scale=-1.0), "a scale of -1.0"),
        (lambda content, tensors: content["quantizations"][1].update(zero_point=128), "a zero point of 128"),
        (lambda content, tensors: content["quantizations"][1].pop("scales"), "quantization of a is incomplete"),
        (lambda content, tensors: content.pop("quantizations"), "no quantizations"),
        (lambda content, tensors: content.update(format=2), "belongs to no layer"),
        (lambda content, tensors: content["layers"][0].update(padding_mode="reflect"), "pads in a way"),
        (lambda content, tensors: content["layers"][2].update(ceil_mode=True), "pools in a way"),
        (lambda content, tensors: content["layers"][1].update(type="ReLU6"), "ReLU6, is none"),
        (lambda content, tensors: tensors.update({"a.weight": tensors["a.weight"].float()}), "torch.float32 where"),
        (lambda content, tensors: tensors["a.weight"].fill_(-128), "int8 of -127 to 127"),
        (lambda content, tensors: tensors["a.scales"].fill_(torch.nan), "positive float32 scale"),
    ],
)
def test_a_wrong_file_is_refused(chain, tmp_path, edit, message):
    path = tmp_path / "int8.safetensors"
    save(chain, path, card=CARD)
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    edit(content, tensors)
    content["sha256"] = hash_of(content, tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(content)})
    with pytest.raises(FileError, match=message):
        diracnets.load(path)
