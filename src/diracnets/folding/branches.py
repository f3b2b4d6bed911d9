"""The layers of the chain that computes what a model with skip-connections does, by its data flow."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

from diracnets.errors import FoldError
from diracnets.folding.affine import ONE, Pair, Window, both
from diracnets.folding.carry import STEEPEST, Carrier, Value
from diracnets.folding.chain import steps_of
from diracnets.folding.exact import changes_input
from diracnets.folding.flow import Flow, has_forward_hooks
from diracnets.folding.fuse import BatchNorm, scale_and_shift
from diracnets.folding.steps import is_nothing

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_KEEP_SIGN = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
_RANGE = (1e-4, 1e4)  # of the scales of a batch norm whose input is computed back


def straightened(model: nn.Module, flow: Flow, x: Tensor) -> tuple[list[nn.Module], int]:
    """The layers of a chain that computes what a model does, and how many sums of the model there are in it.

    The graph is cut wherever all paths meet. A layer at such a place stays as it is, whatever it is; what lies between
    two of them is computed by a `Carrier`.

    Args:
        model: in evaluation mode, in the dtype to compute with, without Dirac convolutions.
        flow: its data flow.
        x: a batch that it takes.

    Raises:
        FoldError: the model has something beside a skip-connection that no chain can compute exactly.
    """
    reader = _Reader(model, flow, x)
    return reader.read(), reader.sums


def refuse_untraced(model: nn.Module, flow: Flow) -> None:
    """Refuse a model whose data flow does not show all that it does.

    Raises:
        FoldError: it cannot be traced or has several paths, hooks, or effects such as entering a context.
    """
    hooked = next((name for name, module in model.named_modules() if has_forward_hooks(module)), None)
    if hooked is not None:
        raise FoldError(f"a forward hook is on {repr(hooked) if hooked else 'the model'}, which a chain would lose")
    for name, reason in flow.opaque.items():
        raise FoldError(f"{repr(name) if name else 'the model'} cannot be traced: {reason}")
    if flow.forward is None:
        raise FoldError("the model's forward has arguments that change its data flow: wrap it in a module without them")
    for effect in flow.effects:
        raise FoldError(f"the model has no chain, because {effect}")


class _Reader:
    """Reads a graph from input to output, and writes the chain's layers at each place that all paths pass."""

    def __init__(self, model: nn.Module, flow: Flow, x: Tensor) -> None:
        self.modules, self.flow, self.x = dict(model.named_modules()), flow, x
        graph = cast(fx.Graph, flow.forward)
        needed = set(graph.find_nodes(op="output"))
        for node in reversed(graph.nodes):
            if node.op.startswith("call") and changes_input(node, self.modules):
                needed.add(node)  # it may change what other steps read
            needed.update(node.all_input_nodes if node in needed else ())
        self.steps = {node: steps_of(node, self.modules, flow) for node in needed if node.op.startswith("call")}
        aside = {each for found in self.steps.values() if found for each in found[2]}
        self.nodes = [node for node in graph.nodes if node in needed and node not in aside]
        self.shapes = _Shapes(model, graph).of(x)
        self.layers: list[nn.Module] = []
        self.sums = 0
        self.content: dict[fx.Node, Value] = {}  # by the node that made the tensor that a node gives
        self.maker: dict[fx.Node, fx.Node] = {}
        self._begin("the input", False)

    def read(self) -> list[nn.Module]:
        """The layers of the chain."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise FoldError(f"the model has {len(inputs)} inputs; a chain has one")
        for node in self.nodes:
            if node.op == "placeholder":
                self._put(node, self.values[0])
            elif node.op == "output":
                given = node.args[0]
                if not isinstance(given, fx.Node) or given not in self.maker:
                    raise FoldError("the model returns several values or none of its layers'; a chain returns one")
                self._end(self._value(given))
            else:
                self._read(node)
        return self.layers

    def _begin(self, name: str, positive: bool) -> None:
        channels = self.x.shape[1] if self.x.ndim > 1 else 1
        self.values, self.positive = [Value("start", name, (), channels)], positive

    def _end(self, target: Value) -> bool:
        """Write the layers up to a value, which all paths pass; gives whether it cannot be negative."""
        like = self.x.new_ones(())
        carrier = Carrier(self.values[0], self.positive, self.values, like, flat=self.x.ndim == 2)
        positive = carrier.compute(target)
        for layer in carrier.layers:
            self.x = layer(self.x)
        self.layers += carrier.layers
        return positive

    def _put(self, node: fx.Node, value: Value, changed: fx.Node | None = None) -> None:
        """Note what a node gives; `changed` is the node whose tensor it is, for a step in place."""
        self.maker[node] = node if changed is None else self.maker[changed]
        self.content[self.maker[node]] = value

    def _value(self, node: object) -> Value:
        if not isinstance(node, fx.Node) or node not in self.maker:
            raise FoldError(f"{node} is used in the model's forward, and is not computed by its layers")
        return self.content[self.maker[node]]

    def _read(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            raise FoldError(f"the model's forward uses {node.target} itself, not by a layer")
        found = self.steps.get(node)
        if node.target in _SUMS or node.target in _PRODUCTS:
            self._put(
                node, self._arithmetic(node), cast(fx.Node, node.args[0]) if changes_input(node, self.modules) else None
            )
            return
        if found is None:
            found = self._global_average(node)
        source, modules, _ = found
        value, changed = self._value(source), source if changes_input(node, self.modules) else None
        for module in modules:
            if is_nothing(module):
                changed = source
                continue
            value = self._after(module, value, node, source)
        self._put(node, value, changed)

    def _after(self, module: nn.Module, value: Value, node: fx.Node, source: fx.Node) -> Value:
        """What a module makes of a value."""
        name, maps = self._label(node), self.x.ndim == 4
        if type(module) is nn.ReLU and (maps or self.x.ndim == 2):
            return self._new("relu", name, value)
        norms = (nn.BatchNorm2d if maps else nn.BatchNorm1d, nn.SyncBatchNorm)
        if type(module) in norms and (maps or self.x.ndim == 2):
            return self._normalized(cast(BatchNorm, module), name, value)
        if type(module) is nn.Linear and self.x.ndim == 2:
            return self._convolved(name, value, module.weight[..., None, None], module.bias, Window())
        if type(module) is nn.Conv2d and maps and (window := _window(module)) is not None:
            return self._convolved(name, value, module.weight, module.bias, window)
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) and maps and _subsamples(module):
            return self._convolved(name, value, None, None, Window(stride=_pair(module.stride)))
        beside = self._beside(node)
        if beside is None:
            kept = self._end(value) and type(module) in _KEEP_SIGN
            self.layers.append(copy.deepcopy(module))
            self.x = module(self.x.clone())
            self._begin(name, kept)
            return self.values[0]
        if type(module) is nn.AvgPool2d and maps and _averages_alike(module):
            kernel = _pair(module.kernel_size)
            weight = torch.eye(value.channels).to(self.x)[..., None, None].repeat(1, 1, *kernel) / math.prod(kernel)
            window = Window(kernel, _pair(module.stride), _pair(module.padding))
            return self._convolved(name, value, weight, None, window)
        raise _refusal(name, module, self._label(beside))

    def _beside(self, node: fx.Node) -> fx.Node | None:
        """A node before this one that something after it reads; None if all paths pass this node."""
        place = self.nodes.index(node)
        later = set(self.nodes[place + 1 :])
        return next((each for each in self.nodes[:place] if any(user in later for user in each.users)), None)

    def _arithmetic(self, node: fx.Node) -> Value:
        """A sum, or a sum or product with a number."""
        name = self._label(node)
        if len(node.args) != 2 or node.kwargs:
            raise FoldError(f"{name} has other arguments than two values")
        number = next((each for each in node.args if isinstance(each, int | float)), None)
        if number is not None:
            value = self._value(next(each for each in node.args if each is not number))
            ones, by = self.x.new_ones(value.channels), float(number)
            scale, shift = (ones, by * ones) if node.target in _SUMS else (by * ones, 0 * ones)
            return self._new("scale", name, value, norm=(scale, shift, ones.bool() & (by != 0)))
        values = [self._value(each) for each in node.args]
        if node.target in _PRODUCTS:
            raise FoldError(f"{name} multiplies two values that depend on the image, which no convolution does")
        if self.x.ndim not in (2, 4):
            raise FoldError(f"{name} adds values of {self.x.ndim} dimensions; only images and vectors are carried")
        shapes = [tuple(self.shapes[cast(fx.Node, each)]) for each in node.args]
        if shapes[0] != shapes[1] or values[0].step != values[1].step:
            sizes = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise FoldError(f"{name} adds values of different sizes ({sizes}), which no chain can")
        self.sums += 1
        return self._new("sum", name, *values)

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
            "batch norm, ReLU, sum, pooling and Linear"
        )

    def _normalized(self, norm: BatchNorm, name: str, value: Value) -> Value:
        scale, shift = scale_and_shift(norm)
        steady = (scale.abs() >= _RANGE[0]) & (scale.abs() <= _RANGE[1])
        if norm.affine:
            steady &= norm.bias.abs() <= STEEPEST * norm.weight.abs()
        return self._new("scale", name, value, norm=(scale, shift, steady))

    def _convolved(self, name: str, value: Value, weight: Tensor | None, bias: Tensor | None, window: Window) -> Value:
        made = self._new("conv", name, value, weight=weight, bias=bias, window=window)
        made.channels = value.channels if weight is None else len(weight)
        made.step = both(operator.mul, value.step, window.stride)
        return made

    def _new(self, kind: str, name: str, *sources: Value, **more: object) -> Value:
        value = Value(kind, name, sources, sources[0].channels, sources[0].step, **more)  # type: ignore[arg-type]
        self.values.append(value)
        return value

    def _label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.modules[str(node.target)]).__name__} {node.target!r}"
        return {"placeholder": "the model's input"}.get(node.op, repr(node.name))


class _Shapes(fx.Interpreter):
    """Runs a graph, and keeps the shape of each tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.shapes: dict[fx.Node, Sequence[int]] = {}

    def of(self, x: Tensor) -> dict[fx.Node, Sequence[int]]:
        """The shapes for a batch."""
        self.run(x.clone())
        return self.shapes

    def run_node(self, n: fx.Node) -> object:
        """Run one step."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def _refusal(name: str, module: nn.Module, beside: str) -> FoldError:
    """Why what passes a layer by cannot be carried past it."""
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        why = f"has {module.groups} groups"
    elif isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        why = f"pads with {module.padding_mode} values"
    elif isinstance(module, nn.Conv2d) and type(module) is nn.Conv2d:
        why = "pads one side more than the other"
    elif isinstance(module, nn.AvgPool2d):
        why = "divides by fewer pixels at the borders"
    elif "MaxPool" in type(module).__name__:
        why = "takes the largest of several pixels, through which nothing else can be carried"
    else:
        why = "is none of convolution, batch norm, ReLU, sum and average pooling"
    return FoldError(
        f"{name} {why}, and {beside} is used after it too, past it: there is no chain that computes exactly the same"
    )


def _window(conv: nn.Conv2d) -> Window | None:
    """Where a convolution looks; None where it has groups, pads with other values than zeros, or more on one side."""
    if conv.groups != 1 or conv.padding_mode != "zeros":
        return None
    kernel, stride, dilation = (cast(Pair, each) for each in (conv.kernel_size, conv.stride, conv.dilation))
    if conv.padding == "valid":
        return Window(kernel, stride, (0, 0), dilation)
    if conv.padding == "same":
        total = both(lambda k, d: d * (k - 1), kernel, dilation)
        return None if total[0] % 2 or total[1] % 2 else Window(kernel, stride, both(lambda t: t // 2, total), dilation)
    return Window(kernel, stride, cast(Pair, conv.padding), dilation)


def _subsamples(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    """Whether it takes single pixels as they are."""
    return _pair(pool.kernel_size) == ONE and not pool.ceil_mode and not _pads(pool) and _gives_one(pool)


def _gives_one(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    return not getattr(pool, "divisor_override", None) and not getattr(pool, "return_indices", False)


def _averages_alike(pool: nn.AvgPool2d) -> bool:
    """Whether it divides by the same number everywhere, so that it is a convolution."""
    return not pool.ceil_mode and not pool.divisor_override and (pool.count_include_pad or not _pads(pool))


def _pads(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    return _pair(pool.padding) != (0, 0)


def _pair(number: int | tuple[int, ...]) -> Pair:
    return (number, number) if isinstance(number, int) else cast(Pair, number)
