from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

from ai_edge_litert import schema_py_generated as schema

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy import litert
from diracnets.deploy.backend import Options, card_in
from diracnets.deploy.export import export
from diracnets.deploy.integer import rounded_chain
from diracnets.deploy.pixels import integers_of_pixels
from diracnets.errors import ExportError, FileError, UsageError

CARD = ModelCard((3, 23, 22), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=("a", "b", "c", "d", "e"))


def chain():
    """All that the format sees otherwise: padding, strides, dilation, groups, the order in which a map is flattened."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, (3, 5), padding="same", groups=8),  # depthwise, and its outputs have both signs
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(12, 24, 2, padding=1, groups=12, bias=False),
        nn.AvgPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(24 * 2 * 2, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    ]
    made = nn.Sequential(*layers).eval().requires_grad_(False)
    attach_card(made, CARD)
    return made


def pixels(count=5):
    return torch.randint(
        0, 256, (count, *CARD.input_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalized(pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in (CARD.mean, CARD.std))
    return (pixels / 255 - mean) / std


def written(model, path, **options):
    path.write_bytes(litert.content(model, CARD, Options(**options)))
    return path


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_float_file_computes_what_the_chain_does(tmp_path, batch, from_pixels, reference):
    run = litert.load(
        written(chain(), tmp_path / "net.tflite", batch=batch, from_pixels=from_pixels), reference=reference
    )
    given = pixels()
    found = run((given if from_pixels else normalized(given)).numpy())
    torch.testing.assert_close(torch.from_numpy(found), chain()(normalized(given)), rtol=0, atol=1e-6)


def integers(per_channel=True):
    return rounded_chain(chain(), CARD, normalized(pixels(16)), per_channel=per_channel)


@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_an_int8_file_computes_the_integers_of_the_chain(tmp_path, per_channel, from_pixels):
    net = integers(per_channel)
    path = written(net, tmp_path / "net.tflite", batch=2, from_pixels=from_pixels)
    given = pixels(33)
    if from_pixels:
        wanted = net.output.real(integers_of_pixels(net, CARD).integers(given.short() - 128))
        images = given.numpy()
    else:
        wanted, images = net(normalized(given)), normalized(given).numpy()
    assert np.array_equal(litert.load(path, reference=True)(images), wanted.numpy())
    assert np.abs(litert.load(path)(images) - wanted.numpy()).max() < 2.01 * net.output.scale


def opened(path):
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def test_an_int8_file_has_operators_and_types_of_microcontrollers_alone(tmp_path):
    model = opened(written(integers(), tmp_path / "net.tflite", from_pixels=True))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    graph = model.subgraphs[0]
    found = Counter(names[model.operatorCodes[each.opcodeIndex].builtinCode] for each in graph.operators)
    assert found == {
        "CONV_2D": 4,  # two of them are fully connected layers
        "DEPTHWISE_CONV_2D": 3,  # the first normalizes
        "PAD": 3,
        "PADV2": 1,
        "MAX_POOL_2D": 2,
        "AVERAGE_POOL_2D": 1,
        "RESHAPE": 1,
    }
    types = {tensor.type for tensor in graph.tensors}
    assert types == {schema.TensorType.INT8, schema.TensorType.INT32}
    (source,) = graph.inputs
    assert graph.tensors[source].quantization.zeroPoint.tolist() == [-128]
    assert graph.tensors[source].quantization.scale.tolist() == [np.float32(1 / 255)]


def test_weights_lie_where_microcontrollers_can_read_them_in_place(tmp_path):
    content = written(chain(), tmp_path / "net.tflite").read_bytes()
    model = schema.Model.GetRootAs(content)
    for index in range(1, model.BuffersLength()):
        buffer = model.Buffers(index)
        assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("make", [chain, integers])
def test_export_keeps_the_card_in_the_file(tmp_path, make, from_pixels):
    made = export(make(), "litert", tmp_path / "net.tflite", from_pixels=from_pixels, card=CARD)
    assert list(made.files) == [tmp_path / "net.tflite"]
    assert made.input.startswith("[1, 3, 23, 22]")
    assert card_in(litert.BACKEND, tmp_path / "net.tflite") == CARD


def test_an_int8_file_with_another_integer_is_not_kept(tmp_path, monkeypatch):
    net = integers()
    exact = litert.load
    shifted = lambda path, **how: lambda images: exact(path, **how)(images) + net.output.scale  # noqa: E731
    monkeypatch.setattr(litert, "load", shifted)
    with pytest.raises(ExportError, match="reference kernels compute other integers"):
        export(net, "litert", tmp_path / "net.tflite", card=CARD)
    assert list(tmp_path.iterdir()) == []


def test_images_that_the_file_does_not_take_are_refused(tmp_path):
    run = litert.load(written(chain(), tmp_path / "net.tflite"))
    with pytest.raises(UsageError, match="takes normalized images, not uint8"):
        run(pixels().numpy())
    with pytest.raises(UsageError, match=r"takes images of 3x23x22, not \[3, 25, 25\]"):
        run(np.zeros((1, 3, 25, 25), np.float32))
    with pytest.raises(UsageError, match="takes uint8 pixels, not float32"):
        litert.load(written(chain(), tmp_path / "net.tflite", from_pixels=True))(normalized(pixels()).numpy())


def test_a_chain_that_ends_in_a_map_cannot_be_written():
    with pytest.raises(UsageError, match="ends in a map of 11x11"):
        litert.content(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten()), CARD, Options())


def test_other_files_are_named(tmp_path):
    (tmp_path / "net.tflite").write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match=r"net\.tflite holds no model card of diracnets: it is not a \.tflite file"):
        card_in(litert.BACKEND, tmp_path / "net.tflite")


@pytest.mark.parametrize("per_channel", [False, True])
def test_tflite_micro_computes_the_integers_of_the_chain(tmp_path, per_channel):
    reason = "TFLite Micro is not installed: pip install tflite-micro"
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason=reason)
    net = integers(per_channel)
    path: Path = written(net, tmp_path / "net.tflite", from_pixels=True)
    interpreter = runtime.Interpreter.from_file(str(path), arena_size=100_000)
    given = pixels()
    wanted = integers_of_pixels(net, CARD).integers(given.short() - 128).numpy()
    for image, logits in zip(given.numpy(), wanted, strict=True):
        interpreter.set_input((image.transpose(1, 2, 0)[None].astype(np.int16) - 128).astype(np.int8), 0)
        interpreter.invoke()
        assert np.array_equal(interpreter.get_output(0)[0], logits)
