"""The model file: one .safetensors file that holds a chain and describes itself.

Tensors are stored by their `state_dict` names. The metadata key "diracnets" holds JSON: the format number, the layers
with their arguments, the model card, the chain's outputs on a fixed probe, and a SHA-256 of all that and the tensors.
An int8 chain is stored as the float layers that it represents, with integer weights, and its quantizations. Nothing in
a file is ever executed. The layers are built from a list of known types with bounded arguments, without memory, and
must agree with the tensors before these are read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diracnets.artifacts import integer, layers, probe
from diracnets.artifacts.card import ModelCard, attach_card, card_of, the_card
from diracnets.artifacts.earlier import card_of_facts
from diracnets.errors import FileError, UsageError
from diracnets.files import written_whole
from diracnets.models.integer import IntegerChain

FORMAT = 3  # what is read; float chains are written in format 2, which earlier versions read too
KEY = "diracnets"
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8")


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
        rebuilt = _assemble(content, card, tensors)
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
    content["sha256"] = _hash(content, tensors)
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
    return ModelCard(tuple(input_size), tuple(mean), tuple(std), tuple(classes))


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
    parameters = sum(parameter.numel() for parameter in _on_meta(content["layers"], card).parameters())
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
        with safe_open(path, framework="pt") as file:
            content = _content(path, file.metadata())
            card = _card(content)
            wanted = _shapes(content, _on_meta(content["layers"], card))
            stored = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _compare(wanted, stored)
            if unknown := {file.get_slice(name).get_dtype() for name in stored} - set(_DTYPES):
                raise ValueError(f"tensors of type {', '.join(sorted(unknown))}")
            tensors = {name: file.get_tensor(name).clone() for name in stored}  # not a view of a file that may change
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # UsageError too
        raise FileError(f"{path} is not a valid model file: {error}") from error
    except SafetensorError as error:
        raise FileError(f"{path} is damaged or no .safetensors file: {error}") from error
    if content["sha256"] != _hash(content, tensors):
        raise FileError(
            f"{path} has been altered or damaged: it does not have the SHA-256 that it states; get it again"
        )
    try:
        chain = _assemble(content, card, tensors)
    except ValueError as error:
        raise FileError(f"{path} is not a valid model file: {error}") from error
    attach_card(chain, card)
    return chain, content


def _content(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or KEY not in metadata:
        raise FileError(f"{path} is a .safetensors file but no diracnets model file: it does not describe its layers")
    try:
        content = json.loads(metadata[KEY])
        json.dumps(content)
    except RecursionError as error:
        raise ValueError("its description is nested too deep") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise ValueError("its description has no format number")
    if content["format"] > FORMAT:
        raise FileError(
            f"{path} has format {content['format']}, which is newer than this diracnets reads ({FORMAT}): upgrade it"
        )
    stored, layer_data = content.get("probe"), content.get("layers")
    if content["format"] < 1 or not isinstance(layer_data, list) or not layer_data or "sha256" not in content:
        raise ValueError("its description is incomplete")
    if content["format"] == 3 and not isinstance(content.get("quantizations"), list):
        raise ValueError("its description has no quantizations")
    if not isinstance(stored, list) or not 0 < len(stored) <= probe.VALUES or not all(type(v) is float for v in stored):
        raise ValueError("its probe is not a list of numbers")
    return content


def _card(content: Mapping[str, Any]) -> ModelCard:
    if content["format"] > 1:
        return ModelCard.from_data(content.get("card"))  # type: ignore[arg-type]
    last = content["layers"][-1]
    outputs = last.get("out_features") if isinstance(last, Mapping) and last.get("type") == "Linear" else 0
    return card_of_facts(content, outputs=outputs)


def _assemble(
    content: Mapping[str, Any], card: ModelCard, tensors: Mapping[str, Tensor]
) -> nn.Sequential | IntegerChain:
    """The chain with its tensors; ValueError where layers, card and tensors disagree."""
    chain = _on_meta(content["layers"], card)
    _compare(_shapes(content, chain), {name: tensor.shape for name, tensor in tensors.items()})
    if content["format"] == 3:
        shapes = [(1, *card.input_size), *layers.output_shapes(chain, card.input_size)]
        return integer.from_data(chain, shapes, content["quantizations"], tensors)
    state = chain.state_dict()
    if len({tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        raise ValueError("its tensors have different precisions")
    if any(tensor.is_floating_point() != state[name].is_floating_point() for name, tensor in tensors.items()):
        raise ValueError("integers where there should be weights")
    chain.load_state_dict(dict(tensors), assign=True)
    return chain.requires_grad_(False).eval()


def _shapes(content: Mapping[str, Any], plain: nn.Sequential) -> dict[str, torch.Size]:
    """The shapes of the tensors that belong to a description."""
    if content["format"] == 3:
        return integer.tensor_shapes(plain, content["quantizations"])
    return {name: tensor.shape for name, tensor in plain.state_dict().items()}


def _on_meta(layer_data: list[dict[str, Any]], card: ModelCard) -> nn.Sequential:
    """The layers without memory; ValueError where they do not fit each other, the images or the classes."""
    chain = layers.from_data(layer_data).eval()
    shape = layers.output_shapes(chain, card.input_size)[-1]
    if card.classes and shape != (1, len(card.classes)):
        raise ValueError(f"it has {len(card.classes)} class names and an output of {list(shape)} for one image")
    return chain


def _compare(wanted: Mapping[str, torch.Size], stored: Mapping[str, torch.Size]) -> None:
    for name in sorted(wanted.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"the tensor {name} is missing")
        if name not in wanted:
            raise ValueError(f"the tensor {name[:200]!r} belongs to no layer")
        if wanted[name] != stored[name]:
            raise ValueError(f"the tensor {name} is {list(stored[name])} where its layer has {list(wanted[name])}")


def _hash(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    described = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
