"""Writes an ONNX graph in which each node takes what the one before it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import Options
from diracnets.deploy.graph import Conv, Linear, Pool
from diracnets.models.integer import IntConv, IntLinear, IntPool

OPSET = 13  # the lowest that has all that a chain can be, so that old and small runtimes take it


class Graph:
    """A graph from "images" to "logits" that grows by one node after another.

    Args:
        from_pixels: whether the images are uint8, else float32.
    """

    def __init__(self, from_pixels: bool) -> None:
        self._from_pixels = from_pixels
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._last = "images"
        self._flat = False

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a tensor, and give its name."""
        from onnx import numpy_helper

        self._tensors.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name))
        return name

    def add(self, kind: str, name: str, *constants: str, **attributes: Any) -> None:  # noqa: ANN401
        """Add a node that takes the last one's output and constants."""
        self.aside(kind, name, self._last, *constants, **attributes)
        self._last = name

    def aside(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        """Add a node that the next one does not follow, and give its name."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def weigh(self, name: str, layer: Conv | Linear | IntConv | IntLinear, weight: str, bias: str) -> None:
        """Add a convolution or a fully connected layer."""
        if isinstance(layer, Conv | IntConv):
            self.add(
                "Conv",
                name,
                weight,
                bias,
                kernel_shape=layer.weight.shape[2:],
                strides=layer.stride,
                pads=layer.padding * 2,
                dilations=layer.dilation,
                group=layer.groups,
            )
        else:
            self.flatten()
            self.add("Gemm", name, weight, bias, transB=1)

    def pool(self, name: str, layer: Pool | IntPool, whole: bool) -> None:
        """Add a pooling layer, of a fixed size or of the whole map."""
        if whole:
            self.add("GlobalAveragePool", name)
        elif layer.kind == "average":
            self.add("AveragePool", name, kernel_shape=layer.size, strides=layer.stride)
        else:
            self.add("MaxPool", name, kernel_shape=layer.size, strides=layer.stride, pads=layer.padding * 2)

    def flatten(self) -> bool:
        """Make vectors of maps, if that is not done yet; whether it was not."""
        if self._flat:
            return False
        self.add("Flatten", "flat", axis=1)
        self._flat = True
        return True

    def model(self, card: ModelCard, options: Options, outputs: int) -> Any:  # noqa: ANN401
        """The `onnx.ModelProto`.

        Args:
            card: with the size of the images.
            options: which axes are fixed.
            outputs: of the last layer.
        """
        from onnx import TensorProto, helper

        self._nodes[-1].output[0] = "logits"
        size = ["height", "width"] if options.any_size else card.input_size[1:]
        batch = options.batch or "batch"
        kind = TensorProto.UINT8 if self._from_pixels else TensorProto.FLOAT
        images = helper.make_tensor_value_info("images", kind, [batch, card.input_size[0], *size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, outputs])
        graph = helper.make_graph(self._nodes, "chain", [images], [logits], self._tensors)
        opset = [helper.make_opsetid("", OPSET)]
        version = helper.find_min_ir_version_for(opset)
        return helper.make_model(graph, opset_imports=opset, ir_version=version, producer_name="diracnets")
