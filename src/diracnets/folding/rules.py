"""Which batch norms of a model can be folded into which layers, and why the others cannot."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, fx, nn

from diracnets.folding import fuse
from diracnets.folding.exact import (
    POOLS,
    RANKS,
    changes_input,
    sharing_parameters,
    strangeness,
    takes_shifts,
    why_not_exchange,
)
from diracnets.folding.flow import Flow, has_forward_hooks
from diracnets.folding.fuse import BATCH_NORMS
from diracnets.folding.steps import as_module, is_nothing, source_of
from diracnets.nn.dirac import DiracConv

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_OTHER_NORMS = (*_INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Folded:
    """One thing that went into a layer's weight and bias.

    Attributes:
        layer: the layer's name.
        kind: "dirac" for its own parameterization, "batch norm" for one before or after it.
        norm: the batch norm's name.
    """

    layer: str
    kind: Literal["dirac", "batch norm"]
    norm: str | None = None


@dataclass
class Plan:
    """What is to be folded.

    Attributes:
        layers: the modules that replace others, by name.
        folded: what went into them.
        left: what stays as it is, by name, with the reason.
        moved: modules whose outputs change, as the plan intends.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    folded: list[Folded] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)


class _Left(Exception):  # not an error: the answer to whether something can be folded
    """The reason why a batch norm stays."""


def make_plan(model: nn.Module, flow: Flow, ranks: Mapping[str, set[int]]) -> Plan:
    """Find every batch norm that can be folded exactly, and the reasons for the others.

    Args:
        model: with ordinary convolutions for Dirac ones, in float64.
        flow: the data flow of `model`.
        ranks: the numbers of dimensions of the outputs of each module, by its name.
    """
    planner = _Planner(model, flow, ranks)
    planner.run()
    return planner.plan


class _Planner:
    def __init__(self, model: nn.Module, flow: Flow, ranks: Mapping[str, set[int]]) -> None:
        self.plan, self.flow, self.ranks = Plan(), flow, ranks
        self.modules = dict(model.named_modules())  # as planned so far: a folded batch norm is an Identity here
        self.hidden = flow.hidden(model)
        self.shared = sharing_parameters(model)

    def run(self) -> None:
        reasons: dict[str, dict[str, None]] = {}
        changed = True
        while changed:  # a fold can make another one possible
            changed = False
            reasons.clear()
            for rule in (self.fold_into_previous, self.fold_into_next, self.merge):
                for name in [name for name, module in self.modules.items() if isinstance(module, BATCH_NORMS)]:
                    try:
                        rule(name)
                    except _Left as reason:
                        if rule != self.merge:
                            reasons.setdefault(name, {})[str(reason)] = None
                    else:
                        changed = True
        for name, module in self.modules.items():
            if isinstance(module, BATCH_NORMS):
                self.plan.left[name] = "; ".join(reasons[name])
            elif isinstance(module, DiracConv):
                self.plan.left[name] = "other code computes or uses its weight, or its class is unknown"
            elif isinstance(module, _OTHER_NORMS):
                self.plan.left[name] = f"a {type(module).__name__} computes its statistics from each input"

    def fold_into_previous(self, name: str, kinds: Container[type[nn.Module]] = RANKS) -> None:
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
        self.check_layers(layers, "its output does not go to it")
        for layer in layers:
            self.replace(layer, fuse.then(self.modules[layer], norm), name)
        self.finish(name, moved)

    def fold_into_next(self, name: str) -> None:
        """Fold a batch norm into the layers that follow it, or raise `_Left`."""
        self.check_usable(name)
        norm = self.norm(name)
        scale, shift = fuse.scale_and_shift(norm)
        layers: dict[str, set[fx.Node]] = {}
        moved = {name}
        for call in self.flow.calls[name]:
            source = source_of(call)
            if source is None or any(changes_input(user, self.modules) for user in source.users):
                raise _Left("its input is changed in place")
            for node, between in self.consumers(call, ()):
                layer = str(node.target)
                self.check_commutes(between, scale, name)
                layers.setdefault(layer, set()).add(node)
                moved |= _targets(between)
                if not fuse.is_zero(shift) and not takes_shifts(self.modules[layer]):
                    raise _Left(f"{self.label(node)} after it pads its input, and a shift cannot be moved past padding")
        self.check_layers(layers, "its input does not come from it")
        for layer in layers:
            self.replace(layer, fuse.after(norm, self.modules[layer]), name)
        self.finish(name, moved)

    def merge(self, name: str) -> None:
        """Merge a batch norm into another one that it follows, or raise `_Left`."""
        self.fold_into_previous(name, BATCH_NORMS)

    def producer(self, call: fx.Node, kinds: Container[type[nn.Module]]) -> tuple[fx.Node, list[fx.Node]]:
        """The call of the layer whose output reaches `call`, and the steps between the two."""
        between: list[fx.Node] = []
        node = source_of(call)
        while node is not None and not (node.op == "call_module" and type(self.modules[str(node.target)]) in kinds):
            if not self.passes(node):
                raise _Left(f"it follows {self.label(node)}")
            between.append(node)
            node = source_of(node)
        if node is None:
            raise _Left("it has more than one input, or none")
        for step in (node, *between):
            if len(step.users) != 1:
                raise _Left(f"the output of {self.label(step)} before it is also used elsewhere")
        return node, between

    def consumers(self, node: fx.Node, between: tuple[fx.Node, ...]) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
        """The calls of layers that `node`'s output reaches, and the steps between. It must reach nothing else."""
        if not node.users:
            raise _Left("its output is not used")
        for user in node.users:
            if source_of(user) is node and user.op == "call_module" and type(self.modules[str(user.target)]) in RANKS:
                yield user, between
            elif source_of(user) is node and self.passes(user):
                yield from self.consumers(user, (*between, user))
            else:
                raise _Left(f"{self.label(user)} follows it")

    def passes(self, node: fx.Node) -> bool:
        """Whether a scale and a shift can possibly be moved past a step."""
        module = as_module(node, self.modules)
        return module is not None and (is_nothing(module) or type(module) in POOLS)

    def check_commutes(self, between: Iterable[fx.Node], scale: Tensor, layer: str) -> None:
        """Raise `_Left` unless scaling and shifting can be exchanged with the steps before or after `layer`."""
        for node in between:
            module = as_module(node, self.modules)
            if module is not None and (reason := why_not_exchange(module, scale, self.ranks.get(layer, set()))):
                raise _Left(f"{self.label(node)} is next to it {reason}")

    def check_layers(self, layers: Mapping[str, set[fx.Node]], otherwise: str) -> None:
        """Raise `_Left` unless each layer is fully known, and every call of it is among those given."""
        if not layers:
            raise _Left("forward never calls it")
        for layer, nodes in layers.items():
            module = self.modules[layer]
            self.check_usable(layer)
            if layer in self.shared:
                raise _Left(f"{layer!r} shares its parameters with {self.shared[layer]!r}")
            if set(self.flow.calls[layer]) != nodes:
                raise _Left(f"{layer!r} is also called where {otherwise}")
            if type(module) in RANKS and (ranks := self.ranks.get(layer, set())) != {RANKS[type(module)]}:
                given = " and ".join(map(str, sorted(ranks))) or "unknown"
                raise _Left(f"the output of {layer!r} has {given} dimensions instead of {RANKS[type(module)]}")

    def check_usable(self, name: str) -> None:
        """Raise `_Left` unless a module is exactly what its class says and all uses of it are known."""
        module = self.modules[name]
        if reason := self.hidden.get(name) or strangeness(module, (*RANKS, *BATCH_NORMS)):
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

    def norm(self, name: str) -> fuse.BatchNorm:
        return cast(fuse.BatchNorm, self.modules[name])

    def label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.modules[str(node.target)]).__name__} {node.target!r}"
        if node.op in ("placeholder", "output"):
            return {"placeholder": "the model's input", "output": "the model's output"}[node.op]
        return str(getattr(node.target, "__name__", node.target))


def _targets(nodes: Iterable[fx.Node]) -> set[str]:
    return {str(node.target) for node in nodes if node.op == "call_module"}
