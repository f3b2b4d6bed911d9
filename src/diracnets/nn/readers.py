"""Who else reads a layer's weight: code of the model that uses `conv.weight` itself, or what holds the same memory.

A layer can only change its parameterization where its weight means something to it alone. That is found from the byte
code of the model's classes, functions and hooks. Where it does not show whose weight is read (a loop's variable, an
argument), it may be any layer's; a run on example inputs decides then.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from diracnets.nn.bytecode import Read, names_in, variables_in, weight_reads
from diracnets.nn.dirac import HOOKS, DiracConv1d
from diracnets.nn.memory import contents, holders, used_in_a_run

_NOT_FOLLOWED = sys.stdlib_module_names | {"torch", "numpy"}
_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property, functools.partial, MethodType)
_SETTING_UP = ("init", "reset")  # in the names of methods that write weights before there is a meaning to them
_GRAPH = "torch.fx.graph_module"  # of torch's modules, those whose forward is the user's


@dataclass(frozen=True)
class _Function:
    """A function of the model.

    Attributes:
        name: under which the model's code would call it; "forward" of what is called anyway.
        label: for messages.
        local: what the variables that are known stand for: the first arguments, and those of functions around it.
        shared: the variables of its module.
    """

    name: str
    label: str
    code: CodeType
    local: Mapping[str, object]
    shared: Mapping[str, object]


def find_readers(
    model: nn.Module, layers: Mapping[str, nn.Module], example_input: object | None = None
) -> dict[str, str]:
    """The layers whose weight something besides them reads, or may read, and what it is.

    Args:
        model: any module.
        layers: the layers in question, by name; they are parts of the model.
        example_input: a tensor, or a tuple of the arguments of `forward`. Where code reads a weight that may be any
            layer's, the model runs on it once, without gradients, in the mode (training or evaluation) that it is in.
            Without, all layers are named then.

    Raises:
        UsageError: the model does not run on `example_input`.

    >>> class Tied(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, 8, 3)
    ...
    ...     def forward(self, x):
    ...         return nn.functional.conv_transpose2d(self.conv(x), self.conv.weight)
    >>> model = Tied()
    >>> find_readers(model, {"conv": model.conv})
    {'conv': 'its weight is read by Tied.forward'}
    """
    if not layers:
        return {}
    functions, unreadable = _functions_of(model)
    reachable = _reachable(functions)
    functions += _followed(functions, reachable)
    held = [(f.label, value) for f in functions for value in f.local.values() if isinstance(value, Tensor)]
    found = holders(model, layers, held)
    possible = f"the code of {unreadable[0]} cannot be looked into" if unreadable else None
    for function in functions:
        called = function.name in reachable
        if not called and any(word in function.name for word in _SETTING_UP):
            continue
        for read in weight_reads(function.code):
            target = _resolve(read, function)
            if target is None and called:
                possible = possible or f"{function.label} reads a weight, and its code does not tell which layer's"
            if isinstance(target, nn.Module) and (called or not read.every):
                for module in target.modules() if read.every else [target]:
                    found.setdefault(id(module), f"its weight is read by {function.label}")
    named = {name: found[id(layer)] for name, layer in layers.items() if id(layer) in found}
    rest = {name: layer for name, layer in layers.items() if name not in named}
    if possible is None or not rest:
        return named
    if example_input is None:
        return named | dict.fromkeys(rest, f"{possible}; give an example_input, and a run decides")
    return named | used_in_a_run(model, rest, example_input)


def _functions_of(model: nn.Module) -> tuple[list[_Function], list[str]]:
    """The functions of a model that are not torch's, and the names of forwards that are not written in Python."""
    functions: list[_Function] = []
    unreadable = []
    for module in model.modules():
        title = _title(type(module))
        helpers = [each for _, each in contents(module, object) if not isinstance(each, nn.Module | Tensor | type)]
        for thing in (module, *(each for each in helpers if not callable(each))):
            for kind in type(thing).__mro__:
                if not _is_users(kind) or kind.__module__ == DiracConv1d.__module__:  # those read their own weight
                    continue
                for name, value in vars(kind).items():
                    if name == "__init__":
                        continue
                    found = list(_unwrapped(value, name, f"{_title(kind)}.{name}", thing))
                    functions += found
                    if name == "forward" and not found and not isinstance(value, FunctionType):
                        unreadable.append(f"{_title(kind)}.forward")
        for value in filter(callable, helpers):
            functions += _unwrapped(value, "forward", f"a function of {title}")
        for hook in (hook for hooks in HOOKS for hook in vars(module)[hooks].values()):
            functions += _unwrapped(hook, "forward", f"a hook of {title}", module)
    return functions, unreadable


def _title(kind: type) -> str:
    """The name of a class, without the function that it was made in."""
    return kind.__qualname__.rpartition(".<locals>.")[2]


def _unwrapped(value: object, name: str, label: str, *arguments: object) -> Iterator[_Function]:
    """The Python functions in something: methods, properties, what is decorated or partial, callable objects."""
    seen: set[int] = set()
    waiting: list[tuple[object, tuple[object, ...]]] = [(value, arguments)]
    while waiting:
        value, first = waiting.pop()
        if id(value) in seen or isinstance(value, type | nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            cells = _cells(value)
            waiting += [(cell, first) for cell in cells.values() if callable(cell)]  # what a decorator calls
            if _is_users(value):
                local = cells | dict(zip(value.__code__.co_varnames, first, strict=False))
                yield _Function(name, label, value.__code__, local, value.__globals__)
        elif isinstance(value, MethodType):
            waiting.append((value.__func__, (value.__self__, *first)))
        elif isinstance(value, functools.partial):
            waiting.append((value.func, value.args or first))
        elif isinstance(value, staticmethod):
            waiting.append((value.__func__, ()))
        elif isinstance(value, _WRAPPERS) or hasattr(value, "__wrapped__"):
            inner = (getattr(value, part, None) for part in ("fget", "func", "__func__", "__wrapped__"))
            waiting += [(each, first) for each in inner if each is not None]
        elif callable(value) and _is_users(type(value)):
            waiting.append((type(value).__call__, (value, *first)))


def _cells(function: FunctionType) -> dict[str, object]:
    """What the variables of the functions around a function stand for."""
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return cells


def _is_users(value: object) -> bool:
    """Whether a function, class or module of code is not torch's or Python's own."""
    home = str(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None))
    return home.partition(".")[0] not in _NOT_FOLLOWED or home == _GRAPH


def _reachable(functions: Iterable[_Function]) -> set[str]:
    """The names that `forward`, and what it may call by name, mention."""
    by_name: dict[str, set[CodeType]] = {}
    for function in functions:
        by_name.setdefault(function.name, set()).add(function.code)
    reachable: set[str] = set()
    waiting = ["forward", "__call__"]
    while waiting:
        name = waiting.pop()
        if name not in reachable:
            reachable.add(name)
            waiting += [mentioned for code in by_name.get(name, ()) for mentioned in names_in(code)]
    return reachable


def _followed(functions: Iterable[_Function], reachable: set[str]) -> list[_Function]:
    """The functions outside of the model's classes that the reachable ones mention, as parts of `forward`."""
    found: list[_Function] = []
    seen = {function.code for function in functions}
    waiting = [function for function in functions if function.name in reachable]
    mentioned: set[int] = set()
    while waiting:
        function = waiting.pop()
        names, variables = names_in(function.code), variables_in(function.code)
        values = [function.local.get(name, function.shared.get(name)) for name in variables]
        packages = [value for value in values if isinstance(value, ModuleType) and _is_users(value)]
        values += [vars(package)[name] for package in packages for name in names & vars(package).keys()]
        for value in values:
            if id(value) in mentioned or not (isinstance(value, (FunctionType, type, *_WRAPPERS))):
                continue
            mentioned.add(id(value))
            called: list[object] = [value]
            if isinstance(value, type):
                called = [] if issubclass(value, nn.Module) or not _is_users(value) else list(vars(value).values())
            for each in called:
                more = list(_unwrapped(each, "forward", getattr(each, "__qualname__", "a function")))
                more = [each for each in more if each.code not in seen]
                seen.update(each.code for each in more)
                waiting += more
                found += more
    return found


def _resolve(read: Read, function: _Function) -> object | None:
    """What is read of, which may be no layer at all, or None where that cannot be told."""
    variables = function.shared if read.is_global else function.local
    if read.base is None or read.base not in variables:
        return None
    value = variables[read.base]
    for step in read.path:
        parts: Any = getattr(value, "__dict__", {})
        if isinstance(value, nn.Module):
            parts = {**parts, **parts["_parameters"], **parts["_buffers"], **parts["_modules"]}
            if isinstance(step, int) and isinstance(value, nn.Sequential | nn.ModuleList) and len(value):
                step = str(step % len(value))
        elif isinstance(value, dict):
            parts = value
        elif isinstance(value, list | tuple):
            parts = dict(enumerate(value)) | {-index: each for index, each in enumerate(reversed(value), 1)}
        if step not in parts:
            return None
        value = parts[step]
    return value
