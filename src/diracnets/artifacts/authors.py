"""The files of the paper's authors: their training checkpoints, and the folded networks that they released.

Both name their tensors in a flat dictionary (github.com/szagoruyko/diracnets). Which network it is, its depth, width,
classes and image channels, follows from the names and shapes; so it does for a chain that has no card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.checkpoint import check_stored
from diracnets.data.images import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from diracnets.folding.structure import folded_structure
from diracnets.models.build import on_meta
from diracnets.models.diracnet import CIFAR_WIDTHS, IMAGENET_DEPTHS, IMAGENET_WIDTHS
from diracnets.models.network import Network

_BLOCK = re.compile(r"(?:features\.)?group(\d+)\.block(\d+)\.conv(?:\.weight)?")
_DELTA = re.compile(r"eye\d+(_\d+)+")


def is_training(data: object) -> bool:
    """Is this, unpickled, a checkpoint of the authors' training program?"""
    return isinstance(data, Mapping) and isinstance(data.get("params"), Mapping) and "conv" in data["params"]


def is_released(data: object) -> bool:
    """Is this, unpickled, a folded network as the authors released them?"""
    return isinstance(data, Mapping) and "features.conv.weight" in data


def from_training(data: Mapping[str, Any]) -> Network:
    """The network in a checkpoint `{"params", "epoch", "optimizer"}` of the authors, in evaluation mode.

    Every tensor is used, except the dense identities `eye*`, which a Dirac convolution does not need.

    Raises:
        ValueError: tensors are missing, left over, or not a DiracNet's.
    """
    tensors = {name: value for name, value in data["params"].items() if not _DELTA.fullmatch(str(name))}
    net = on_meta(_arguments(tensors, "conv", "group{}.block{}.conv"))
    renamed = {_training_name(name): name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    state = _matching(net, renamed, tensors)
    state |= {name: torch.tensor(0) for name in net.state_dict() if name.endswith("num_batches_tracked")}
    net.load_state_dict(state, assign=True)
    epoch = data.get("epoch")
    provenance = {"source": "a checkpoint of the paper's authors", "network": net.config["name"]}
    _attach(net, net, provenance | ({"epoch": epoch} if isinstance(epoch, int) else {}))
    return net.eval()


def from_released(tensors: Mapping[str, Any]) -> nn.Sequential:
    """The chain in a state dict of a folded network with the authors' names, in evaluation mode.

    Raises:
        ValueError: tensors are missing, left over, or not a DiracNet's.
    """
    net = on_meta(_arguments(tensors, "features.conv.weight", "features.group{}.block{}.conv.weight"))
    chain = folded_structure(net)
    if not isinstance(chain, nn.Sequential):
        raise ValueError("it folds to no chain")
    names = _released_names(chain, [len(list(group.children())) for group in net.groups])
    chain.load_state_dict(_matching(chain, names, tensors), assign=True)
    _attach(chain, net, {"source": "a folded network of the paper's authors", "network": net.config["name"]})
    return chain.requires_grad_(False).eval()


def _arguments(tensors: Mapping[str, Any], stem: str, block: str) -> dict[str, Any]:
    found = [match for name in tensors if (match := _BLOCK.fullmatch(str(name)))]
    depths: dict[int, int] = {}
    for match in found:
        depths[int(match[1])] = depths.get(int(match[1]), 0) + 1
    names = [stem, "fc.weight", *(block.format(group, 0) for group in range(len(depths)))]
    for name in names:
        if not isinstance(tensors.get(name), Tensor) or tensors[name].ndim < 1:
            raise ValueError(f"the tensor {name} is missing")
    widths = [tensors[name].shape[0] for name in names[2:]]
    counts = [depths.get(group, 0) for group in range(len(depths))]
    return recognize(tensors[stem].shape, widths, counts, tensors["fc.weight"].shape[0])


def _training_name(name: str) -> str:
    """'groups.0.1.conv.weight' -> 'group0.block1.conv', 'groups.0.1.conv.alpha' -> 'group0.block1.alpha'."""
    name = re.sub(r"^groups\.(\d+)\.(\d+)", r"group\1.block\2", name.removeprefix("stem."))
    return re.sub(r"conv\.(alpha|beta)$", r"\1", name.replace("conv.weight", "conv"))


def _released_names(chain: nn.Sequential, depths: Sequence[int]) -> dict[str, str]:
    """The authors' name of each of the chain's tensors, to the chain's."""
    blocks = [f"features.group{group}.block{block}.conv" for group, n in enumerate(depths) for block in range(n)]
    layers = [name for name, layer in chain.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)]
    theirs = zip(["features.conv", *blocks, "fc"], layers, strict=True)
    return {f"{their}.{kind}": f"{our}.{kind}" for their, our in theirs for kind in ("weight", "bias")}


def _matching(model: nn.Module, renamed: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under the model's names; ValueError unless exactly the model's are there, in its shapes."""
    wanted = model.state_dict()
    if left := sorted(map(str, tensors.keys() - renamed.keys())):
        raise ValueError(f"the tensor {left[0]} belongs to no layer of the network")
    state = {}
    for theirs, ours in renamed.items():
        tensor = tensors.get(theirs)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the tensor {theirs} is missing")
        if tensor.shape != wanted[ours].shape:
            raise ValueError(f"the tensor {theirs} is {list(tensor.shape)} instead of {list(wanted[ours].shape)}")
        state[ours] = tensor.detach()
    check_stored(state)
    return {name: tensor.float().contiguous() for name, tensor in state.items()}


def _attach(model: nn.Module, net: Network, provenance: dict[str, Any]) -> None:
    cifar = len(net.groups) == 3
    mean, std = (CIFAR_MEAN, CIFAR_STD) if cifar else (IMAGENET_MEAN, IMAGENET_STD)
    if net.input_size[0] == len(mean):  # the authors' normalization is for colour images
        attach_card(model, ModelCard(net.input_size, mean, std, provenance=provenance, architecture=net.config))


def recognize(stem: Sequence[int], widths: Sequence[int], depths: Sequence[int], num_classes: int) -> dict[str, Any]:
    """The arguments of `build_model` for the DiracNet of these sizes.

    Args:
        stem: shape of the stem's filters, [out, in, kernel, kernel].
        widths: channels of each group.
        depths: blocks of each group.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: no DiracNet has these sizes.

    >>> recognize((10, 3, 3, 3), widths=(10, 19, 38), depths=(4, 4, 4), num_classes=10)["name"]
    'diracnet-16-0.6'
    """
    if len(stem) != 4 or not widths or stem[0] != widths[0]:
        raise ValueError(f"its first convolution has filters {list(stem)}, which no DiracNet begins with")
    arguments: dict[str, Any] = {"in_channels": stem[1], "num_classes": num_classes}
    if len(widths) == 3 and len(set(depths)) == 1 and depths[0] % 2 == 0:
        factor = _factor(widths, CIFAR_WIDTHS)
        return {"name": f"diracnet-{3 * depths[0] + 4}-{_decimal(factor)}", **arguments}
    for depth, known in IMAGENET_DEPTHS.items():
        if tuple(depths) == known:
            return {"name": f"diracnet-{depth}", **arguments, "width": _factor(widths, IMAGENET_WIDTHS)}
    raise ValueError(f"it has groups of {', '.join(map(str, depths))} blocks, which no DiracNet has")


def recognize_chain(chain: nn.Sequential, input_size: Sequence[int] | None) -> dict[str, Any]:
    """The arguments of `build_model` for the DiracNet that a chain without a card was folded from.

    Args:
        chain: whose convolutions and poolings identify it.
        input_size: (channels, height, width) of its images, where it is known.

    Raises:
        ValueError: no DiracNet has these sizes.
    """
    groups: list[list[nn.Conv2d]] = [[]]
    averages = any(isinstance(layer, nn.AvgPool2d) for layer in chain)
    for layer in list(chain)[1:]:
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) and groups[-1]:
            groups.append([])
        elif isinstance(layer, nn.Conv2d):
            groups[-1].append(layer)
    if not all(groups) or not isinstance(chain[0], nn.Conv2d) or not isinstance(chain[-1], nn.Linear):
        raise ValueError("it does not consist of groups of convolutions with a linear layer after them")
    widths, depths = [group[0].out_channels for group in groups], list(map(len, groups))
    arguments = recognize(chain[0].weight.shape, widths, depths, chain[-1].out_features)
    if averages:
        arguments["pool"] = "average"
    return arguments if input_size is None else {**arguments, "image_size": list(input_size[1:])}


def _factor(widths: Sequence[int], bases: Sequence[int]) -> float:
    """The factor of fewest decimals that the widths come from."""
    low = max((width - 0.5) / base for width, base in zip(widths, bases, strict=True))
    high = min((width + 0.5) / base for width, base in zip(widths, bases, strict=True))
    for decimals in range(9):
        factor = round((low + high) / 2, decimals)
        if [round(base * factor) for base in bases] == list(widths):
            return factor
    raise ValueError(f"its groups have {', '.join(map(str, widths))} channels, which are no DiracNet's")


def _decimal(factor: float) -> str:
    return f"{factor:.8f}".rstrip("0").rstrip(".")
