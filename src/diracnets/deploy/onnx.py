"""ONNX: a chain is written node by node, any other network by torch's exporter; run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description
from diracnets.deploy.graph import Conv, Layer, Pool, layers_of
from diracnets.deploy.pixels import taking_pixels, with_normalization
from diracnets.errors import UsageError

OPSET = 13  # of chains: the lowest that has all that a chain can be, so that old and small runtimes take it
TRACED_OPSET = 18  # of other networks: the lowest that torch's exporter writes


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    proto = model_proto(model, card, options)
    proto.metadata_props.add(key=KEY, value=description(card, options, "float32"))
    path.write_bytes(proto.SerializeToString())


def model_proto(model: nn.Module, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """The `onnx.ModelProto` of a float network, without metadata.

    Its input is called "images", its output "logits".
    """
    import onnx

    try:
        layers = layers_of(with_normalization(model, card) if options.from_pixels else model, card)
    except UsageError:
        proto = _traced(model, card, options)
    else:
        whole = {f"layer.{name}" for name, module in model.named_children() if isinstance(module, nn.AdaptiveAvgPool2d)}
        proto = _chain(layers, card, options, whole if options.any_size else set())
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _chain(layers: tuple[Layer, ...], card: ModelCard, options: Options, whole: set[str]) -> Any:  # noqa: ANN401
    """Conv, Relu, MaxPool, AveragePool, Flatten, Gemm, a Cast of pixels, and GlobalAveragePool for those in `whole`."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    tensors: list[Any] = []
    last = "images"

    def add(kind: str, name: str, *constants: tuple[str, npt.NDArray[np.float32]], **attributes: Any) -> None:  # noqa: ANN401
        nonlocal last
        tensors.extend(numpy_helper.from_array(np.ascontiguousarray(values), key) for key, values in constants)
        inputs = [last, *(key for key, _ in constants)]
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        last = name

    if options.from_pixels:
        add("Cast", "pixels", to=TensorProto.FLOAT)
    flat = False
    for layer in layers:
        name = f"layer.{layer.name}"
        if isinstance(layer, Pool):
            if name in whole:
                add("GlobalAveragePool", name)
            elif layer.kind == "average":
                add("AveragePool", name, kernel_shape=layer.size, strides=layer.stride)
            else:
                add("MaxPool", name, kernel_shape=layer.size, strides=layer.stride, pads=layer.padding * 2)
            continue
        constants = ((f"{name}.weight", layer.weight), (f"{name}.bias", layer.bias))
        if isinstance(layer, Conv):
            add(
                "Conv",
                name,
                *constants,
                kernel_shape=layer.weight.shape[2:],
                strides=layer.stride,
                pads=layer.padding * 2,
                dilations=layer.dilation,
                group=layer.groups,
            )
        else:
            if not flat:
                add("Flatten", "flat", axis=1)
                flat = True
            add("Gemm", name, *constants, transB=1)
        if layer.relu:
            add("Relu", f"{name}.relu")
    if not flat:
        add("Flatten", "flat", axis=1)
    nodes[-1].output[0] = "logits"
    size = ["height", "width"] if options.any_size else card.input_size[1:]
    batch = options.batch or "batch"
    kind = TensorProto.UINT8 if options.from_pixels else TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", kind, [batch, card.input_size[0], *size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, int(np.prod(layers[-1].after))])
    graph = helper.make_graph(nodes, "chain", [images], [logits], tensors)
    opset = [helper.make_opsetid("", OPSET)]
    version = helper.find_min_ir_version_for(opset)
    return helper.make_model(graph, opset_imports=opset, ir_version=version, producer_name="diracnets")


def _traced(model: nn.Module, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """What torch's exporter makes of a network, without the paths of source files that it notes on every node."""
    module = taking_pixels(model, card) if options.from_pixels else model
    images = torch.zeros(options.batch or 2, *card.input_size, dtype=torch.uint8 if options.from_pixels else None)
    axes: dict[int, str] = {} if options.batch else {0: "batch"}
    if options.any_size:
        axes |= {2: "height", 3: "width"}
    with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on torchvision and on what it will change one day."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _load(path: Path, card: ModelCard) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
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
    tolerance={"float32": 1e-4},
    write=_write,
    load=_load,
    describes=_describes,
    extra="export",
    packages=("onnx", "onnxscript", "onnxruntime"),
)
