"""The layers that a chain may consist of, converted to plain values and back. No other layer is ever built."""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts.work import MOST_WORK, work_of
from diracnets.errors import UsageError, first_line

Check = Callable[[Any], Any]  # from a stored value to an argument; ValueError where it is out of bounds

MAX_ELEMENTS = 2**28  # of one image's activation: a file cannot make us take more memory than that
MAX_LAYERS = 10_000  # each takes some time to build; a DiracNet of 1000 convolutions has 2000
_NOT_KEPT = ("device", "dtype", "bias", "init")  # arguments that follow from the tensors, or set initial values only
_NAME = re.compile(r"[A-Za-z0-9_]{1,200}")


def to_data(chain: nn.Module) -> list[dict[str, Any]]:
    """Each layer of a flat chain as plain values: its name, its type and its constructor's arguments.

    Raises:
        UsageError: it is not an `nn.Sequential`, or has a layer that a model file cannot hold.

    >>> to_data(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))[1]
    {'name': '1', 'type': 'Linear', 'in_features': 4, 'out_features': 2, 'bias': True}
    """
    kind = type(chain)
    computes = (kind.forward, kind.__call__)
    if not isinstance(chain, nn.Sequential) or computes != (nn.Sequential.forward, nn.Module.__call__):
        raise UsageError(
            f"a {kind.__name__} is not a flat chain, which is all that a model file holds: fold it first, "
            "and if that leaves branches, keep it by torch.save(model.state_dict(), ...)"
        )
    if len(chain) == 0:
        raise UsageError("a chain without layers cannot be kept in a model file")
    return [_describe(name, layer) for name, layer in zip(chain._modules, chain, strict=True)]


def refuse_changed(chain: nn.Module) -> None:
    """Refuse a chain whose computation or tensors are changed by anything but layers and their arguments.

    Backward hooks are allowed: they do not change what a chain computes.

    Raises:
        UsageError: there is a hook, or a method that was replaced on the object; the message names it.
    """
    for path, module in chain.named_modules():
        where = f"layer {path} ({type(module).__name__})" if path else "the chain"
        for kind, hooks in (
            ("forward hook", module._forward_hooks),
            ("forward pre-hook", module._forward_pre_hooks),
            ("state_dict hook", {**module._state_dict_hooks, **module._state_dict_pre_hooks}),
        ):
            if hooks:
                called = next(iter(hooks.values()))
                name = getattr(called, "__qualname__", type(called).__name__)
                raise UsageError(f"{where} has a {kind}, {name}, which would be lost: remove it first")
        for name in vars(module):
            if callable(getattr(type(module), name, None)):
                raise UsageError(f"{where} has a {name} of its own, which would be lost: delete that attribute first")


def from_data(layers: Sequence[Any]) -> nn.Sequential:
    """The chain that `to_data` described, on the meta device: it takes no memory, whatever its sizes are.

    Raises:
        ValueError: a type is not on the list, or an argument is missing, unknown or out of bounds.
    """
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"it has {len(layers):,} layers, more than {MAX_LAYERS:,}")
    chain = nn.Sequential()
    for data in layers:
        name, kind = (data.get("name"), data.get("type")) if isinstance(data, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ValueError("a layer without name or type")
        if kind not in _LAYERS:
            raise ValueError(f"a layer of type {reprlib.repr(kind)}, which is not one that a chain can have")
        if not _NAME.fullmatch(name) or name in chain._modules or hasattr(chain, name):
            raise ValueError(f"a layer called {reprlib.repr(name)}")
        checks = _LAYERS[kind]
        given = data.keys() - {"name", "type"}
        if given != checks.keys():
            raise ValueError(
                f"layer {name} with the arguments {reprlib.repr(sorted(given))} instead of {sorted(checks)}"
            )
        try:
            arguments = {key: check(data[key]) for key, check in checks.items()}
            with torch.device("meta"):
                layer = getattr(nn, kind)(**arguments)
        except (ValueError, TypeError, RuntimeError, OverflowError, AssertionError) as error:
            raise ValueError(f"layer {name} ({kind}) with impossible arguments: {first_line(error)}") from error
        chain.add_module(name, layer)
    return chain


@torch.no_grad()
def output_shapes(chain: nn.Sequential, input_size: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape that each layer of a chain on the meta device makes of one image of `input_size`.

    Raises:
        ValueError: the layers do not fit each other or the image, an activation would exceed `MAX_ELEMENTS`, or all of
            them together `MOST_WORK`.
    """
    shapes, work = [], 0
    if math.prod(input_size) > MAX_ELEMENTS:
        raise ValueError(f"one image of {list(input_size)} has more than {MAX_ELEMENTS} numbers")
    x = torch.empty(1, *input_size, device="meta")
    for name, layer in zip(chain._modules, chain, strict=True):
        before = x.numel()
        try:
            x = layer(x)
        except (RuntimeError, ValueError, IndexError, TypeError, OverflowError, NotImplementedError) as error:
            raise ValueError(f"layer {name} does not fit an input of {list(x.shape)}: {first_line(error)}") from error
        if not isinstance(x, Tensor) or x.numel() > MAX_ELEMENTS:
            raise ValueError(f"layer {name} makes more than {MAX_ELEMENTS} numbers of one image")
        work += work_of(layer, before, x.numel())
        if work > MOST_WORK:
            raise ValueError(f"up to layer {name}, one image takes more than {MOST_WORK:,} multiplications")
        shapes.append(tuple(x.shape))
    return shapes


def _describe(name: str, layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if type(layer) is not getattr(nn, kind, None) or kind not in _LAYERS:
        raise UsageError(f"layer {name} is a {kind}, which a model file does not hold; fold the model first")
    checks = _LAYERS[kind]
    data: dict[str, Any] = {"name": name, "type": kind}
    for key, parameter in inspect.signature(type(layer)).parameters.items():
        if key in checks:
            value = _value(layer, key)
            try:
                checks[key](value)
            except ValueError as error:
                raise UsageError(f"layer {name} ({kind}) cannot be kept in a model file: {key} {error}") from error
            data[key] = value
        elif key not in _NOT_KEPT and getattr(layer, key, parameter.default) != parameter.default:
            raise UsageError(f"layer {name} ({kind}) cannot be kept in a model file: {key} {getattr(layer, key)!r}")
    return data


def _value(layer: nn.Module, key: str) -> Any:  # noqa: ANN401
    value = getattr(layer, key)
    if key == "bias":
        return value is not None
    return list(value) if isinstance(value, tuple) else value


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:  # noqa: ANN401
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{reprlib.repr(value)} is not a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> float:  # noqa: ANN401
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{reprlib.repr(value)} is not a number from {low} to {high}")
        return value  # type: ignore[no-any-return]

    return check


def _per_axis(check: Check, most: int = 3) -> Check:
    def check_all(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, list):
            return check(value)
        if not 1 <= len(value) <= most:
            raise ValueError(f"{len(value)} numbers where there are at most {most}")
        return tuple(check(item) for item in value)

    return check_all


def _one_of(*words: str | bool | None, otherwise: Check | None = None) -> Check:
    def check(value: Any) -> Any:  # noqa: ANN401
        if any(type(value) is type(word) and value == word for word in words):
            return value
        if otherwise is None:
            raise ValueError(f"{reprlib.repr(value)} is not one of {list(words)}")
        return otherwise(value)

    return check


_FLAG = _one_of(True, False)
_CHANNELS = _whole(1, 2**20)
_SIZES = _per_axis(_whole(1, 2**12))
_MARGINS = _per_axis(_whole(0, 2**12))
_SLOPE = _number(-1e6, 1e6)

_TRANSPOSED: dict[str, Check] = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "kernel_size": _SIZES,
    "stride": _SIZES,
    "padding": _MARGINS,
    "output_padding": _MARGINS,
    "groups": _CHANNELS,
    "bias": _FLAG,
    "dilation": _SIZES,
}
_CONV = {key: check for key, check in _TRANSPOSED.items() if key != "output_padding"} | {
    "padding": _one_of("same", "valid", otherwise=_MARGINS),
    "padding_mode": _one_of("zeros", "reflect", "replicate", "circular"),
}
_NORM: dict[str, Check] = {
    "num_features": _CHANNELS,
    "eps": _number(0, 1),
    "momentum": _one_of(None, otherwise=_number(0, 1)),
    "affine": _FLAG,
}
_MAX_POOL: dict[str, Check] = {
    "kernel_size": _SIZES,
    "stride": _SIZES,
    "padding": _MARGINS,
    "dilation": _SIZES,
    "ceil_mode": _FLAG,
}
_AVERAGE_POOL: dict[str, Check] = {
    "kernel_size": _SIZES,
    "stride": _SIZES,
    "padding": _MARGINS,
    "ceil_mode": _FLAG,
    "count_include_pad": _FLAG,
}
_ADAPTIVE: dict[str, Check] = {"output_size": _per_axis(_one_of(None, otherwise=_whole(1, 2**12)))}
_PAD: dict[str, Check] = {"padding": _per_axis(_whole(0, 2**12), most=6)}
_INPLACE: dict[str, Check] = {"inplace": _FLAG}
_DROPOUT: dict[str, Check] = {"p": _number(0, 1), "inplace": _FLAG}

_LAYERS: dict[str, dict[str, Check]] = {
    **{f"Conv{d}d": _CONV for d in (1, 2, 3)},
    **{f"ConvTranspose{d}d": _TRANSPOSED for d in (1, 2, 3)},
    **{f"BatchNorm{d}d": _NORM for d in (1, 2, 3)},
    **{f"MaxPool{d}d": _MAX_POOL for d in (1, 2, 3)},
    **{f"AvgPool{d}d": _AVERAGE_POOL for d in (1, 2, 3)},
    **{f"AdaptiveAvgPool{d}d": _ADAPTIVE for d in (1, 2, 3)},
    **{f"AdaptiveMaxPool{d}d": _ADAPTIVE for d in (1, 2, 3)},
    **{f"{kind}Pad{d}d": _PAD for kind in ("Zero", "Reflection", "Replication") for d in (1, 2, 3)},
    **{name: _INPLACE for name in ("ReLU", "ReLU6", "SiLU", "Mish", "Hardswish", "Hardsigmoid")},
    **{name: _DROPOUT for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d")},
    **{name: {} for name in ("Identity", "Sigmoid", "Tanh", "Softsign")},
    "LeakyReLU": {"negative_slope": _SLOPE, "inplace": _FLAG},
    "ELU": {"alpha": _SLOPE, "inplace": _FLAG},
    "Hardtanh": {"min_val": _SLOPE, "max_val": _SLOPE, "inplace": _FLAG},
    "PReLU": {"num_parameters": _CHANNELS},
    "GELU": {"approximate": _one_of("none", "tanh")},
    "Softplus": {"beta": _SLOPE, "threshold": _SLOPE},
    "Softmax": {"dim": _one_of(None, otherwise=_whole(-5, 4))},
    "LogSoftmax": {"dim": _one_of(None, otherwise=_whole(-5, 4))},
    "Flatten": {"start_dim": _whole(-5, 4), "end_dim": _whole(-5, 4)},
    "Linear": {"in_features": _whole(1, 2**24), "out_features": _whole(1, 2**24), "bias": _FLAG},
    "Upsample": {
        "size": _one_of(None, otherwise=_SIZES),
        "scale_factor": _one_of(None, otherwise=_per_axis(_number(1e-3, 2**12))),
        "mode": _one_of("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"),
        "align_corners": _one_of(None, True, False),
    },
    "PixelShuffle": {"upscale_factor": _whole(1, 2**6)},
}
