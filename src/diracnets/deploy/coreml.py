"""Core ML: a model package for Apple's systems. It is converted here, but only those systems can run it."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run, description, quiet
from diracnets.deploy.pixels import with_normalization
from diracnets.errors import UsageError

_UNRUNNABLE = "only Apple's systems run Core ML"


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    shape = (options.batch or 1, *card.input_size)
    if options.from_pixels and (shape[0] != 1 or shape[1] not in (1, 3)):
        raise UsageError(f"Core ML takes the pixels of one gray or RGB image at a time, not of images {list(shape)}")
    module = with_normalization(model, card) if options.from_pixels else model
    with quiet(), redirect_stderr(StringIO()):  # where coremltools draws its progress
        import coremltools

        layout = coremltools.colorlayout.GRAYSCALE if shape[1] == 1 else coremltools.colorlayout.RGB
        source = (
            coremltools.ImageType("images", shape=shape, color_layout=layout)
            if options.from_pixels
            else coremltools.TensorType("images", shape=shape)
        )
        package = coremltools.convert(
            torch.jit.trace(module, torch.zeros(shape)),  # type: ignore[no-untyped-call]
            inputs=[source],
            outputs=[coremltools.TensorType("logits")],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS15,
            compute_precision=coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        package.short_description = "a network written by diracnets"
        package.user_defined_metadata[KEY] = description(card, options, "float32")
        package.save(str(path))


def _load(path: Path, card: ModelCard) -> Run:
    raise UsageError(f"{path} cannot be run: {_UNRUNNABLE}")


def _describes(path: Path) -> str:
    with quiet():
        import coremltools

        specification = coremltools.utils.load_spec(str(path))
    return str(specification.description.metadata.userDefined[KEY])


BACKEND = Backend(
    name="coreml",
    summary="Core ML, for iPhones and Macs; converted, but not run and compared",
    suffix=".mlpackage",
    tolerance={"float32": 0.0},
    write=_write,
    load=_load,
    describes=_describes,
    extra="coreml",
    packages=("coremltools",),
    unrunnable=_UNRUNNABLE,
    dynamic=False,
)
