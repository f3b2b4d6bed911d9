"""The memory that a network's activations need at least, when each is given back after its last use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from diracnets.errors import UsageError, first_line

_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "_unsafe_view",
    "squeeze",
    "unsqueeze",
    "dropout",
    "alias",
    "contiguous",
    "clone",
}
_IN_PLACE = {  # elementwise: the output takes the place of an input that nothing else needs
    *("relu", "add", "sub", "mul", "div", "clamp", "hardtanh", "sigmoid", "silu", "gelu", "hardswish", "hardsigmoid"),
    *("leaky_relu", "prelu", "elu", "tanh", "batch_norm", "_native_batch_norm_legit_no_training"),
}


@dataclass(frozen=True)
class Live:
    """The activations that are needed while one operation runs: its input, its output, and what later ones still need.

    Args:
        step: the operation, as torch calls it.
        shape: of its output, for one image.
        numbers: how many numbers are needed; times four for float32, once for int8, it is bytes.
    """

    step: str
    shape: tuple[int, ...]
    numbers: int


def live_activations(model: nn.Module, input_size: tuple[int, ...]) -> list[Live]:
    """What is needed at each operation of a network, for one image; the largest is the least memory that it runs in.

    A ReLU and an addition write over their input where nothing else needs it, as runtimes do; other operations write to
    memory of their own. Weights are not counted.

    Args:
        model: in evaluation mode.
        input_size: (channels, height, width) of an image.

    Raises:
        UsageError: the network cannot be traced.

    >>> chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    >>> [live.numbers for live in live_activations(chain, (3, 4, 4))] == [11 * 16, 8 * 16, 16 * 16]
    True
    """
    try:
        with torch.inference_mode(False), torch.no_grad():
            graph = torch.export.export(model, (torch.zeros(1, *input_size),)).graph
    except Exception as error:  # torch raises many kinds
        raise UsageError(f"this {type(model).__name__} cannot be traced: {first_line(error)}") from error
    images = [node for node in graph.nodes if node.op == "placeholder"][-1]  # after the weights
    nodes = [images, *(node for node in graph.nodes if node.op == "call_function")]
    place = {node: index for index, node in enumerate(nodes)}
    buffers: dict[Node, _Buffer] = {}  # in which each output lies
    found: list[Live] = []
    for index, node in enumerate(nodes):
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            continue
        buffer = _shared(node, index, buffers, value.numel()) or _Buffer(value.numel())
        buffers[node] = buffer
        buffer.until = max(buffer.until, *(place.get(user, len(nodes)) for user in node.users), index)
        if node is not images:
            live = {id(each): each.numbers for each in buffers.values() if each.until >= index}
            found.append(Live(_kind(node), tuple(value.shape[1:]), sum(live.values())))
    return found


@dataclass(eq=False)
class _Buffer:
    numbers: int
    until: int = 0  # the last operation that needs it


def _shared(node: Node, index: int, buffers: Mapping[Node, _Buffer], size: int) -> _Buffer | None:
    """The buffer of an input in which the output can lie too, if there is one."""
    kind = _kind(node).rstrip("_")
    for given in node.all_input_nodes:
        buffer = buffers.get(given)
        if buffer is not None and kind in _VIEWS:
            return buffer
        if buffer is not None and kind in _IN_PLACE and buffer.until <= index and buffer.numbers == size:
            return buffer
    return None


def _kind(node: Node) -> str:
    """aten.conv2d.default -> conv2d."""
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]
