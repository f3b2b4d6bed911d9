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
_OF_ALL_MODULES = vars(nn.Module()).keys()  # attributes


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, by name."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN, in one pass that needs no memory."""
    return tensor.numel() == 0 or all(bool(bound.isfinite()) for bound in tensor.aminmax())


def copied(model: Module) -> Module:
    """A deep copy, or a `FoldError` where there is none."""
    try:
        return copy.deepcopy(model, _computed(model))
    except Exception as error:  # objects in a model may raise anything when copied
        raise FoldError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}), "
            "which the check of a fold needs; make copy.deepcopy(model) work"
        ) from error


def _computed(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` of the tensors that hooks have computed, as of pruning, which it refuses to copy."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def rebuilt(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model that shares its tensors, with other layers wherever it refers to the named ones."""
    memo = _computed(model) | {id(tensor): tensor for tensor in tensors_of(model).values()}
    memo |= {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    return copy.deepcopy(model, memo)


def as_in(layer: nn.Module, original: nn.Module, name: str) -> nn.Module:
    """A copy of a float64 layer with the dtypes, devices and memory formats of the one that it replaces."""
    result = copy.deepcopy(layer, {id(tensor): tensor for tensor in layer.parameters()})
    old = dict(original.named_parameters(recurse=False)) | dict(original.named_buffers(recurse=False))
    main = old.get("weight") if old.get("weight") is not None else old.get("running_mean")
    for key, tensor in layer.named_parameters(recurse=False):
        like = old.get(key) if old.get(key) is not None else main
        if like is None:
            continue
        cast = torch.empty_like(like) if like.shape == tensor.shape else like.new_empty(tensor.shape)
        cast.copy_(tensor)
        if not is_finite(cast):
            raise FoldError(f"the folded {key} of {name} exceeds {like.dtype}: convert the model to float32 first")
        setattr(result, key, nn.Parameter(cast, requires_grad=False))
    for key, _ in layer.named_buffers(recurse=False):
        setattr(result, key, copy.deepcopy(getattr(original, key)))
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
            if key in _OF_ALL_MODULES:
                continue
            held = leaves(list(value) if isinstance(value, set | frozenset | deque) else value)
            if any(id(item) in new for item in held):
                raise FoldError(
                    f"{type(owner).__name__}.{key} holds layers outside of the registered modules, "
                    "where they cannot be replaced in place: use fold(model), which copies the model"
                )
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in new:
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, new[id(module)])
