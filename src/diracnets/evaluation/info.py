"""`describe`: layers, parameters, MACs and receptive field of a network, without running it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from diracnets.artifacts import layers
from diracnets.artifacts.card import ModelCard, attach_card, card_of, input_size_of
from diracnets.artifacts.integer import as_float
from diracnets.artifacts.load import is_weights, load_as_stored
from diracnets.artifacts.network_file import network_file
from diracnets.artifacts.pretrained import find_weights, list_weights
from diracnets.errors import UsageError, did_you_mean
from diracnets.evaluation.receptive import Field
from diracnets.folding.structure import ShapesOnly, folded_structure, structure_of_plain
from diracnets.models.build import on_meta
from diracnets.models.integer import IntegerChain
from diracnets.models.names import is_name, shallow_kin
from diracnets.models.network import Network
from diracnets.nn.dirac import CONVOLUTIONS, TRANSPOSED
from diracnets.nn.diracify import undiracify

INT8 = "int8 chain"
_FILE_SUFFIXES = {".safetensors", ".pt", ".pth", ".pt7"}
_WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerInfo:
    """One layer.

    Args:
        name: as in the network's `state_dict`.
        type: the name of its class.
        output_shape: of one image, without the batch axis.
        parameters: how many.
        multiply_adds: MACs for one image, of convolutions, linear layers and batch norms; a bias counts as one for each
            output, so that a network and its chain cost the same. Other layers count as 0.
        receptive_field: pixels (height, width) that one output depends on; None for the whole image.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, ...] | None


@dataclass(frozen=True)
class Info:
    """A network, or a file that holds one; `to_data` makes it plain JSON values.

    Args:
        name: what was asked for, or the network's name.
        kind: "network" as it is trained, "chain" as it is folded, or "int8 chain".
        input_size: (channels, height, width) that shapes and costs are for.
        layers: in the order in which they run.
        parameters: of all layers.
        folded_parameters: of what `fold` makes of it; the same as `parameters` for a chain.
        multiply_adds: MACs for one image.
        receptive_field: of the last layer before it covers the whole image.
        file_bytes: size of the file; None for a network by name, or if unknown.
        weight_bytes: of the folded weights in "float32", "float16" and "int8" (a byte a weight, and four for each bias
            and each output channel's scale).
        card: its classes, normalization, training and origin, where they are known.
    """

    name: str
    kind: str
    input_size: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    parameters: int
    folded_parameters: int
    multiply_adds: int
    receptive_field: tuple[int, ...] | None
    file_bytes: int | None
    weight_bytes: Mapping[str, int]
    card: ModelCard | None

    def __repr__(self) -> str:
        return (
            f"<Info of {self.name} ({self.kind}): {len(self.layers)} layers, {self.parameters:,} parameters, "
            f"{self.multiply_adds:,} MACs for {'x'.join(map(str, self.input_size))}>"
        )

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(replace(self, card=None)), "card": None if self.card is None else self.card.to_data()}


def describe(model: str | Path | nn.Module) -> Info:
    """Describe the layers, parameters and cost of a network.

    Args:
        model: the name of a network or of weights, which are not downloaded for this, a file that `diracnets.load`
            reads, a network of `build_model`, or a chain with a `card`. A file goes before a name, and a name before a
            folder.

    Raises:
        UsageError: no such name, or a network whose image size is not known.
        FileError: a file that cannot be read.

    >>> info = describe("diracnet-18")
    >>> info.parameters, info.folded_parameters, round(info.multiply_adds / 1e9, 2), info.layers[0].output_shape
    (11523368, 11511784, 1.8, (64, 112, 112))
    """
    if isinstance(model, nn.Module):
        return _describe(str(getattr(model, "config", {}).get("name", type(model).__name__)), model, None)
    model = path = network_file(model)
    if is_weights(path):
        weights = find_weights(str(path))
        net = on_meta(dict(weights.model))
        trained = folded_structure(net) if weights.folded else net
        attach_card(trained, weights.card)
        info = _describe(weights.name, trained, weights.size, skeleton=trained)
        return replace(info, kind=INT8) if weights.int8 else info
    there = path.is_file() or (path.exists() and not is_name(str(path)))
    if there or path.suffix.lower() in _FILE_SUFFIXES or len(path.parts) > 1:
        return _describe(str(model), load_as_stored(path), path.stat().st_size)
    if not is_name(str(model)) and (hint := did_you_mean(str(model), list_weights(), cutoff=0.8)):
        raise UsageError(f"there is no network {model}, with weights or without: {hint}")
    net = on_meta({"name": str(model)})
    return _describe(str(model), net, None, skeleton=net, folded=_folded_parameters(str(model)))


def _folded_parameters(name: str) -> int:
    """Of what a network folds to, from two shallow ones of its kind: folding a thousand layers takes seconds."""
    first, second, steps = shallow_kin(name)
    least = _count(folded_structure(on_meta({"name": first})))
    return least + steps * (_count(folded_structure(on_meta({"name": second}))) - least) if steps else least


def _describe(
    name: str,
    model: nn.Module,
    file_bytes: int | None,
    skeleton: nn.Module | None = None,
    folded: int | None = None,
) -> Info:
    """What is known of a model.

    Args:
        name: what to call it.
        model: with its values, if it has any.
        file_bytes: of its file.
        skeleton: the same without values, if there is one that may be changed.
        folded: parameters of what it folds to, where they are known.
    """
    if isinstance(model, Network):
        skeleton = skeleton or on_meta(model.config)
        input_size: tuple[int, ...] = model.input_size
    else:
        of_floats = as_float(model) if isinstance(model, IntegerChain) else model
        skeleton = skeleton or layers.from_data(layers.to_data(of_floats))
        input_size = input_size_of(model) or ()
    if not input_size:
        raise UsageError(f"{name} does not record its input size, without which nothing can be counted")
    parameters = _count(skeleton)
    own = {name: (type(layer).__name__, _count(layer)) for name, layer in _leaves(skeleton)}
    weighted = [layer for layer in skeleton.modules() if isinstance(layer, _WEIGHTED)]
    weights = sum(layer.weight.numel() for layer in weighted)
    outputs = sum(_outputs(layer) for layer in weighted)
    plain = undiracify(skeleton, inplace=True).eval()  # runs faster, and has the same shapes
    if folded is None:
        folded = _count(structure_of_plain(plain, input_size)) if isinstance(model, Network) else parameters
    rows = _walk(plain, own, input_size)
    return Info(
        name=name,
        kind="network" if isinstance(model, Network) else INT8 if isinstance(model, IntegerChain) else "chain",
        input_size=tuple(input_size),
        layers=tuple(rows),
        parameters=parameters,
        folded_parameters=folded,
        multiply_adds=sum(row.multiply_adds for row in rows),
        receptive_field=next((row.receptive_field for row in reversed(rows) if row.receptive_field), None),
        file_bytes=file_bytes,
        weight_bytes={"float32": 4 * folded, "float16": 2 * folded, "int8": weights + 4 * (folded - weights + outputs)},
        card=card_of(model),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not any(module.children())]


@torch.no_grad()
def _walk(plain: nn.Module, own: Mapping[str, tuple[str, int]], input_size: tuple[int, ...]) -> list[LayerInfo]:
    """A row for each layer that runs, in the order in which they run, on an image without memory.

    Args:
        plain: the network without Dirac convolutions.
        own: each layer's class and parameters in the network itself, by its name.
        input_size: (channels, height, width).
    """
    rows: list[LayerInfo] = []
    image = torch.empty(1, *input_size, device="meta")
    fields: dict[Tensor, Field | None] = {image: Field.of_pixel(len(input_size) - 1)}  # of what layers gave so far

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # a sum of branches has the largest receptive field among them
        field = fields[inputs[0]] if inputs[0] in fields else _largest(fields.values())
        field = field and field.after_layer(layer, tuple(inputs[0].shape[2:]), tuple(output.shape[2:]))
        fields[output] = field
        pixels = None if field is None else field.pixels
        kind, parameters = own[name]
        costs = _multiply_adds(layer, inputs[0], output)
        rows.append(LayerInfo(name, kind, tuple(output.shape[1:]), parameters, costs, pixels))

    for name, module in _leaves(plain):
        module.register_forward_hook(partial(record, name))
    with ShapesOnly():
        plain(image)
    return rows


def _largest(fields: Iterable[Field | None]) -> Field | None:
    known = list(fields)
    return None if None in known else max((field for field in known if field), key=lambda field: field.size)


def _multiply_adds(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(layer, _NormBase):
        return y.numel()
    if isinstance(layer, TRANSPOSED):
        products = layer.weight.numel() * math.prod(x.shape[2:])
    elif isinstance(layer, CONVOLUTIONS):
        products = layer.weight.numel() * math.prod(y.shape[2:])
    elif isinstance(layer, nn.Linear):
        products = layer.weight.numel() * (y.numel() // layer.out_features)
    else:
        return 0
    return products + (y.numel() if layer.bias is not None else 0)


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]
