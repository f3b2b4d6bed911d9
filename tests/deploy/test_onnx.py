import collections

import numpy as np
import pytest
import torch

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy.backend import card_in
from diracnets.deploy.export import export
from diracnets.deploy.onnx import BACKEND
from diracnets.folding.fold import fold
from diracnets.models.build import build_model

onnx = pytest.importorskip("onnx", reason='needs pip install "diracnets[export]"')

CARD = ModelCard((3, 16, 12), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=tuple("abcd"))


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    made = fold(build_model("diracnet-10-0.5", num_classes=4, image_size=(16, 12)).eval())
    attach_card(made, CARD)
    return made


def graph_of(path):
    return onnx.load(str(path)).graph


def operators(graph):
    return collections.Counter(node.op_type for node in graph.node)


def shapes(values):
    return [[axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values]


def test_a_chain_is_its_plain_operators_and_takes_any_number_and_size(chain, tmp_path):
    made = export(chain, "onnx", tmp_path / "net.onnx")
    graph = graph_of(made.path)
    assert operators(graph) == {"Conv": 7, "Relu": 7, "MaxPool": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert len(graph.initializer) == 16  # weights and biases, no other constants
    assert shapes([*graph.input, *graph.output]) == [["batch", 3, "height", "width"], ["batch", 4]]
    assert card_in(BACKEND, made.path) == CARD
    assert made.images == 7


def test_fixed_shapes_pool_by_a_fixed_size(chain, tmp_path):
    made = export(chain, "onnx", tmp_path / "net.onnx", batch=2)
    graph = graph_of(made.path)
    assert operators(graph).keys() == {"Conv", "Relu", "MaxPool", "AveragePool", "Flatten", "Gemm"}
    assert shapes([*graph.input, *graph.output]) == [[2, 3, 16, 12], [2, 4]]


def test_pixels_are_normalized_inside(chain, tmp_path):
    made = export(chain, "onnx", tmp_path / "net.onnx", from_pixels=True)
    graph = graph_of(made.path)
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.op_type for node in graph.node][:3] == ["Cast", "Conv", "Conv"]
    white = torch.ones(1, 3, 16, 12)
    mean, std = torch.tensor(CARD.mean)[:, None, None], torch.tensor(CARD.std)[:, None, None]
    found = BACKEND.load(made.path, CARD)((255 * white).to(torch.uint8).numpy())
    assert np.allclose(found, chain((white - mean) / std).detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_residual_network_is_traced(warm, tmp_path):
    net = warm(build_model("resnet-8", num_classes=4, image_size=(16, 12)))
    made = export(net, "onnx", tmp_path / "net.onnx", card=CARD, from_pixels=True)
    graph = graph_of(made.path)
    assert [node.op_type for node in graph.node][:3] == ["Cast", "Conv", "Conv"]
    assert operators(graph)["Add"] == 3
    assert b".py" not in made.path.read_bytes()  # no paths of source files
    assert made.input == "[batch, 3, height, width] uint8 pixels"
