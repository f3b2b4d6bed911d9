"""ExecuTorch: a .pte file for phones and other small machines, computed by XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import Backend, Options, Run, beside, described_beside, description, quiet
from diracnets.deploy.graph import as_convolution
from diracnets.deploy.pixels import FromBytes, taking_pixels, with_normalization
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLinear, IntPool

MOST = 64  # images at a time, of a file that takes any number: ExecuTorch plans its memory for the largest


def program(model: nn.Module, card: ModelCard, options: Options) -> Any:  # noqa: ANN401
    """The `ExecutorchProgramManager` of a network, all of whose layers XNNPACK computes.

    It takes `options.batch` images, or 1 to `MOST`. An integer chain keeps its integers, scales and zero points.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module = _taking_pixels(model, card) if options.from_pixels else _real(model)
    # The example has as many images as there may be: with fewer, ExecuTorch plans for 15 between XNNPACK's parts.
    images = torch.zeros(options.batch or MOST, *card.input_size, dtype=torch.uint8 if options.from_pixels else None)
    axes = None if options.batch else ({0: torch.export.Dim("batch", min=1, max=MOST)},)
    with quiet():
        exported = torch.export.export(module, (images,), dynamic_shapes=axes)
        return to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()


def _real(model: nn.Module) -> nn.Module:
    return QuantizedChain(model).eval() if isinstance(model, IntegerChain) else model


def _taking_pixels(model: nn.Module, card: ModelCard) -> nn.Module:
    if isinstance(model, IntegerChain):
        return FromBytes(with_normalization(QuantizedChain(model), card)).eval()
    return taking_pixels(model, card)


class QuantizedChain(nn.Module):
    """An integer chain in torch's operators of real numbers, each between quantize and dequantize: the form in which
    ExecuTorch's backends recognize int8 layers.

    Args:
        chain: whose int8 weights, biases, scales and zero points are kept.
    """

    def __init__(self, chain: IntegerChain) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # registers the operators

        # XNNPACK wants what it multiplies right after dequantize: no flattening there.
        self.layers = [as_convolution(layer) if isinstance(layer, IntLinear) else layer for layer in chain.layers]
        for index, layer in enumerate(self.layers):
            if isinstance(layer, IntConv):
                scales = np.broadcast_to(layer.scales, layer.bias.shape)
                real = layer.bias * (np.float64(layer.input.scale) * scales)
                self.register_buffer(f"weight{index}", torch.from_numpy(layer.weight.copy()))
                self.register_buffer(f"bias{index}", torch.from_numpy(real.astype(np.float32)))
                self.register_buffer(f"scales{index}", torch.from_numpy(scales.copy()))
                self.register_buffer(f"zeros{index}", torch.zeros(len(scales), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images, float32 [batch, channels, height, width] -> logits, float32 [batch, classes]."""
        x = _through(x, self.layers[0].input)
        for index, layer in enumerate(self.layers):
            x = self._convolve(layer, index, x) if isinstance(layer, IntConv) else self._pool(layer, x)
            x = _through(x, layer.output)
        return x.flatten(1)

    def _convolve(self, layer: IntConv, index: int, x: Tensor) -> Tensor:
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            *(getattr(self, f"{what}{index}") for what in ("weight", "scales", "zeros")), 0, -127, 127, torch.int8
        )
        bias = getattr(self, f"bias{index}")
        x = functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return functional.relu(x) if layer.relu else x

    def _pool(self, layer: IntPool, x: Tensor) -> Tensor:
        if layer.kind == "max":
            return functional.max_pool2d(x, layer.size, layer.stride, layer.padding)
        if layer.size == layer.before[1:]:
            return x.mean((2, 3), keepdim=True)
        return functional.avg_pool2d(x, layer.size, layer.stride)


def _through(x: Tensor, step: Quantization) -> Tensor:
    """Real numbers rounded to int8, and back."""
    how = (step.scale, step.zero_point, -128, 127, torch.int8)
    operators = torch.ops.quantized_decomposed
    rounded = operators.quantize_per_tensor(x, *how)
    return operators.dequantize_per_tensor(rounded, *how)  # type: ignore[no-any-return]


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    path.write_bytes(program(model, card, options).buffer)
    precision = "int8" if isinstance(model, IntegerChain) else "float32"
    beside(path).write_text(description(card, options, precision), encoding="utf-8")


def _load(path: Path, card: ModelCard) -> Run:
    with quiet():
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    most = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        parts = torch.split(torch.from_numpy(images), most)
        return np.concatenate([method.execute([part.contiguous()])[0].numpy().copy() for part in parts])

    return run


BACKEND = Backend(
    name="executorch",
    summary="ExecuTorch by XNNPACK, for Android, iOS and Linux on ARM",
    suffix=".pte",
    tolerance={"float32": 1e-4, "int8": 32.0},
    write=_write,
    load=_load,
    describes=described_beside,
    extra="mobile",
    packages=("executorch",),
    sizes=False,
)
