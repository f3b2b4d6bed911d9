"""AOTInductor: a network compiled ahead of time to machine code, which torch runs without compiling anything."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._inductor import aoti_compile_and_package, aoti_load_package

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description, quiet
from diracnets.deploy.pt2 import exported_program
from diracnets.errors import UsageError


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    metadata = {KEY: description(card, options, "float32")}
    program = exported_program(model, card, options)
    content = io.BytesIO()  # writing to a disk that is full, torch ends the process
    with quiet():
        aoti_compile_and_package(program, package_path=content, inductor_configs={"aot_inductor.metadata": metadata})
    path.write_bytes(content.getvalue())


def _load(path: Path, card: ModelCard) -> Run:
    network = aoti_load_package(str(path))
    axes = json.loads(_metadata(network))["input"]["shape"]

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if not all(isinstance(axis, str) or axis == given for axis, given in zip(axes, images.shape, strict=True)):
            raise UsageError(f"{path} takes images of {axes}, not of {list(images.shape)}")  # it would take them
        with torch.inference_mode():
            logits: torch.Tensor = network(torch.from_numpy(images))
        return logits.numpy()

    return run


def _describes(path: Path) -> str:
    return _metadata(aoti_load_package(str(path)))


def _metadata(network: Any) -> str:  # noqa: ANN401
    return str(network.loader.get_metadata()[KEY])


def _lacks() -> str:
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) or shutil.which("clang++") else f"a C++ compiler ({compiler})"


BACKEND = Backend(
    name="aoti",
    summary="AOTInductor, machine code for torch on processors like this one",
    suffix=".pt2",
    tolerance={"float32": 1e-4},
    write=_write,
    load=_load,
    describes=_describes,
    lacks=_lacks,
    sizes=False,  # compiling for any size takes several times as long
)
