"""Which batch norms can be folded exactly into which layers, and why the others cannot."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from diracnets.nn import fuse
from diracnets.nn.dirac import DiracConv
from diracnets.nn.flow import Flow, has_forward_hooks
from diracnets.nn.steps import as_module, is_nothing, source_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_MAX_POOLS = (*(getattr(nn, f"{kind}MaxPool{d}d") for kind in ("", "Adaptive") for d in (1, 2, 3)),)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_OTHER_NORMS = (_InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "setitem")
_RANKS: dict[type[nn.Module], int] = {  # dimensions of outputs whose channels are where a batch norm expects them
    nn.Linear: 2,
    **{kind: 3 + d for kinds in (fuse.CONVOLUTIONS, fuse.TRANSPOSED) for d, kind in enumerate(kinds)},
}


@dataclass(frozen=True)
class Folded:
    """One thing that went into a layer's weight and bias.

    Attributes:
        layer: the layer's name.
        kind: "dirac" for its own parameterization, "batch norm" for one behind or before it.
        norm: the batch norm's name.
    """

    layer: str
    kind: Literal["dirac", "batch norm"]
    norm: str | None = None


@dataclass
class Plan:
    """What is to be folded.

    Attributes:
        layers: the modules that take the place of others, by name.
        folded: what went into them.
        left: what stays as it is, by name, with the reason.
        moved: modules whose outputs are no longer what they were, as part of the plan.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    folded: list[Folded] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)


class _Left(Exception):  # noqa: N818  # not an error: the answer to whether something can be folded
    """The reason why a batch norm stays."""


def plan_dirac(model: nn.Module) -> Plan:
    """Replace every Dirac convolution by an ordinary one; subclasses, which may compute something else, are left."""
    plan = Plan()
    for name, module in model.named_modules():
        if type(module) in fuse.ORDINARY and "forward" not in vars(module):
            plan.layers[name] = fuse.without_dirac(module)  # type: ignore[arg-type]
            plan.folded.append(Folded(name, "dirac"))
        elif isinstance(module, DiracConv):
            plan.left[name] = _strangeness(module, fuse.ORDINARY) or "unknown"
    return plan


def plan_batch_norms(plan: Plan, model: nn.Module, flow: Flow, ranks: Mapping[str, set[int]]) -> None:
    """Add to a plan every batch norm that can be folded exactly, and the reasons for the others.

    Args:
        plan: that of `plan_dirac`.
        model: with ordinary convolutions for Dirac ones, in float64.
        flow: the data flow of `model`.
        ranks: the numbers of dimensions that the outputs of each module have, by its name.
    """
    _Planner(plan, model, flow, ranks).run()


class _Planner:
    def __init__(self, plan: Plan, model: nn.Module, flow: Flow, ranks: Mapping[str, set[int]]) -> None:
        self.plan, self.flow, self.ranks = plan, flow, ranks
        self.modules = dict(model.named_modules())  # as planned so far: a folded batch norm is an Identity here
        self.hidden = flow.hidden(model)
        self.shared = _shared(model)

    def run(self) -> None:
        reasons: dict[str, dict[str, None]] = {}
        changed = True
        while changed:  # a fold can make another one possible
            changed = False
            reasons.clear()
            for rule in (self.fold_behind, self.fold_before, self.merge):
                for name in [name for name, module in self.modules.items() if isinstance(module, _BatchNorm)]:
                    try:
                        rule(name)
                    except _Left as reason:
                        if rule != self.merge:
                            reasons.setdefault(name, {})[str(reason)] = None
                    else:
                        changed = True
        for name, module in self.modules.items():
            if isinstance(module, _BatchNorm):
                self.plan.left[name] = "; ".join(reasons[name])
            elif isinstance(module, _OTHER_NORMS):
                self.plan.left[name] = f"a {type(module).__name__} computes its statistics from each input"

    def fold_behind(self, name: str, kinds: Container[type[nn.Module]] = _RANKS) -> None:
        """Fold a batch norm into the layers that it follows, or raise `_Left`."""
        self.check_usable(name)
        norm = self.norm(name)
        scale, _ = fuse.scale_and_shift(norm)
        layers: dict[str, set[fx.Node]] = {}
        moved: set[str] = set()
        for call in self.flow.calls[name]:
            node, between = self.producer(call, kinds)
            layer = str(node.target)
            self.check_commutes(between, scale, layer)
            layers.setdefault(layer, set()).add(node)
            moved |= {layer, *_targets(between)}
        self.check_layers(name, layers, "its output does not go to it")
        for layer in layers:
            self.replace(layer, fuse.then(self.modules[layer], norm), name)
        self.finish(name, moved)

    def fold_before(self, name: str) -> None:
        """Fold a batch norm into the layers that follow it, or raise `_Left`."""
        self.check_usable(name)
        norm = self.norm(name)
        scale, shift = fuse.scale_and_shift(norm)
        layers: dict[str, set[fx.Node]] = {}
        moved = {name}
        for call in self.flow.calls[name]:
            source = source_of(call)
            if source is None or any(_in_place(user, self.modules) for user in source.users):
                raise _Left("its input is changed in place")
            for node, between in self.consumers(call, ()):
                layer = str(node.target)
                self.check_commutes(between, scale, name)
                layers.setdefault(layer, set()).add(node)
                moved |= _targets(between)
                if shift.any() and not _takes_shifts(self.modules[layer]):
                    raise _Left(f"{self.label(node)} behind it pads its input, which shifts cannot pass")
        self.check_layers(name, layers, "its input does not come from it")
        for layer in layers:
            self.replace(layer, fuse.after(norm, self.modules[layer]), name)
        self.finish(name, moved)

    def merge(self, name: str) -> None:
        """Merge a batch norm into another one that it follows, or raise `_Left`."""
        self.fold_behind(name, BATCH_NORMS)

    def producer(self, call: fx.Node, kinds: Container[type[nn.Module]]) -> tuple[fx.Node, list[fx.Node]]:
        """The call of a layer whose output reaches `call`, and what stands between."""
        between: list[fx.Node] = []
        node = source_of(call)
        while node is not None and not (node.op == "call_module" and type(self.modules[str(node.target)]) in kinds):
            if not self.passes(node):
                raise _Left(f"it follows {self.label(node)}")
            between.append(node)
            node = source_of(node)
        if node is None:
            raise _Left("it has not one input")
        for step in (node, *between):
            if len(step.users) != 1:
                raise _Left(f"the output of {self.label(step)} before it is also used elsewhere")
        return node, between

    def consumers(self, node: fx.Node, between: tuple[fx.Node, ...]) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
        """The calls of layers that `node`'s output reaches, and what stands between; it must reach nothing else."""
        if not node.users:
            raise _Left("its output is not used")
        for user in node.users:
            if source_of(user) is node and user.op == "call_module" and type(self.modules[str(user.target)]) in _RANKS:
                yield user, between
            elif source_of(user) is node and self.passes(user):
                yield from self.consumers(user, (*between, user))
            else:
                raise _Left(f"{self.label(user)} comes behind it")

    def passes(self, node: fx.Node) -> bool:
        """Whether a scale and a shift may be able to pass a step."""
        module = as_module(node, self.modules)
        return module is not None and (
            is_nothing(module) or type(module) in (*_MAX_POOLS, *_AVERAGE_POOLS, *_ADAPTIVE_AVERAGE_POOLS)
        )

    def check_commutes(self, between: Iterable[fx.Node], scale: Tensor, layer: str) -> None:
        """Raise `_Left` unless scaling and shifting can be exchanged with the steps behind or before `layer`."""
        for node in between:
            module = as_module(node, self.modules)
            if module is None or is_nothing(module):
                continue
            pool: Any = module
            if has_forward_hooks(pool):
                raise _Left(f"a forward hook is on {self.label(node)}")
            axes = int(type(pool).__name__[-2])
            if self.ranks.get(layer) != {axes + 2}:
                raise _Left(f"it is not known whether {self.label(node)} leaves channels apart")
            if type(pool) in _MAX_POOLS:
                if pool.return_indices:
                    raise _Left(f"the indices of {self.label(node)} are used")
                if negative := int((scale < 0).sum()):
                    raise _Left(f"{self.label(node)} is next to it and {negative} of its {len(scale)} scales are negative")
            elif type(pool) in _AVERAGE_POOLS:
                padded = pool.count_include_pad and any(_tuple(pool.padding))
                if padded or getattr(pool, "divisor_override", None):
                    raise _Left(f"{self.label(node)} next to it averages with padding or another divisor")

    def check_layers(self, name: str, layers: Mapping[str, set[fx.Node]], otherwise: str) -> None:
        """Raise `_Left` unless each layer is known in every respect and every call of it is among those given."""
        if not layers or name in layers:
            raise _Left("forward never calls it" if not layers else "it follows itself")
        for layer, nodes in layers.items():
            module = self.modules[layer]
            self.check_usable(layer)
            if layer in self.shared:
                raise _Left(f"{layer!r} shares its parameters with {self.shared[layer]!r}")
            if set(self.flow.calls[layer]) != nodes:
                raise _Left(f"{layer!r} is also called where {otherwise}")
            if type(module) in _RANKS and (ranks := self.ranks.get(layer, set())) != {_RANKS[type(module)]}:
                given = " and ".join(map(str, sorted(ranks))) or "unknown"
                raise _Left(f"the output of {layer!r} has {given} dimensions instead of {_RANKS[type(module)]}")

    def check_usable(self, name: str) -> None:
        """Raise `_Left` unless a module is exactly what its class says and all uses of it are known."""
        module = self.modules[name]
        if reason := self.hidden.get(name) or _strangeness(module, (*_RANKS, *BATCH_NORMS)):
            raise _Left(reason)
        if has_forward_hooks(module):
            raise _Left(f"a forward hook is on {name!r}")
        if name in self.flow.read:
            raise _Left(f"forward uses the parameters of {name!r} directly")

    def replace(self, layer: str, module: nn.Module, norm: str) -> None:
        self.modules[layer] = self.plan.layers[layer] = module
        self.plan.folded.append(Folded(layer, "batch norm", norm))

    def finish(self, name: str, moved: set[str]) -> None:
        self.modules[name] = self.plan.layers[name] = nn.Identity().eval()
        self.plan.moved |= moved

    def norm(self, name: str) -> _BatchNorm:
        return cast(_BatchNorm, self.modules[name])

    def label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.modules[str(node.target)]).__name__} {node.target!r}"
        if node.op in ("placeholder", "output"):
            return {"placeholder": "the model's input", "output": "the model's output"}[node.op]
        return str(getattr(node.target, "__name__", node.target))


def _strangeness(module: nn.Module, known: Collection[type[nn.Module]]) -> str | None:
    """Why a module may not compute what its base class does."""
    if type(module) not in known:
        return f"its class {type(module).__name__} is none that fold knows"
    return "its forward was replaced on the instance" if "forward" in vars(module) else None


def _shared(model: nn.Module) -> dict[str, str]:
    """Modules that have a parameter in common with another one, and that one, by name."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return {name: other for names in owners.values() for name in names for other in names if other != name}


def _takes_shifts(layer: nn.Module) -> bool:
    """Whether a shift of all of a layer's inputs is the same as one of its outputs, which zero padding prevents."""
    if isinstance(layer, fuse.CONVOLUTIONS):
        return layer.padding_mode != "zeros" or not any(layer._reversed_padding_repeated_twice)
    return not isinstance(layer, fuse.TRANSPOSED)


def _in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a step may change its input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return bool(node.kwargs.get("inplace")) or name.endswith("_") or name in _IN_PLACE_OPERATORS


def _targets(nodes: Iterable[fx.Node]) -> set[str]:
    return {str(node.target) for node in nodes if node.op == "call_module"}


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
