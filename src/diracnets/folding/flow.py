"""The data flow of a model: where the output of each module goes, as far as `torch.fx` can trace it."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from diracnets.errors import first_line
from diracnets.folding.tree import leaves
from diracnets.folding.watch import Watch, WatchedAttribute, WatchedProxy, may_be_none

MOST_VARIANTS = 16  # of values for the flags of a forward method
_LAYERS = (
    *(getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "ConvTranspose", "BatchNorm") for axes in (1, 2, 3)),
    nn.SyncBatchNorm,
    nn.Linear,
)


@dataclass
class Flow:
    """The graphs of a model.

    Attributes:
        graphs: one for each path through a `forward` that its flags allow, for the model and for each part that was
            traced on its own. The targets of their nodes are names of modules in the model.
        opaque: modules that could not be traced, by name, with the reason; "" is the model itself.
        calls: the nodes that call each module, by its name.
        read: the modules whose parameters or buffers are used directly.
        forward: the graph of the model itself, if there is only one path through it.
        effects: what the model's code does besides computing its output, such as entering a context; each a sentence.
    """

    graphs: list[fx.Graph] = field(default_factory=list)
    opaque: dict[str, str] = field(default_factory=dict)
    calls: dict[str, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    read: set[str] = field(default_factory=set)
    forward: fx.Graph | None = None
    effects: dict[str, None] = field(default_factory=dict)

    def hidden(self, model: nn.Module) -> dict[str, str]:
        """The modules inside of opaque ones, by name, with the reason: how they are used is not known."""
        names = {id(module): name for name, module in model.named_modules()}
        modules = dict(model.named_modules())
        hidden: dict[str, str] = {}
        for opaque, reason in self.opaque.items():
            what = f"{repr(opaque) if opaque else 'the model'} cannot be traced: {reason}"
            inner = next((key for key, child in modules[opaque].named_children() if any(child.children())), None)
            if inner is not None:
                what += f"; {f'{opaque}.{inner}'.lstrip('.')!r} may fold on its own"
            hidden |= {names[id(part)]: what for part in modules[opaque].modules()}
        return hidden


def follow(model: nn.Module) -> Flow:
    """Trace a model symbolically: nothing is computed, and none of its hooks is called.

    Flags of `forward` (arguments whose default is a bool or None) are traced with all their values. A part stays opaque
    if it cannot be traced, or if its trace does not show all that its code may do (see `watch`); the rest is traced
    around it. A part with forward hooks is traced on its own, and so is the module inside of a wrapper (see `inside`).

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    >>> [node.target for node in follow(model).graphs[0].nodes if node.op == "call_module"]
    ['0', '1']
    """
    flow = Flow()
    names = {id(module): name for name, module in model.named_modules()}
    roots = [model]
    failed: dict[int, str] = {}
    for root in roots:  # grows on the way
        if (wrapped := inside(root)) is not None:
            roots += [] if any(wrapped is other for other in roots) else [wrapped]
            continue
        graphs = _graphs(root, failed, flow.effects)
        modules = dict(root.named_modules())
        for graph in graphs:
            for node in graph.nodes:
                if node.op == "call_module":
                    module = modules[node.target]
                    node.target = names[id(module)]
                    flow.calls[node.target].append(node)
                    if _traced_alone(module):
                        if all(module is not other for other in roots):
                            roots.append(module)
                    elif next(module.children(), None) is not None:
                        failed.setdefault(id(module), f"a {type(module).__name__} is not traced")
                elif node.op == "get_attr":
                    owner = node.target.rpartition(".")[0]
                    flow.read.add(names[id(modules[owner])] if owner in modules else owner)
        flow.graphs.extend(graphs)
        if root is model and len(graphs) == 1:
            flow.forward = graphs[0]
    flow.opaque = {names[key]: reason for key, reason in failed.items()}
    return flow


def inside(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper passes its arguments to and whose output it returns; None if `module` is no wrapper.

    Wrappers are `DataParallel`, `DistributedDataParallel`, what `torch.compile` returns, and every class whose forward
    is `return self.module(*args, **kwargs)`, as in `AveragedModel`, whatever the attribute is called.
    """
    kind = type(module)
    if kind.__module__.startswith("torch._dynamo"):  # calls what it compiled, by a __call__ of its own
        return getattr(module, "_orig_mod", None)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped = module.module
    else:
        code = getattr(inspect.getattr_static(kind, "forward", None), "__code__", None)
        same = any(
            code is not None
            and (code.co_code, code.co_argcount, code.co_kwonlyargcount, code.co_flags & _VARIADIC)
            == (like.co_code, like.co_argcount, like.co_kwonlyargcount, like.co_flags & _VARIADIC)
            for like in (_pass_all.__code__, _pass_positional.__code__)
        )
        wrapped = getattr(module, code.co_names[0], None) if code is not None and same else None
    return wrapped if isinstance(wrapped, nn.Module) and _calls_forward(module) is None else None


def _pass_all(self: Any, *inputs: Any, **others: Any) -> Any:  # noqa: ANN401
    return self.module(*inputs, **others)


def _pass_positional(self: Any, *inputs: Any) -> Any:  # noqa: ANN401
    return self.module(*inputs)


_OF_ALL_MODULES = vars(nn.Module()).keys()
_VARIADIC = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


class _Tracer(fx.Tracer):
    """Traces into modules down to torch's own layers, except opaque ones. Remembers where it failed, and why."""

    def __init__(self, opaque: dict[int, str], effects: dict[str, None]) -> None:
        super().__init__()
        self.opaque = opaque
        self.effects = effects
        self.failed: nn.Module | None = None
        self.reason: str | None = None
        self.path: list[nn.Module] = []
        self.surroundings = _surroundings()

    def trace_watched(self, root: nn.Module, values: dict[str, Any]) -> fx.Graph:
        """The graph of `root`.

        Raises:
            _Hidden: it does not show all that the code of `root` may do.
            Exception: what the code raises.
        """
        self.path, self.surroundings = [root], _surroundings()
        with Watch(self.asked, lambda what: self.effects.setdefault(what)).active():
            graph = self.trace(root, values)
        held = (value for module in root.modules() for key, value in vars(module).items() if key not in _OF_ALL_MODULES)
        if any(type(leaf) in (WatchedProxy, WatchedAttribute) for value in held for leaf in leaves(value)):
            self.effects.setdefault("it stores what it computes with")
        if self.reason is not None:
            raise _Hidden(self.reason)
        return graph

    def asked(self, reason: str) -> None:
        """Called when code asks for something that a trace does not show: its module becomes opaque."""
        if self.reason is None:
            self.failed, self.reason = self.path[-1], reason

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return WatchedProxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        if _surroundings() != self.surroundings:
            self.effects.setdefault("its forward switches autocast or gradients on or off")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            id(m) in self.opaque
            or _traced_alone(m)
            or isinstance(m, _LAYERS)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        self.path.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None and not self.is_leaf_module(m, ""):
                self.failed = m
            raise
        finally:
            self.path.pop()


class _Hidden(Exception):  # not an error: the answer to whether a trace shows all
    """The reason why a module stays as it is."""

    def __str__(self) -> str:
        return str(self.args[0])


def _surroundings() -> tuple[object, ...]:
    """The settings that a context can change for the code inside of it."""
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, torch.get_default_dtype()


def _graphs(root: nn.Module, failed: dict[int, str], effects: dict[str, None]) -> list[fx.Graph]:
    """The graphs of all variants of `root`; none, and an entry in `failed`, where it cannot be traced."""
    if (reason := _calls_forward(root)) is not None:
        failed[id(root)] = reason
        return []
    try:
        variants = list(_variants(root.forward))
    except ValueError as error:
        failed[id(root)] = str(error)
        return []
    while True:
        tracer = _Tracer(failed, effects)
        try:
            with warnings.catch_warnings(), torch.enable_grad(), _restored(root):
                warnings.simplefilter("ignore")
                return [tracer.trace_watched(root, values) for values in variants]
        except Exception as error:  # a trace runs code of the model, which may raise anything
            where = root if tracer.failed is None else tracer.failed
            failed[id(where)] = tracer.reason or f"{type(error).__name__}: {first_line(error)}"
            if where is root:
                return []


@contextlib.contextmanager
def _restored(root: nn.Module) -> Iterator[None]:
    """Restore the attributes of modules afterwards: their code may store what it is traced with."""
    before = [(module, dict(vars(module))) for module in root.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _calls_forward(module: nn.Module) -> str | None:
    """Why calling a module is not the same as calling its class's forward, apart from hooks; None if it is the same."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if type(module).__call__ is not nn.Module.__call__:
        return "its class has a __call__ of its own"
    return None


def _variants(forward: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The values of flags to trace with. An argument without a value is traced symbolically."""
    choices: list[list[dict[str, Any]]] = []
    optional = may_be_none(forward.__code__) if hasattr(forward, "__code__") else set()
    for name, parameter in inspect.signature(forward).parameters.items():
        if parameter.default is None or (name in optional and parameter.default is parameter.empty):
            choices.append([{}, {name: None}])
        elif isinstance(parameter.default, bool):
            choices.append([{name: False}, {name: True}])
    if 2 ** len(choices) > MOST_VARIANTS:
        raise ValueError(f"its forward has {len(choices)} optional arguments, and so too many paths")
    for variant in itertools.product(*choices):
        yield {name: value for choice in variant for name, value in choice.items()}


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a hook sees or changes what goes into or comes out of a module; torch has no public way to ask."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _traced_alone(module: nn.Module) -> bool:
    return inside(module) is not None or (has_forward_hooks(module) and next(module.children(), None) is not None)


def first_floating(model: nn.Module) -> torch.Tensor | None:
    """The first floating-point parameter or buffer: its dtype and device are taken for those of the model."""
    return next(
        (tensor for tensor in itertools.chain(model.parameters(), model.buffers()) if tensor.is_floating_point()), None
    )
