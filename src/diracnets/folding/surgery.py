"""Copies of models with some layers replaced by others, and replacement in place."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError, first_line
from diracnets.folding.tree import leaves

Module = TypeVar("Module", bound=nn.Module)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, by name."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN, in one pass that needs no memory."""
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in tensor.aminmax())


def copied(model: Module) -> Module:
    """A deep copy, or a `FoldError` where there is none."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # objects in a model may raise anything when copied
        raise FoldError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}), "
            "which the check of a fold needs; make copy.deepcopy(model) work"
        ) from error


def rebuilt(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model that shares its tensors, with other layers wherever it refers to the named ones."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors_of(model).values()}
    memo |= {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    return copy.deepcopy(model, memo)


def as_in(layer: nn.Module, original: nn.Module, name: str) -> nn.Module:
    """A copy of a float64 layer with the dtypes, devices and memory formats of the one that it replaces."""
    result = copy.deepcopy(layer, {id(tensor): tensor for tensor in layer.parameters()})
    old = dict(original._parameters) | dict(original._buffers)
    main = old.get("weight") if old.get("weight") is not None else old.get("running_mean")
    for key, tensor in layer._parameters.items():
        like = old.get(key) if old.get(key) is not None else main
        if tensor is None or like is None:
            continue
        cast = torch.empty_like(like) if like.shape == tensor.shape else like.new_empty(tensor.shape)
        cast.copy_(tensor)
        if not is_finite(cast):
            raise FoldError(f"the folded {key} of {name} exceeds {like.dtype}: convert the model to float32 first")
        result._parameters[key] = nn.Parameter(cast, requires_grad=False)
    for key in layer._buffers:
        result._buffers[key] = copy.deepcopy(original._buffers[key])
    return result


def replace_inside(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put other layers into a model itself, under all names that it has for them.

    Raises:
        FoldError: the model also holds one of them in a plain list or the like; it is unchanged then.
    """
    modules = dict(model.named_modules())
    new = {id(modules[name]): layer for name, layer in layers.items()}
    for owner in modules.values():
        for key, value in vars(owner).items():
            if key == "_modules":
                continue
            held = leaves(list(value) if isinstance(value, set | frozenset | deque) else value)
            if any(id(item) in new for item in held):
                raise FoldError(
                    f"{type(owner).__name__}.{key} holds layers outside of the registered modules, "
                    "where they cannot be replaced in place: use fold(model), which copies the model"
                )
    for owner in modules.values():
        for key, child in owner._modules.items():
            owner._modules[key] = new.get(id(child), child)
