"""ONNX: a chain is written node by node, any other network by torch's exporter; run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description, precision_of, quiet
from diracnets.deploy.graph import Layer, Pool, layers_of
from diracnets.deploy.onnx_graph import Graph
from diracnets.deploy.onnx_integer import integer_proto
from diracnets.deploy.pixels import taking_pixels, with_normalization
from diracnets.errors import UsageError
from diracnets.models.integer import IntegerChain

TRACED_OPSET = 18  # of networks that are no chain: the lowest that torch's exporter writes


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    proto = model_proto(model, card, options)
    proto.metadata_props.add(key=KEY, value=description(card, options, precision_of(model)))
    path.write_bytes(proto.SerializeToString())


def model_proto(model: nn.Module, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """The `onnx.ModelProto` of a network, without metadata.

    Its input is called "images", its output "logits".
    """
    import onnx

    if isinstance(model, IntegerChain):
        proto = integer_proto(model, card, options)
        onnx.checker.check_model(proto, full_check=True)
        return proto
    try:
        layers = layers_of(with_normalization(model, card) if options.from_pixels else model, card)
    except UsageError:
        proto = _traced(model, card, options)
    else:
        whole = {name for name, module in model.named_children() if isinstance(module, nn.AdaptiveAvgPool2d)}
        proto = _chain(layers, card, options, whole if options.any_size else set())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _chain(layers: tuple[Layer, ...], card: ModelCard, options: Options, whole: set[str]) -> Any:  # noqa: ANN401
    """Conv, Relu, MaxPool, AveragePool, Flatten, Gemm, a Cast of pixels, and GlobalAveragePool for those in `whole`."""
    graph = Graph(options.from_pixels)
    if options.from_pixels:
        graph.add("Cast", "pixels", to=1)  # FLOAT
    for layer in layers:
        name = f"layer.{layer.name}"
        if isinstance(layer, Pool):
            graph.pool(name, layer, layer.name in whole)
            continue
        weight = graph.constant(f"{name}.weight", layer.weight)
        bias = graph.constant(f"{name}.bias", layer.bias)
        graph.weigh(name, layer, weight, bias)
        if layer.relu:
            graph.add("Relu", f"{name}.relu")
    graph.flatten()
    return graph.model(card, options, layers[-1].after[0])


def _traced(model: nn.Module, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """What torch's exporter makes of a network, without the paths of source files that it notes on every node."""
    module = taking_pixels(model, card) if options.from_pixels else model
    images = torch.zeros(options.batch or 2, *card.input_size, dtype=torch.uint8 if options.from_pixels else None)
    axes: dict[int, str] = {} if options.batch else {0: "batch"}
    if options.any_size:
        axes |= {2: "height", 3: "width"}
    with quiet():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=TRACED_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=(axes,) if axes else None,
        )
    assert program is not None
    proto = program.model_proto
    parts = [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]
    for part in [*parts, *proto.graph.input, *proto.graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


def _load(path: Path, card: ModelCard) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # or, without VNNI, sums of int8 saturate
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["logits"], {"images": images})[0], np.float32)

    return run


def _describes(path: Path) -> str:
    import onnx

    for entry in onnx.load(str(path), load_external_data=False).metadata_props:
        if entry.key == KEY:
            return str(entry.value)
    raise ValueError(f"it has no metadata called {KEY}")


BACKEND = Backend(
    name="onnx",
    summary="ONNX, for ONNX Runtime, TensorRT and many others",
    suffix=".onnx",
    tolerance={"float32": 1e-4, "int8": 32.0},
    write=_write,
    load=_load,
    describes=_describes,
    extra="export",
    packages=("onnx", "onnxscript", "onnxruntime"),
)
