"""LiteRT, once TensorFlow Lite: a chain as a .tflite file, float or int8, for phones and by TFLite Micro for
microcontrollers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import KEY, Backend, Options, Run
from diracnets.deploy.export import probe_pixels
from diracnets.deploy.litert_graph import content
from diracnets.deploy.pixels import integers_of_pixels
from diracnets.deploy.tflite import metadata_of
from diracnets.errors import ExportError, UsageError
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntegerChain


def load(path: Path, *, reference: bool = False) -> Run:
    """A function that runs a .tflite file of ours, as many images at a time as the file takes.

    Args:
        path: of the file.
        reference: by LiteRT's reference kernels, which compute in integers as TFLite Micro's do, not by its fast ones.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    threads = torch.get_num_threads()
    interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    batch, height, width, channels = (int(side) for side in source["shape"])
    of_pixels = source["name"] == "pixels"

    def run(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if images.shape[1:] != (channels, height, width):
            raise UsageError(f"{path} takes images of {channels}x{height}x{width}, not {list(images.shape[1:])}")
        if (images.dtype == np.uint8) != of_pixels:
            wanted = "uint8 pixels" if of_pixels else "normalized images"
            raise UsageError(f"{path} takes {wanted}, not {images.dtype}")
        given = _written(images.transpose(0, 2, 3, 1), source)
        logits = np.empty((len(given), int(result["shape"][1])), np.float32)
        part = np.zeros((batch, *given.shape[1:]), given.dtype)
        for start in range(0, len(given), batch):
            many = min(batch, len(given) - start)
            part[:many] = given[start : start + many]
            interpreter.set_tensor(source["index"], part)
            interpreter.invoke()
            logits[start : start + many] = _read(interpreter.get_tensor(result["index"]), result)[:many]
        return logits

    return run


def _written(images: npt.NDArray[Any], details: dict[str, Any]) -> npt.NDArray[Any]:
    """Images or pixels as the tensor that `details` are of takes them."""
    if details["dtype"] is not np.int8:
        return np.ascontiguousarray(images, details["dtype"])
    if images.dtype == np.uint8:
        return (images.astype(np.int16) - 128).astype(np.int8)
    real = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return _quantization(details).integers(real).to(torch.int8).numpy()


def _read(values: npt.NDArray[Any], details: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The real numbers of the tensor that `details` are of."""
    if details["dtype"] is not np.int8:
        return values
    return _quantization(details).real(torch.from_numpy(values)).numpy()


def _quantization(details: dict[str, Any]) -> Quantization:
    scale, zero_point = details["quantization"]
    return Quantization(float(scale), int(zero_point))


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    path.write_bytes(content(model, card, options))
    if isinstance(model, IntegerChain):
        _prove(model, card, path, options)


def _prove(chain: IntegerChain, card: ModelCard, path: Path, options: Options) -> None:
    """Refuse a file of which the reference kernels make other integers than the chain."""
    pixels = probe_pixels(2, chain.input_size)
    if options.from_pixels:
        images = pixels
        integers = integers_of_pixels(chain, card).integers(torch.from_numpy(pixels.astype(np.int16) - 128))
        wanted = chain.output.real(integers)
    else:
        mean, std = (np.reshape(values, (-1, 1, 1)) for values in (card.mean, card.std))
        images = ((pixels / 255 - mean) / std).astype(np.float32)
        wanted = chain(torch.from_numpy(images))
    if not np.array_equal(load(path, reference=True)(images), wanted.numpy()):
        raise ExportError("LiteRT's reference kernels compute other integers than the network; the file was not kept")


def _load(path: Path, card: ModelCard) -> Run:
    return load(path)


def _describes(path: Path) -> str:
    text = metadata_of(path, KEY)
    if text is None:
        raise ValueError(f"it has no metadata called {KEY}")
    return text.decode()


BACKEND = Backend(
    name="litert",
    summary="TensorFlow Lite: LiteRT on phones, TFLite Micro on microcontrollers",
    suffix=".tflite",
    # By the reference kernels, int8 is exact. The fast ones round once where those round twice: a layer's numbers are
    # one step away, one in 1,000; after 28 layers of a trained DiracNet the logits are up to 13 of 255 steps away.
    tolerance={"float32": 1e-4, "int8": 32.0},
    write=_write,
    load=_load,
    describes=_describes,
    extra="litert",
    packages=("ai_edge_litert", "flatbuffers"),
    dynamic=False,
    branches=False,
)
