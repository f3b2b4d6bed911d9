"""The layers of the chain that computes what a model with skip-connections does, by its data flow."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from diracnets.errors import FoldError
from diracnets.folding import pieces
from diracnets.folding.affine import Window
from diracnets.folding.carry import Carrier, Value
from diracnets.folding.chain import steps_of
from diracnets.folding.exact import changes_input
from diracnets.folding.flow import Flow, has_forward_hooks
from diracnets.folding.fuse import BatchNorm
from diracnets.folding.part import Part
from diracnets.folding.steps import is_nothing

_ARITHMETIC = (*pieces.SUMS, *pieces.DIFFERENCES, *pieces.PRODUCTS, *pieces.QUOTIENTS, *pieces.NEGATIVES)
_KEEP_SIGN = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)


@dataclass
class Straight:
    """The layers of a chain.

    Attributes:
        layers: in order.
        sums: how many sums and concatenations of the model there are in them.
        uneven: whether it was made for maps of a size at which layers of different windows give equally large ones, so
            that it has to be checked at others.
    """

    layers: list[nn.Module]
    sums: int = 0
    uneven: bool = False


def straightened(model: nn.Module, flow: Flow, x: Tensor, original: nn.Module) -> Straight:
    """The layers of a chain that computes what a model does.

    The graph is cut wherever all paths meet. A layer at such a place stays as it is, whatever it is; what lies between
    two of them is computed by a `Carrier`.

    Args:
        model: in evaluation mode, in the dtype to compute with, without Dirac convolutions.
        flow: its data flow.
        x: a batch that it takes.
        original: the same before its batch norms were folded, for errors.

    Raises:
        FoldError: the model has something beside a skip-connection that no chain can compute exactly.
    """
    reader = _Reader(model, flow, x, original)
    reader.read()
    return reader.made


def refuse_untraced(model: nn.Module, flow: Flow) -> None:
    """Refuse a model whose data flow does not show all that it does.

    Raises:
        FoldError: it cannot be traced or has several paths, hooks, or effects such as entering a context.
    """
    hooked = next((name for name, module in model.named_modules() if has_forward_hooks(module)), None)
    if hooked is not None:
        raise FoldError(
            f"a forward hook is on {repr(hooked) if hooked else 'the model'}, which a chain would lose: remove it "
            "(those of pruning by torch.nn.utils.prune.remove, those of weight_norm by remove_weight_norm)"
        )
    for name, module in model.named_modules():
        if is_parametrized(module):
            raise FoldError(
                f"{name!r} is parametrized: make its parameters ordinary ones first, by torch.nn.utils.parametrize."
                f"remove_parametrizations(module, {next(iter(cast(nn.ModuleDict, module.parametrizations)))!r})"
            )
    for name, reason in flow.opaque.items():
        raise FoldError(f"{repr(name) if name else 'the model'} cannot be traced: {reason}")
    if flow.forward is None:
        raise FoldError("the model's forward has arguments that change its data flow: wrap it in a module without them")
    for effect in flow.effects:
        raise FoldError(f"the model has no chain, because {effect}")


class _Reader:
    """Reads a graph from input to output, and writes the chain's layers at each place that all paths pass."""

    def __init__(self, model: nn.Module, flow: Flow, x: Tensor, original: nn.Module) -> None:
        self.modules, self.flow, self.x = dict(model.named_modules()), flow, x
        self.kinds = {name: type(module).__name__ for name, module in original.named_modules()}
        graph = cast(fx.Graph, flow.forward)
        needed = set(graph.find_nodes(op="output"))
        for node in reversed(graph.nodes):
            if node.op.startswith("call") and changes_input(node, self.modules):
                needed.add(node)  # it may change what other steps read
            needed.update(node.all_input_nodes if node in needed else ())
        self.steps = {node: steps_of(node, self.modules, flow) for node in needed if node.op.startswith("call")}
        aside = {each for found in self.steps.values() if found for each in found[2]}
        for node in graph.find_nodes(op="get_attr"):
            if node in needed and str(node.target).startswith("_tensor_constant"):
                where = self._label(next(iter(node.users))).partition(" in the forward of ")[2]
                raise FoldError(
                    f"{where} makes a tensor of its own in its forward: register it as a buffer, or use a number"
                )
        ran = _Run(model, graph, self.modules)
        ran.run(x.clone())
        self.shapes, self.constants = ran.shapes, ran.constants
        self.nodes = [n for n in graph.nodes if n in needed and n not in aside and n not in self.constants]
        self.made = Straight([])
        self.content: dict[fx.Node, Value] = {}  # by the node that made the tensor that a node gives
        self.maker: dict[fx.Node, fx.Node] = {}
        self._begin("the input", False)

    def read(self) -> None:
        """Write the layers of the chain."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise FoldError(f"the model has {len(inputs)} inputs; a chain has one")
        for node in self.nodes:
            if node.op == "placeholder":
                self._put(node, self.part.values[0])
            elif node.op == "output":
                given = node.args[0]
                if not isinstance(given, fx.Node) or given not in self.maker:
                    raise FoldError(
                        "the model returns several values or none of its layers', and a chain returns one: wrap the "
                        "model in a module that returns one of its tensors alone"
                    )
                self._end(self._value(given))
            else:
                self._read(node)

    def _begin(self, name: str, positive: bool) -> None:
        channels = self.x.shape[1] if self.x.ndim > 1 else 1
        self.part = Part(name, channels, positive, self.x.new_ones(()))

    def _end(self, target: Value) -> bool:
        """Write the layers up to a value, which all paths pass; gives whether it cannot be negative."""
        size = None if self.x.ndim != 4 else (self.x.shape[2], self.x.shape[3])
        carrier = Carrier(self.part.values[0], self.part.positive, self.part.values, self.part.like, size)
        positive = carrier.compute(target)
        for layer in carrier.layers:
            self.x = layer(self.x)
        self.made.layers += carrier.layers
        self.made.uneven |= carrier.uneven
        return positive

    def _put(self, node: fx.Node, value: Value, changed: fx.Node | None = None) -> None:
        """Note what a node gives; `changed` is the node whose tensor it is, for a step in place."""
        self.maker[node] = node if changed is None else self.maker[changed]
        self.content[self.maker[node]] = value

    def _value(self, node: object) -> Value:
        if not isinstance(node, fx.Node) or node not in self.maker:
            name = self._label(node) if isinstance(node, fx.Node) else str(node)
            raise FoldError(f"{name} is used in the model's forward, and is not computed by its layers")
        return self.content[self.maker[node]]

    def _read(self, node: fx.Node) -> None:
        source = next((each for each in node.args if isinstance(each, fx.Node)), node)
        changed = source if changes_input(node, self.modules) else None
        made = self._made(node)
        if made is not None:
            self._put(node, made, changed)
            return
        if used := [each for each in node.all_input_nodes if each in self.constants]:
            raise FoldError(f"{self._label(node)} uses {self._label(used[0])} itself, not by a layer of torch's")
        found = self.steps.get(node) or self._global_average(node)
        source, modules, _ = found
        value, changed = self._value(source), source if changed is not None else None
        for module in modules:
            if is_nothing(module):
                changed = source
                continue
            value = self._after(module, value, node)
        self._put(node, value, changed)

    def _made(self, node: fx.Node) -> Value | None:
        """What a function or method makes of values, if it is one of those that are carried as sums."""
        target, name, axes = node.target, self._label(node), self.x.ndim
        source = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))
        if node.op not in ("call_function", "call_method") or axes not in (2, 4):
            if target in _ARITHMETIC:
                raise FoldError(f"{name} computes with {axes} dimensions; only images and vectors are carried")
            return None
        if target in _ARITHMETIC:
            return self._arithmetic(node, name)
        if target in pieces.CONCATENATIONS:
            return self._concatenated(node, name)
        if not isinstance(source, fx.Node) or source not in self.maker:
            return None
        value, rest, more = self._value(source), node.args[1:], {k: v for k, v in node.kwargs.items() if k != "input"}
        ones, like = self.x.new_ones(value.channels), self.x
        if target is torch.zeros_like and not rest and not more:
            return self.part.scaled(name, value, 0 * ones, 0 * ones)
        if target in pieces.CLAMPS and (bends := pieces.clamped(target, rest, more)):
            return self.part.bent(name, value, *bends)
        if target is operator.getitem and (taken := pieces.picked(rest[0], value.channels, axes)):
            rows, step = taken
            some = rows != list(range(value.channels))
            weight = pieces.selection(rows, value.channels, like) if some else None
            return self.part.convolved(name, value, weight, None, Window(stride=step))
        if target in pieces.PADDINGS and (zeros := pieces.padded_channels(rest, more, axes)):
            whole: list[int | None] = [*[None] * zeros[0], *range(value.channels), *[None] * zeros[1]]
            return self.part.convolved(name, value, pieces.selection(whole, value.channels, like), None)
        return None

    def _after(self, module: nn.Module, value: Value, node: fx.Node) -> Value:
        """What a module makes of a value."""
        name, maps = self._label(node), self.x.ndim == 4
        if type(module) is nn.ReLU and (maps or self.x.ndim == 2):
            return self.part.new("relu", name, value)
        norms = (nn.BatchNorm2d if maps else nn.BatchNorm1d, nn.SyncBatchNorm)
        if type(module) in norms and (maps or self.x.ndim == 2):
            return self.part.normalized(cast(BatchNorm, module), name, value)
        if type(module) is nn.Linear and self.x.ndim == 2:
            return self.part.convolved(name, value, module.weight[..., None, None], module.bias, Window())
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and maps and pieces.subsamples(module):
            return self.part.convolved(name, value, None, None, Window(stride=pieces.pair(module.stride)))
        conv = module if type(module) is nn.Conv2d and maps else None
        window = None if conv is None else pieces.window_of(conv)
        if conv is not None and window is not None and conv.groups == 1:
            return self.part.convolved(name, value, conv.weight, conv.bias, window)
        beside = self._beside(node)
        if beside is None:
            kept = self._end(value) and type(module) in _KEEP_SIGN
            self.made.layers.append(copy.deepcopy(module))
            self.x = module(self.x.clone())
            self._begin(name, kept)
            return self.part.values[0]
        if conv is not None and window is not None:
            return self.part.convolved(name, value, pieces.dense(conv), conv.bias, window)
        if type(module) is nn.AvgPool2d and maps and pieces.averages_alike(module):
            weight, window = pieces.average(module, value.channels, self.x)
            return self.part.convolved(name, value, weight, None, window)
        if (bends := pieces.bends_of(module)) and self.x.ndim in (2, 4):
            return self.part.bent(name, value, *bends)
        raise pieces.refusal(name, module, self._label(beside), self.x.ndim)

    def _beside(self, node: fx.Node) -> fx.Node | None:
        """A node before this one that something after it reads; None if all paths pass this node."""
        place = self.nodes.index(node)
        later = set(self.nodes[place + 1 :])
        return next((each for each in self.nodes[:place] if any(user in later for user in each.users)), None)

    def _arithmetic(self, node: fx.Node, name: str) -> Value:
        """A sum, difference, product or quotient of two values, or of a value and numbers of each channel."""
        given = dict(zip(("input", "other"), node.args, strict=False)) | dict(node.kwargs)
        factor = given.pop("alpha", 1)
        if node.target in pieces.NEGATIVES:
            given["other"] = -1
        if given.keys() != {"input", "other"} or len(node.args) > 2 or not isinstance(factor, int | float):
            raise FoldError(f"{name} has other arguments than two values")
        factor *= -1 if node.target in pieces.DIFFERENCES else 1
        multiplies = node.target in (*pieces.PRODUCTS, *pieces.QUOTIENTS, *pieces.NEGATIVES)
        inverts = node.target in pieces.QUOTIENTS
        one, other = given["input"], given["other"]
        constants = [self._constant(each) for each in (one, other)]
        if constants[0] is None and constants[1] is None:
            if multiplies:
                raise FoldError(
                    f"{name} multiplies or divides two values that depend on the image; no convolution does"
                )
            return self._joined(name, [one, other], factor)
        place = 0 if constants[0] is None else 1
        value, shape = self._value(given["input" if place == 0 else "other"]), self.shapes[node]
        numbers = pieces.of_channels(cast("float | Tensor", constants[1 - place]), shape, self.x)
        if numbers is None or shape != self.shapes[cast(fx.Node, (one, other)[place])] or (inverts and place == 1):
            raise FoldError(f"{name} uses numbers that are not one for each channel, or divides by the image")
        ones = torch.ones_like(numbers)
        if multiplies:
            return self.part.scaled(name, value, 1 / numbers if inverts else numbers, 0 * ones)
        return self.part.scaled(name, value, *((ones, factor * numbers) if place == 0 else (factor * ones, numbers)))

    def _constant(self, argument: object) -> float | Tensor | None:
        """A number, or a tensor that depends on no image; else None."""
        if isinstance(argument, fx.Node):
            return self.constants.get(argument)
        return argument if isinstance(argument, int | float) else None

    def _joined(self, name: str, nodes: Sequence[object], factor: float = 1) -> Value:
        """The sum of values of one size, the last one times a factor."""
        values = [self._value(each) for each in nodes]
        shapes = [tuple(self.shapes[cast(fx.Node, each)]) for each in nodes]
        if len(set(shapes)) > 1 or len({value.step for value in values}) > 1:
            sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise FoldError(f"{name} adds values of different sizes ({sizes}), which no chain can")
        if factor != 1:
            ones = self.x.new_ones(values[-1].channels)
            values[-1] = self.part.scaled(name, values[-1], factor * ones, 0 * ones)
        self.made.sums += 1
        return self.part.summed(name, values)

    def _concatenated(self, node: fx.Node, name: str) -> Value:
        """Values side by side, as the sum of values with channels of zeros around them."""
        given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
        nodes, dim = given.pop("tensors", None), given.pop("dim", given.pop("axis", 0))
        if given or not isinstance(nodes, list | tuple) or dim not in (1, 1 - self.x.ndim):
            raise FoldError(f"{name} puts values side by side along another axis than that of the channels")
        values = [self._value(each) for each in nodes]
        sizes = {tuple(self.shapes[cast(fx.Node, each)][2:]) for each in nodes} | {value.step for value in values}
        if len(sizes) > 1 + (self.x.ndim == 4):
            raise FoldError(f"{name} puts values of different sizes side by side, which no chain can")
        total, before, parts = sum(value.channels for value in values), 0, []
        for value in values:
            rows = [None] * before + list(range(value.channels)) + [None] * (total - before - value.channels)
            parts.append(
                self.part.convolved(name, value, pieces.selection(rows, value.channels, self.x), None, Window())
            )
            before += value.channels
        self.made.sums += 1
        return self.part.summed(name, parts)

    def _global_average(self, node: fx.Node) -> tuple[fx.Node, list[nn.Module], list[fx.Node]]:
        """`x.mean((2, 3))`."""
        rest = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
        dims, source = rest.get("dim"), rest.get("input")
        is_mean = node.target in ("mean", torch.mean) and isinstance(source, fx.Node) and self.x.ndim == 4
        if is_mean and isinstance(dims, list | tuple) and sorted(cast("list[int]", dims)) in ([2, 3], [-2, -1]):
            pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1).eval()]
            return cast(fx.Node, source), pool if rest.get("keepdim") else [*pool, nn.Flatten().eval()], []
        raise FoldError(
            f"{self._label(node)} is none of the layers and functions that a chain is made of, such as convolution, "
            "batch norm, ReLU, sum, concatenation, pooling and Linear"
        )

    def _label(self, node: fx.Node) -> str:
        """A step by the name of its module, or of the one in whose forward it stands."""
        if node.op in ("placeholder", "get_attr"):
            return "the model's input" if node.op == "placeholder" else f"the tensor {node.target}"
        if node.op == "call_module":
            return f"{self.kinds[str(node.target)]} {node.target!r}"
        names = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        inner = f"{self.kinds.get(names[-1], 'the module')} {names[-1]!r}" if names and names[-1] else "the model"
        return f"{node.name!r} in the forward of {inner}"


class _Run(fx.Interpreter):
    """Runs a graph, and keeps the shape of each tensor, and those that depend on no input."""

    def __init__(self, model: nn.Module, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(model, graph=graph)
        self.modules = modules
        self.shapes: dict[fx.Node, Sequence[int]] = {}
        self.constants: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one step."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
            inputs = n.all_input_nodes
            computed = n.op in ("call_function", "call_method") and inputs and not changes_input(n, self.modules)
            if n.op == "get_attr" or (computed and all(each in self.constants for each in inputs)):
                self.constants[n] = result
        return result
