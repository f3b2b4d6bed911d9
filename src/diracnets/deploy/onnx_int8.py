"""int8 of any network, also of one with branches, by ONNX Runtime's own quantizer: to compare speed, nothing mended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import quiet
from diracnets.deploy.export import export

QUANTIZED = ("onnx", "openvino")  # the backends that take such a file


def int8_writer(
    model: nn.Module, card: ModelCard, images: npt.NDArray[np.float32], backend: str
) -> Callable[[Path, int | None], Path]:
    """A function that writes the network in int8 into a folder, for a number of images at a time (None for any).

    Weights are int8 per output channel and activations uint8 per tensor, in QDQ form, as ONNX Runtime recommends for
    processors of this kind; OpenVINO runs what it reads from that file.

    Args:
        model: a float network.
        card: of it.
        images: normalized, from which the ranges of activations come.
        backend: "onnx" or "openvino".
    """

    def write(folder: Path, batch: int | None) -> Path:
        import onnxruntime.quantization as quantization

        plain, path = folder / "float32.onnx", folder / f"int8-{batch or 'any'}.onnx"
        export(model, "onnx", plain, batch=batch, card=card)
        with quiet():  # it advises to optimize first, which the export has done
            quantization.quantize_static(
                plain,
                path,
                _Reader(images, batch or len(images)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        plain.unlink()
        return path if backend == "onnx" else _to_openvino(path)

    return write


def _to_openvino(path: Path) -> Path:
    import openvino

    target = path.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(path), target, compress_to_fp16=False)
    path.unlink()
    return target


class _Reader:
    """The calibration images, as ONNX Runtime asks for them."""

    def __init__(self, images: npt.NDArray[np.float32], batch: int) -> None:
        repeated = np.resize(images, (max(batch, len(images) // batch * batch), *images.shape[1:]))
        self._parts = iter(np.split(repeated, len(repeated) // batch))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part}

    def __len__(self) -> int:
        return 0
