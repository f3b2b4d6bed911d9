"""OpenVINO: the intermediate representation (.xml and .bin) of the network's ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description, precision_of
from diracnets.deploy.onnx import model_proto
from diracnets.errors import first_line


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    import openvino
    from openvino.passes import ConstantFolding, Manager

    graph = openvino.Core().read_model(model_proto(model, card, options).SerializeToString())
    precision = precision_of(model)
    if precision == "float32":  # of integers, it would fold the weights to float32
        tidy = Manager()
        tidy.register_pass(ConstantFolding())  # how to broadcast each bias, which is computed at first
        tidy.run_passes(graph)
    graph.set_rt_info(description(card, options, precision), [KEY])
    try:
        openvino.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"OpenVINO could not write to the disk, which may be full ({first_line(error)})") from error


def _load(path: Path, card: ModelCard) -> Run:
    return _compiled(path)


def _exact(path: Path, card: ModelCard) -> Run:
    """With integers computed as whole float32 numbers: without VNNI, OpenVINO's sums of int8 products saturate."""
    return _compiled(path, LP_TRANSFORMS_MODE="NO")


def _compiled(path: Path, **more: str) -> Run:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), **more}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.array(compiled(images)[0], np.float32)

    return run


def _describes(path: Path) -> str:
    import openvino

    text = openvino.Core().read_model(str(path)).get_rt_info([KEY])
    return str(text.astype(str))


BACKEND = Backend(
    name="openvino",
    summary="OpenVINO IR, for Intel processors and GPUs, and ARM",
    suffix=".xml",
    tolerance={"float32": 1e-4, "int8": 32.0},
    write=_write,
    load=_load,
    exact=_exact,
    describes=_describes,
    extra="openvino",
    packages=("openvino", "onnx"),
)
