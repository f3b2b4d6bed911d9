"""An integer chain as an ONNX graph of QuantizeLinear and DequantizeLinear, with the chain's own integers and scales.

Runtimes merge each convolution with the nodes around it into one of integers. They may round another way than the chain
does, so that now and then an activation is off by one step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import Options
from diracnets.deploy.onnx_graph import Graph
from diracnets.deploy.pixels import integers_of_pixels
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLinear, IntPool


def integer_proto(chain: IntegerChain, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """The `onnx.ModelProto` of an integer chain, without metadata.

    Weights are int8, by channel where the chain has a scale for each, biases int32, activations int8. Pixels, if they
    are asked for, are the uint8 input itself.
    """
    graph = Graph(options.from_pixels)
    if options.from_pixels:
        chain = integers_of_pixels(chain, card)
        scale = graph.constant("pixels.scale", np.array(chain.input.scale, np.float32))
        graph.add("DequantizeLinear", "pixels", scale, graph.constant("pixels.zero", np.array(0, np.uint8)))
    else:
        _quantize(graph, "images", chain.input)
    for layer in chain.layers:
        name = f"layer.{layer.name}"
        if isinstance(layer, IntPool):
            graph.pool(name, layer, whole=False)
        else:
            if isinstance(layer, IntLinear) and graph.flatten():
                _quantize(graph, "flat", layer.input)
            graph.weigh(name, layer, *_parameters(graph, name, layer))
            if layer.relu:
                graph.add("Relu", f"{name}.relu")
        _quantize(graph, name, layer.output)
    graph.flatten()
    return graph.model(card, options, chain.layers[-1].after[0])


def _quantize(graph: Graph, name: str, to: Quantization) -> None:
    scale = graph.constant(f"{name}.scale", np.array(to.scale, np.float32))
    zero = graph.constant(f"{name}.zero", np.array(to.zero_point, np.int8))
    graph.add("QuantizeLinear", f"{name}.integers", scale, zero)
    graph.add("DequantizeLinear", f"{name}.real", scale, zero)


def _parameters(graph: Graph, name: str, layer: IntConv | IntLinear) -> list[str]:
    """The names of the weight and the bias, computed from their integers."""
    axis = {"axis": 0} if len(layer.scales) > 1 else {}
    bias_scales = (np.float64(layer.input.scale) * layer.scales.astype(np.float64)).astype(np.float32)
    made = []
    for what, integers, scales in (("weight", layer.weight, layer.scales), ("bias", layer.bias, bias_scales)):
        values = graph.constant(f"{name}.{what}.integers", integers)
        scale = graph.constant(f"{name}.{what}.scale", scales if axis else scales[0])
        zeros = np.zeros(len(scales) if axis else (), integers.dtype)
        zero = graph.constant(f"{name}.{what}.zero", zeros)
        made.append(graph.aside("DequantizeLinear", f"{name}.{what}", values, scale, zero, **axis))
    return made
