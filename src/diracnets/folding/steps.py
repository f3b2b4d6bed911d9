"""What a step of a traced graph is as an ordinary module, be it written as a module, a function or a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from diracnets.folding.flow import has_forward_hooks

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

# functions of torch and torch.nn.functional, and methods of tensors: the module, and the names of the arguments after
# the input, which the two share
_POOL = ("kernel_size", "stride", "padding")
_FUNCTIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{f"max_pool{d}d": (getattr(nn, f"MaxPool{d}d"), (*_POOL, "dilation", "ceil_mode")) for d in (1, 2, 3)},
    **{f"avg_pool{d}d": (getattr(nn, f"AvgPool{d}d"), (*_POOL, "ceil_mode", "count_include_pad")) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": (getattr(nn, f"AdaptiveAvgPool{d}d"), ("output_size",)) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": (getattr(nn, f"AdaptiveMaxPool{d}d"), ("output_size",)) for d in (1, 2, 3)},
    **{
        name: (kind, ("inplace",))
        for name, kind in (("relu", nn.ReLU), ("relu6", nn.ReLU6), ("silu", nn.SiLU), ("hardswish", nn.Hardswish))
    },
    "relu_": (nn.ReLU, ()),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope", "inplace")),
    "elu": (nn.ELU, ("alpha", "inplace")),
    "gelu": (nn.GELU, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "softmax": (nn.Softmax, ("dim",)),
    "log_softmax": (nn.LogSoftmax, ("dim",)),
    "flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "contiguous": (nn.Identity, ()),
    **{name: (nn.Dropout, ("p", "training")) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")},
}
_BY_FUNCTION: dict[Callable[..., Any], str] = {
    getattr(home, name): name for home in (F, torch) for name in _FUNCTIONS if hasattr(home, name)
}
_DEFAULTS: dict[str, dict[str, Any]] = {  # where the function's differ from the module's
    "flatten": {"start_dim": 0},
    "relu_": {"inplace": True},
    "dropout": {"training": True},
}
_NOTHING: dict[str, Any] = {"return_indices": False, "divisor_override": None, "_stacklevel": 3, "dtype": None}


def as_module(node: fx.Node, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module that does to a node's first argument what the node does; None where there is none.

    Args:
        node: a step of a graph, which is the model's own module or a function such as `F.relu(x)` or `x.flatten(1)`.
        modules: the model's modules, by name.
    """
    if node.op == "call_module":
        return modules[str(node.target)] if source_of(node) is not None else None
    if source_of(node) is None:
        return None
    if node.op == "call_function" and callable(node.target):
        name = _BY_FUNCTION.get(node.target)
    else:
        name = str(node.target) if node.op == "call_method" else None
    if name not in _FUNCTIONS:
        return None
    kind, positions = _FUNCTIONS[name]
    if len(node.args) > 1 + len(positions):
        return None
    given = {**dict(zip(positions, node.args[1:], strict=False)), **node.kwargs}
    given = {key: value for key, value in given.items() if key not in _NOTHING or value != _NOTHING[key]}
    given.pop("input", None)
    given = {**_DEFAULTS.get("dropout" if kind is nn.Dropout else name, {}), **given}
    if kind is nn.Dropout:
        return nn.Identity().eval() if given["training"] is False else None
    if given.keys() - inspect.signature(kind).parameters.keys():
        return None
    return kind(**given).eval()


def source_of(node: fx.Node) -> fx.Node | None:
    """The node whose output is a node's only input; None where other inputs flow in, or none."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    inputs = node.all_input_nodes
    return source if isinstance(source, fx.Node) and len(inputs) == 1 and inputs[0] is source else None


def is_nothing(module: nn.Module) -> bool:
    """Whether a module passes its input through: an Identity, or a Dropout in evaluation mode, that no hook is on."""
    return type(module) in (nn.Identity, *DROPOUTS) and not module.training and not has_forward_hooks(module)
