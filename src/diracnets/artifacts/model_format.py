"""The format of model files: the description in a file's metadata, and whether layers, card and tensors agree with it.

Tensors are stored by their `state_dict` names. The metadata key "diracnets" holds JSON: the format number, the layers
with their arguments, the model card, the chain's outputs on a fixed probe, and a SHA-256 of all that and the tensors.
An int8 chain is stored as the float layers that it represents, with integer weights, and its quantizations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts import integer, layers, probe
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.earlier import card_of_facts
from diracnets.errors import FileError
from diracnets.models.integer import IntegerChain

FORMAT = 3  # what is read; float chains are written in format 2, which earlier versions read too
KEY = "diracnets"
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I8")


def contents(path: Path, file: Any) -> tuple[dict[str, Any], ModelCard, dict[str, Tensor]]:  # noqa: ANN401
    """The description, card and tensors of an open .safetensors file; tensors that do not fit are not read.

    Raises:
        FileError: it is no model file, or one of a newer format.
        ValueError: its description is damaged, or the tensors are not those that it describes.
    """
    content = _content(path, file.metadata())
    card = _card(content)
    stored = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _compare(_shapes(content, on_meta(content["layers"], card)), stored)
    if unknown := {file.get_slice(name).get_dtype() for name in stored} - set(_DTYPES):
        raise ValueError(f"tensors of type {', '.join(sorted(unknown))}")
    return (
        content,
        card,
        {name: file.get_tensor(name).clone() for name in stored},
    )  # a view would be of a file that may change


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


def assemble(
    content: Mapping[str, Any], card: ModelCard, tensors: Mapping[str, Tensor]
) -> nn.Sequential | IntegerChain:
    """The chain with its tensors; ValueError where layers, card and tensors disagree."""
    chain = on_meta(content["layers"], card)
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


def on_meta(layer_data: list[dict[str, Any]], card: ModelCard) -> nn.Sequential:
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


def hash_of(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a description, without the one that it states, and of the tensors."""
    described = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
