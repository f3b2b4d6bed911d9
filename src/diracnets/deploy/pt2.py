"""torch.export: a network as a graph of torch's operators, which torch runs without the code that made it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description, precision_of
from diracnets.deploy.pixels import integers_of_pixels, taking_pixels
from diracnets.models.integer import IntegerChain


def exported_program(model: nn.Module, card: ModelCard, options: Options) -> torch.export.ExportedProgram:
    """The graph of a network, in which axes of any length have names."""
    if isinstance(model, IntegerChain):
        module: nn.Module = _Integers(integers_of_pixels(model, card) if options.from_pixels else model)
    else:
        module = taking_pixels(model, card) if options.from_pixels else model
    images = torch.zeros(options.batch or 2, *card.input_size, dtype=torch.uint8 if options.from_pixels else None)
    axes: dict[int, Any] = {} if options.batch else {0: torch.export.Dim("batch", min=1)}
    if options.any_size:
        axes |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(module, (images,), dynamic_shapes=(axes,) if axes else None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files on this machine
    return program


class _Integers(nn.Module):
    """An integer chain for all images at once, in steps that can be traced; of images, or of bytes."""

    def __init__(self, chain: IntegerChain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, images: Tensor) -> Tensor:
        """float32 normalized or uint8 [batch, channels, height, width] -> float32 [batch, classes]."""
        bytewise = images.dtype == torch.uint8
        integers = images.float() - 128 if bytewise else self.chain.input.integers(images)
        return self.chain.output.real(self.chain.logits(integers))


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    program = exported_program(model, card, options)
    content = io.BytesIO()  # writing to a disk that is full, torch ends the process
    torch.export.save(program, content, extra_files={KEY: description(card, options, precision_of(model))})
    path.write_bytes(content.getvalue())


def _load(path: Path, card: ModelCard) -> Run:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return run


def _describes(path: Path) -> str:
    found = {KEY: ""}
    torch.export.load(path, extra_files=found)
    return found[KEY]


BACKEND = Backend(
    name="pt2",
    summary="torch.export, for torch without the network's code",
    suffix=".pt2",
    tolerance={"float32": 1e-4, "int8": 0.0},
    write=_write,
    load=_load,
    describes=_describes,
)
