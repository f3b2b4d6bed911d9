"""`export`: a network becomes a file of another format, which is run and compared before it is kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, card_of
from diracnets.artifacts.chain import to_chain
from diracnets.artifacts.load import load_as_stored
from diracnets.deploy.backend import Backend, Options, Run, precision_of, usable
from diracnets.errors import DiracNetsError, ExportError, UsageError, first_line
from diracnets.files import written_together
from diracnets.folding.fold import fold
from diracnets.models.integer import IntegerChain
from diracnets.models.network import Network

Images = npt.NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Args:
        path: of the (main) file.
        files: all that was written, with their sizes in bytes.
        format: the name of the format.
        precision: "float32" or "int8".
        input: the type and shape of what the file takes, in words.
        images: on how many images it was compared; 0 where it cannot be run.
        difference: the largest between an output of the file and of the network.
        scale: the largest absolute output of the network.
        notes: what else is worth knowing of the file, in lines of text; "" where there is nothing.
        unseen: why it was not run and compared; "" where it was.
    """

    path: Path
    files: dict[Path, int]
    format: str
    precision: str
    input: str
    images: int
    difference: float
    scale: float
    notes: str = ""
    unseen: str = ""

    def __repr__(self) -> str:
        compared = f"largest difference {self.difference:.1e}" if not self.unseen else "not compared"
        return f"<Exported to {self.path}: {self.format}, {self.precision}, {compared}>"

    def __str__(self) -> str:
        written = ", ".join(f"{file} ({size:,} bytes)" for file, size in self.files.items())
        compared = (
            f"on {self.images} images: largest difference {self.difference:.1e}, for outputs up to {self.scale:.3g}"
        )
        if self.unseen:
            compared = f"no: {self.unseen}. Try the file there before you rely on it"
        notes = f"\n\n{self.notes}" if self.notes else ""
        return f"input       {self.input}\ncompared    {compared}\nwrote       {written}{notes}"


def export(
    model: nn.Module | str | Path,
    to: str,
    path: str | Path | None = None,
    *,
    batch: int | None = None,
    from_pixels: bool = False,
    card: ModelCard | None = None,
    force: bool = False,
    weights_apart: bool = False,
    plan: str | None = None,
) -> Exported:
    """Write a network to a file of another format, run that file, and keep it if it computes the same.

    Args:
        model: a file or name that `load` reads, or a network in evaluation mode. A network of ours is folded first.
        to: the format, one of `diracnets export --list`.
        path: of the file to write, with the format's suffix; by default that of the model with this suffix.
        batch: how many images the file takes at a time; all of its shapes are fixed then, and the last pooling is one
            of a fixed size. By default any number, where the format has that, and any height and width, where the
            network has that too; else one image of the card's size.
        from_pixels: let the file take pixels, uint8 0..255, and normalize them itself.
        card: what the network is, for one that has no `card` itself.
        force: replace files that are there.
        weights_apart: write the weights to a file of their own; only "c" has this.
        plan: of the memory, "mixed", "row-by-row" or "in-place"; by default the one that needs least. Only "c" has it.

    Returns:
        What was written, and how far it is from what the network computes in float64.

    Raises:
        UsageError: an unknown format, a wrong number, no card, a network in training mode, a file that is there.
        MissingExtraError: what the format needs is not installed; the message says how to install it.
        FileError: the model cannot be read, or the file not written.
        FoldError: the network does not fold exactly.
        ExportError: the format cannot hold the network, or the file computes something else; it is not kept.

    >>> import tempfile
    >>> chain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    >>> made = export(chain, "pt2", Path(tempfile.mkdtemp()) / "net.pt2", card=ModelCard((1, 8, 8), (0.5,), (0.5,)))
    >>> made.difference < 1e-5
    True
    """
    backend = usable(to)
    path = _path(model, path, backend)
    if batch is not None and batch < 1:
        raise UsageError(f"batch is {batch}; it must be at least 1, or left out for any number")
    for option, given in (("weights_apart", weights_apart), ("plan", plan is not None)):
        if given and option not in backend.takes:
            raise UsageError(f"{to} has no --{option.replace('_', '-')} ({option}): that is for c alone")
    _refuse_existing([path], force)
    network, card = _network(model, card)
    precision = precision_of(network)
    if precision not in backend.tolerance:
        raise UsageError(f"{to} cannot be written in {precision}, only in {' and '.join(backend.tolerance)}")
    if not backend.branches and not isinstance(network, nn.Sequential) and precision == "float32":
        raise UsageError(f"{to} takes chains, and {_name(network)} has branches: onnx, openvino and pt2 take it")
    if not backend.dynamic:
        batch = batch or 1
    any_size = _takes_any_size(network, card) and backend.sizes and batch is None and precision == "float32"
    options = Options(batch, from_pixels, any_size, weights_apart, plan)
    with written_together(path) as part:
        try:
            backend.write(deepcopy(network), card, part, options)
            load = backend.exact or backend.load
            compared = None if backend.unrunnable else _outputs(load(part, card), network, card, options)
        except (DiracNetsError, OSError):
            raise
        except Exception as error:  # of a converter or a runtime
            raise ExportError(f"{_name(model)} cannot be exported to {to}: {_reason(error)}") from error
        images, difference, scale = (0, 0.0, 0.0) if compared is None else _compare(backend, *compared, network)
        notes = backend.notes(part)
        files = {path.with_name(file.name): _size(file) for file in sorted(part.parent.iterdir())}
        _refuse_existing(list(files), force)
    shape = [batch or "batch", card.input_size[0], *(("height", "width") if options.any_size else card.input_size[1:])]
    kind = "uint8 pixels" if from_pixels else "float32, normalized"
    described = f"[{', '.join(map(str, shape))}] {kind}"
    return Exported(path, files, to, precision, described, images, difference, scale, notes, backend.unrunnable)


def probe_pixels(count: int, input_size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Images to compare networks on: every second one is noise, the others are blocks of one colour each.

    >>> probe_pixels(2, (3, 8, 8)).shape
    (2, 3, 8, 8)
    """
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (count, *input_size), np.uint8)
    channels, height, width = input_size
    coarse = generator.integers(0, 256, (count, channels, 4, 4), np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    noise[1::2] = coarse[1::2][:, :, rows][:, :, :, columns]
    return noise


def _path(model: nn.Module | str | Path, path: str | Path | None, backend: Backend) -> Path:
    if path is None:
        if isinstance(model, nn.Module):
            raise UsageError("path is missing: where is the file to be written?")
        given = Path(model)
        path = given.with_suffix(backend.suffix) if given.is_file() else Path(f"{given.name}{backend.suffix}")
    path = Path(path)
    if path.is_dir() and path.suffix != backend.suffix:
        raise UsageError(f"{path} is a folder: name a file in it, such as {path / f'model{backend.suffix}'}")
    if path.suffix != backend.suffix:
        raise UsageError(f"{path} is no name for a file of {backend.name}: it must end in {backend.suffix}")
    return path


def _refuse_existing(files: list[Path], force: bool) -> None:
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        raise UsageError(f"{there[0]} exists: choose another name, or replace it with --force (force=True)")


def _network(model: nn.Module | str | Path, card: ModelCard | None) -> tuple[nn.Module, ModelCard]:
    """What is exported: folded, in float32, on the CPU, without gradients; and its card."""
    network = model if isinstance(model, nn.Module) else load_as_stored(model)
    if network.training:
        raise UsageError(f"{_name(model)} is in training mode: call .eval() first")
    card = card or card_of(network)
    if card is None:
        raise UsageError(
            f"{_name(model)} does not say which images it takes: give card=ModelCard(...), or export a model file"
        )
    if len(card.input_size) != 3:
        raise UsageError(f"{_name(model)} takes no images of (channels, height, width), but {card.input_size}")
    if isinstance(network, Network):
        network = to_chain(network) if network.is_chain else fold(deepcopy(network).cpu().eval())
        card = replace(card, fold=(card_of(network) or card).fold)
    if precision_of(network) == "float32":
        network = deepcopy(network).to("cpu", torch.float32)
        for parameter in network.parameters():  # torch.export would warn of weights that are channels_last
            parameter.data = parameter.data.contiguous()
    return network.requires_grad_(False), card


def _takes_any_size(network: nn.Module, card: ModelCard) -> bool:
    """Whether a larger image, of other proportions, gives outputs of the same shape.

    Raises:
        UsageError: an image of the card's size does not give one vector.
    """
    channels, height, width = card.input_size
    with torch.inference_mode():
        try:
            usual = tuple(network(torch.zeros(1, channels, height, width)).shape)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{_name(network)} does not take images of {card.input_size}: {_reason(error)}") from error
        if len(usual) != 2:
            raise UsageError(f"{_name(network)} does not classify: it makes {usual} of one image")
        try:
            other = tuple(network(torch.zeros(1, channels, height + 17, width + 38)).shape)
        except (RuntimeError, ValueError):
            return False
    return usual == other


def _outputs(run: Run, network: nn.Module, card: ModelCard, options: Options) -> tuple[Images, Images]:
    """What the file and the network make of probe images, in all shapes that the file takes: [images, classes]."""
    channels, height, width = card.input_size
    size = options.batch or 4
    many = -(-4 // size)
    batches = np.split(probe_pixels(size * many, (channels, height, width)), many)
    if options.batch is None:
        batches.append(batches[0][1:2])
    if options.any_size:
        batches.append(probe_pixels(2, (channels, height + 17, width + 38)))
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (card.mean, card.std))
    exact = network if precision_of(network) == "int8" else deepcopy(network).double()
    found, wanted = [], []
    for pixels in batches:
        inputs = (pixels / 255 - mean) / std
        with torch.inference_mode():
            if exact is network:
                outputs = network(torch.from_numpy(inputs.astype(np.float32)))
            else:
                outputs = exact(torch.from_numpy(inputs))
        wanted.append(outputs.double().numpy())
        found.append(np.asarray(run(pixels if options.from_pixels else inputs.astype(np.float32)), np.float64))
        if found[-1].shape != wanted[-1].shape:
            raise ExportError(f"the exported file gives {found[-1].shape} where the network gives {wanted[-1].shape}")
    return np.concatenate(found), np.concatenate(wanted)


def _compare(backend: Backend, found: Images, wanted: Images, network: nn.Module) -> tuple[int, float, float]:
    """The number of images, the largest difference and the largest output; ExportError where they differ too much."""
    difference, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    allowed = backend.tolerance[precision_of(network)]
    most = allowed * (network.output.scale if isinstance(network, IntegerChain) else scale)
    if not np.isfinite(scale):
        raise ExportError("the network's own outputs are not finite: there is nothing to compare with")
    if not difference <= most:
        raise ExportError(
            f"the exported file computes something else: outputs of up to {scale:.3g} differ by {difference:.3g}, "
            f"where {most:.2g} is accepted of {backend.name}; it was not kept"
        )
    return len(wanted), difference, scale


def _size(path: Path) -> int:
    """Of a file, or of all that are in a folder, in bytes."""
    return sum(part.stat().st_size for part in ([path] if path.is_file() else path.rglob("*")) if part.is_file())


def _name(model: nn.Module | str | Path) -> str:
    return f"this {type(model).__name__}" if isinstance(model, nn.Module) else str(model)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
