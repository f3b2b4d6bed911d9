"""The model file: one .safetensors file that holds a chain and describes itself; see `model_format`.

Nothing in a file is ever executed. The layers are built from a list of known types with bounded arguments, without
memory, and must agree with the tensors before these are read.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diracnets.artifacts import integer, layers, probe
from diracnets.artifacts.card import ModelCard, attach_card, card_of, the_card
from diracnets.artifacts.model_format import KEY, assemble, contents, hash_of, on_meta
from diracnets.errors import FileError, UsageError, first_line, shown
from diracnets.files import reading, written_whole
from diracnets.models.integer import IntegerChain
from diracnets.nn.module import check_module


@dataclass(frozen=True)
class Verified:
    """What `verify` found in a valid model file.

    Args:
        path: of the file.
        sha256: of its contents, as stored and as computed again.
        size: of the file, bytes.
        layers: how many.
        parameters: the number of values in the layers' weights and biases.
        probe_difference: largest absolute difference between the stored and the recomputed outputs on the probe.
        probe_scale: largest absolute value of the stored outputs.
    """

    path: Path
    sha256: str
    size: int
    layers: int
    parameters: int
    probe_difference: float
    probe_scale: float

    def __repr__(self) -> str:
        return f"<{self.path.name} is valid: {self.layers} layers, {self.parameters:,} parameters, {self.size:,} bytes>"


def save(
    chain: nn.Module,
    path: str | Path,
    *,
    card: ModelCard | None = None,
    input_size: tuple[int, ...] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    facts: ModelCard | None = None,
) -> None:
    """Write a chain and its card to a model file, whole or not at all.

    Args:
        chain: a flat `nn.Sequential` of ordinary layers, as `fold` makes it of a DiracNet, of any dtype, device
            and memory format, or the `IntegerChain` of one. Its weights are stored as they are, its mode (training or
            not) is not.
        path: of the file, by convention with the suffix .safetensors.
        card: the description of the network that the file will hold. By default the network's own, or one that is made
            of the four arguments that follow.
        input_size: (channels, height, width) of an image.
        mean: of each channel, for pixels in 0..1: the chain's input is (pixel - mean) / std.
        std: of each channel.
        classes: the name of each output, where they are known.
        facts: deprecated, the earlier name of `card`.

    Raises:
        UsageError: no card, or a part of one is missing; not a flat chain of layers that a file can hold, one with
            hooks or replaced methods, or one that does not fit the card.
        FileError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> save(chain, path, input_size=(1, 8, 8), mean=[0.5], std=[0.5], classes=["cat", "dog"])
    >>> read(path).card.classes
    ('cat', 'dog')
    """
    check_module(chain, "save")
    if facts is None:
        card = _made_card(card, input_size, mean, std, classes) or card_of(chain)
    card = the_card(card, facts, "save")
    plain = integer.as_float(chain) if isinstance(chain, IntegerChain) else chain
    content: dict[str, Any] = {"format": 2, "layers": layers.to_data(plain), "card": card.to_data()}
    if isinstance(chain, IntegerChain):
        content |= {"format": 3, "quantizations": integer.to_data(chain)}
    try:
        layers.refuse_changed(chain)
    except UsageError as error:
        raise UsageError(f"this chain cannot be written to {path}: {error}") from error
    if any(tensor.is_meta for tensor in chain.state_dict().values()):
        raise UsageError(f"this chain cannot be written to {path}: it is on the meta device, without values")
    tensors = integer.tensors_of(chain) if isinstance(chain, IntegerChain) else _copied(chain)
    try:
        rebuilt = assemble(content, card, tensors)
    except ValueError as error:
        raise UsageError(f"this chain cannot be written to {path}: {error}") from error
    bad = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if bad is not None:
        raise UsageError(f"this chain cannot be written to {path}: {bad} holds numbers that are not finite")
    content["probe"] = outputs = probe.outputs_in_float32(rebuilt, card.input_size)
    if not all(map(math.isfinite, outputs)):
        raise UsageError(f"this chain cannot be written to {path}: what it computes is not finite")
    try:
        if not isinstance(chain, IntegerChain):  # which is no sum of modules that could be others
            probe.check_computes(chain, outputs, card.input_size)
    except UsageError as error:
        raise UsageError(f"this chain cannot be written to {path}: {error}") from error
    content["sha256"] = hash_of(content, tensors)
    with written_whole(path) as part:
        try:
            save_file(tensors, part, metadata={KEY: json.dumps(content, allow_nan=False)})
        except SafetensorError as error:  # how it words a full disk
            raise FileError(f"cannot write {path}: {error}") from error


def _made_card(
    card: ModelCard | None,
    input_size: tuple[int, ...] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str],
) -> ModelCard | None:
    """The card that was given, or one that is made of its most important parts; None where nothing was given."""
    given = {"input_size": input_size, "mean": mean, "std": std}
    missing = [name for name, value in given.items() if value is None]
    if card is not None or (len(missing) == len(given) and not classes):
        if card is not None and (len(missing) < len(given) or classes):
            raise UsageError("save takes a card, or input_size, mean, std and classes to make one, not both")
        return card
    if input_size is None or mean is None or std is None:
        raise UsageError(f"a card needs input_size, mean and std: give {' and '.join(missing)} too")
    if isinstance(classes, str):
        raise UsageError(f"classes is {shown(classes)}, one text: give a list of names")
    try:
        size = tuple(map(operator.index, input_size))
    except TypeError as error:
        raise UsageError(f"input_size is {shown(input_size)}; give (channels, height, width)") from error
    return ModelCard(size, _numbers("mean", mean), _numbers("std", std), tuple(classes))


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Of each channel, also from an array or a tensor."""
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is {shown(values)}; give a number for each channel, in a list") from error


def read(path: str | Path, device: torch.device | str = "cpu") -> nn.Sequential | IntegerChain:
    """The chain in a model file: an ordinary `nn.Sequential` or an `IntegerChain`, in evaluation mode, with its `card`.

    Args:
        path: of the file.
        device: to put the tensors on.

    Returns:
        The chain, its parameters with the stored dtype and without gradients.

    Raises:
        FileError: there is no such file, it is no model file, damaged, altered, or of a newer format.
    """
    chain, _ = _read(Path(path))
    return chain.to(device)


def verify(path: str | Path) -> Verified:
    """Check a model file: its hash, its structure, and that the chain still computes what it did when it was written.

    Raises:
        FileError: as `read`; or the outputs on the stored probe differ by more than a thousandth of the largest.
    """
    path = Path(path)
    chain, content = _read(path)
    card = cast(ModelCard, card_of(chain))
    stored, found = content["probe"], probe.outputs_in_float32(chain, card.input_size)
    scale = max(map(abs, stored))
    if len(stored) != len(found):
        raise FileError(
            f"{path} is not a valid model file: its probe has {len(stored)} numbers where {len(found)} come out"
        )
    difference = max(abs(a - b) for a, b in zip(stored, found, strict=True))
    if not difference <= probe.TOLERANCE * scale:
        raise FileError(
            f"{path} computes something else here than where it was written: outputs of up to {scale:.3g} differ "
            f"by {difference:.3g}; try another version of torch than {torch.__version__}"
        )
    parameters = sum(parameter.numel() for parameter in on_meta(content["layers"], card).parameters())
    many = len(content["layers"])
    return Verified(path, content["sha256"], path.stat().st_size, many, parameters, difference, scale)


def check_is_file(path: Path) -> None:
    """Raise `FileError` if `path` is missing, a folder or an empty file."""
    try:
        if path.is_dir():
            raise FileError(f"{path} is a folder, not a file")
        if path.stat().st_size == 0:
            raise FileError(f"{path} is empty: it was not written to the end, or not copied")
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}") from error


def _copied(chain: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)  # safetensors takes no others
        for name, tensor in chain.state_dict().items()
    }


def _read(path: Path) -> tuple[nn.Sequential | IntegerChain, dict[str, Any]]:
    check_is_file(path)
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            content, card, tensors = contents(path, file)
    except ValueError as error:  # UsageError too
        raise FileError(f"{path} is not a valid model file: {error}") from error
    except SafetensorError as error:
        raise FileError(f"{path} is damaged or no .safetensors file: {first_line(error)}") from error
    if content["sha256"] != hash_of(content, tensors):
        raise FileError(
            f"{path} has been altered or damaged: it does not have the SHA-256 that it states; get it again"
        )
    try:
        chain = assemble(content, card, tensors)
    except ValueError as error:
        raise FileError(f"{path} is not a valid model file: {error}") from error
    attach_card(chain, card)
    return chain, content
