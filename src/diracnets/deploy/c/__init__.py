"""C99: a chain as one file without dependencies, for microcontrollers and whatever else has a C compiler."""

from __future__ import annotations

import ctypes
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.backend import Backend, Options, Run, beside, described_beside, description, precision_of
from diracnets.deploy.c.compiled import FLAGS, lacks_compiler, library
from diracnets.deploy.c.describe import describe
from diracnets.deploy.c.network import network_of
from diracnets.deploy.c.plan import plans
from diracnets.deploy.c.write import identifier, source_of
from diracnets.errors import ExportError, UsageError, did_you_mean
from diracnets.files import written_whole
from diracnets.models.fixed_point import Quantization


def write_c(
    model: nn.Module,
    card: ModelCard,
    path: str | Path,
    *,
    from_pixels: bool = True,
    weights_apart: bool = False,
    plan: str | None = None,
) -> list[Path]:
    """Write a chain in C99: PATH.c, PATH.h and, for pixels, PATH.main.c, a program that classifies images.

    Args:
        model: a chain of floats, or an `IntegerChain`, whose C computes in integers alone, bit for bit the same.
        card: of it.
        path: of the .c file.
        from_pixels: take pixels, 0..255; otherwise normalized floats, or the int8 that stand for them.
        weights_apart: write the weights to PATH.bin rather than into the code; the program loads them with NAME_load.
        plan: of the memory: "mixed", "row-by-row" or "in-place"; by default the one that needs least.

    Returns:
        The files.

    Raises:
        UsageError: a network that is no chain, a layer that cannot be written, an unknown plan.
        FileError: a file cannot be written.

    >>> import tempfile
    >>> chain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> card = ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,))
    >>> [file.name for file in write_c(chain, card, Path(tempfile.mkdtemp()) / "net.c")]
    ['net.c', 'net.h', 'net.main.c']
    """
    path = Path(path)
    network = network_of(model, card)
    row = card.input_size[0] * card.input_size[2] * (1 if network.integers else 4)
    known = {each.name: each for each in plans(network.steps, row if from_pixels else 0)}
    if plan is not None and plan not in known:
        choice = f"choose of {', '.join(known)}"
        raise UsageError(f"there is no plan {plan!r}: {did_you_mean(plan, known, choice)}")
    chosen = known[plan] if plan else min(known.values(), key=lambda each: (each.size, len(each.segments)))
    about = describe(network, card, chosen, known, str((card.architecture or {}).get("name", path.stem)))
    source = source_of(network, card, chosen, path.stem, about, from_pixels, weights_apart)
    texts = {".c": source.code, ".h": source.header, ".main.c": source.main}
    files = {path.with_suffix(suffix): text.encode() for suffix, text in texts.items() if text}
    if source.weights:
        files[path.with_suffix(".bin")] = source.weights
    for file, content in files.items():
        with written_whole(file) as part:
            part.write_bytes(content)
    return list(files)


def load_c(path: str | Path, flags: Sequence[str] = FLAGS) -> Run:
    """Compile a .c file that `write_c` wrote and call it from Python.

    Args:
        path: of the .c file; the .h file is beside it, and the .bin file, if the weights are apart.
        flags: of the compiler.

    Returns:
        A function: images [batch, channels, height, width], uint8 pixels or normalized float32, as it was written ->
        float32 [batch, outputs].

    Raises:
        ExportError: there is no compiler, or it fails; or the weights belong to another file.
        OSError: a file that cannot be read.
    """
    path = Path(path)
    compiled, name = library(path, flags), identifier(path.stem)
    classify = getattr(compiled, f"{name}_run")
    header = path.with_suffix(".h").read_text(encoding="utf-8")
    known = {key: float(value) for key, value in _DEFINED.findall(header)}
    weights = np.empty(0, np.uint8)  # has to stay where it is as long as `run` lives
    if "WEIGHTS_SIZE" in known:
        apart = path.with_suffix(".bin")
        weights = np.fromfile(apart, np.uint8)
        load = getattr(compiled, f"{name}_load")
        if len(weights) != known["WEIGHTS_SIZE"] or not load(weights.ctypes.data_as(ctypes.c_void_p)):
            raise ExportError(f"{apart} does not hold the weights of {path}")
    outputs = np.zeros(int(known["OUTPUTS"]), np.int8 if "OUTPUT_SCALE" in known else np.float32)

    def run(images: npt.NDArray[Any], weights: object = weights) -> npt.NDArray[np.float32]:
        if "INPUT_SCALE" in known:
            taken = Quantization(known["INPUT_SCALE"], int(known["INPUT_ZERO_POINT"]))
            images = taken.integers(torch.from_numpy(images.astype(np.float32))).numpy().astype(np.int8)
        made = []
        for image in np.ascontiguousarray(images.transpose(0, 2, 3, 1)):
            classify(image.ctypes.data_as(ctypes.c_void_p), outputs.ctypes.data_as(ctypes.c_void_p))
            made.append(outputs.copy())
        result = np.stack(made)
        if "OUTPUT_CHANNELS" in known:
            places = result.reshape(len(result), -1, int(known["OUTPUT_CHANNELS"]))
            result = np.ascontiguousarray(places.swapaxes(1, 2)).reshape(len(result), -1)
        if "OUTPUT_SCALE" not in known:
            return result
        given = Quantization(known["OUTPUT_SCALE"], int(known["OUTPUT_ZERO_POINT"]))
        return given.real(torch.from_numpy(result)).numpy()

    return run


def _write(model: nn.Module, card: ModelCard, path: Path, options: Options) -> None:
    if options.batch != 1:
        raise UsageError(
            f"C takes one image at a time, not {options.batch}: leave --batch (batch) out; parity takes --batches 1"
        )
    apart, plan = options.weights_apart, options.plan
    write_c(model, card, path, from_pixels=options.from_pixels, weights_apart=apart, plan=plan)
    beside(path).write_text(description(card, options, precision_of(model)), encoding="utf-8")


def _notes(path: Path) -> str:
    """The comment on top of the file, without its first lines."""
    comment = path.read_text(encoding="utf-8").partition("*/")[0]
    return textwrap.dedent(comment[comment.index("   Static memory") :]).strip()


_DEFINED = re.compile(
    r"^#define \w+?_(OUTPUTS|OUTPUT_CHANNELS|WEIGHTS_SIZE|(?:IN|OUT)PUT_(?:SCALE|ZERO_POINT)) \(?([-+.\de]+)",
    re.MULTILINE,
)

BACKEND = Backend(
    name="c",
    summary="C99 without dependencies, for microcontrollers",
    suffix=".c",
    tolerance={"float32": 1e-4, "int8": 0.0},
    write=_write,
    load=lambda path, card: load_c(path),
    describes=described_beside,
    lacks=lacks_compiler,
    dynamic=False,
    branches=False,
    notes=_notes,
    takes=("weights_apart", "plan"),
)
