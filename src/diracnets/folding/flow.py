"""The data flow of a model: which module's output goes where, as far as `torch.fx` can follow it."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from diracnets.errors import first_line

MOST_VARIANTS = 16  # of the flags that a forward method has


@dataclass
class Flow:
    """The graphs of a model.

    Attributes:
        graphs: one for each way through a `forward` that its flags allow, of the model and of each part that was
            followed on its own; the targets of their nodes are names of modules in the model.
        opaque: modules that could not be followed, by name, with the reason; "" is the model itself.
        calls: the nodes that call each module, by its name.
        read: the modules whose parameters or buffers are used directly.
        forward: the graph of the model itself where there is one way through it only.
    """

    graphs: list[fx.Graph] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    read: set[str] = field(default_factory=set)
    forward: fx.Graph | None = None

    def hidden(self, model: nn.Module) -> dict[str, str]:
        """Modules of whose use nothing is known, by name, and why."""
        names = {id(module): name for name, module in model.named_modules()}
        modules = dict(model.named_modules())
        return {
            names[id(part)]: f"{repr(opaque) if opaque else 'the model'} cannot be traced: {reason}"
            for opaque, reason in self.opaque.items()
            for part in modules[opaque].modules()
        }


def follow(model: nn.Module) -> Flow:
    """Trace a model, symbolically: nothing is computed, no hook of it is called.

    Flags of `forward` (arguments whose default is a bool or None) are traced with all their values. A part that cannot
    be traced is left opaque, and the rest is traced around it. A part that has forward hooks is traced on its own.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    >>> [node.target for node in follow(model).graphs[0].nodes if node.op == "call_module"]
    ['0', '1']
    """
    flow = Flow()
    names = {id(module): name for name, module in model.named_modules()}
    roots = [model]
    failed: dict[int, str] = {}
    for root in roots:  # grows on the way
        graphs = _graphs(root, failed)
        for graph in graphs:
            modules = dict(root.named_modules())
            for node in graph.nodes:
                if node.op == "call_module":
                    module = modules[node.target]
                    node.target = names[id(module)]
                    flow.calls[node.target].append(node)
                    if _traced_alone(module):
                        if all(module is not other for other in roots):
                            roots.append(module)
                    elif next(module.children(), None) is not None:
                        failed.setdefault(id(module), f"a {type(module).__name__} is not looked into")
                elif node.op == "get_attr":
                    owner = node.target.rpartition(".")[0]
                    flow.read.add(names[id(modules[owner])] if owner in modules else owner)
        flow.graphs.extend(graphs)
        if root is model and len(graphs) == 1:
            flow.forward = graphs[0]
    flow.opaque = {names[key]: reason for key, reason in failed.items()}
    return flow


class _Tracer(fx.Tracer):
    """Goes into modules down to torch's own layers, except opaque ones; remembers where it failed."""

    def __init__(self, opaque: dict[int, str]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failed: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            id(m) in self.opaque
            or _traced_alone(m)
            or isinstance(m, _ConvNd | _BatchNorm | nn.Linear)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(m, ""):
                self.failed = m
            raise


def _graphs(root: nn.Module, failed: dict[int, str]) -> list[fx.Graph]:
    """The graphs of all variants of `root`; none, and an entry in `failed`, where it cannot be traced."""
    if "forward" in vars(root):
        failed[id(root)] = "its forward was replaced on the instance"
        return []
    try:
        variants = list(_variants(root.forward))
    except ValueError as error:
        failed[id(root)] = str(error)
        return []
    while True:
        tracer = _Tracer(failed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return [tracer.trace(root, values) for values in variants]
        except Exception as error:  # a trace runs code of the model, which may raise anything
            where = root if tracer.failed is None else tracer.failed
            failed[id(where)] = f"{type(error).__name__}: {first_line(error)}"
            if where is root:
                return []


def _variants(forward: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The values of flags to trace with; an argument without a value is traced symbolically."""
    choices: list[list[dict[str, Any]]] = []
    for name, parameter in inspect.signature(forward).parameters.items():
        if parameter.default is None:
            choices.append([{}, {name: None}])
        elif isinstance(parameter.default, bool):
            choices.append([{name: False}, {name: True}])
    if 2 ** len(choices) > MOST_VARIANTS:
        raise ValueError(f"its forward has {len(choices)} optional arguments, and so too many ways through it")
    for variant in itertools.product(*choices):
        yield {name: value for choice in variant for name, value in choice.items()}


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a hook sees or changes what goes into or comes out of a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _traced_alone(module: nn.Module) -> bool:
    return has_forward_hooks(module) and next(module.children(), None) is not None


def first_floating(model: nn.Module) -> torch.Tensor | None:
    """The first parameter or buffer with floating-point numbers, which tells dtype and device of a model."""
    return next(
        (tensor for tensor in itertools.chain(model.parameters(), model.buffers()) if tensor.is_floating_point()), None
    )
