"""A model whose data flow is one straight line, written as one flat chain of ordinary modules."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping

import torch
from torch import fx, nn

from diracnets.folding.flow import Flow, has_forward_hooks
from diracnets.folding.steps import as_module, is_nothing, source_of

CARRIED = (
    "input_size",
    "min_image_size",
    "num_classes",
    "config",
    "card",
    "facts",
)  # attributes that a chain keeps from its model


def flatten(flow: Flow, model: nn.Module) -> nn.Sequential | None:
    """The model as a flat chain of torch's own modules, or None if its graph is not a straight line of them.

    A model whose code has other effects, such as running in a context, has no chain either. The chain holds the model's
    own modules, without those that do nothing.

    Args:
        flow: the data flow of `model`, or of a model with other modules under the same names.
        model: in evaluation mode.
    """
    if flow.forward is None or flow.effects or has_forward_hooks(model):
        return None
    steps: list[nn.Module] = []
    modules = dict(model.named_modules())
    nodes = list(flow.forward.nodes)
    line: set[fx.Node] = {nodes[-1]}
    node = nodes[-1].args[0]
    while isinstance(node, fx.Node) and node.op != "placeholder":
        found = steps_of(node, modules, flow)
        if found is None:
            return None
        source, made, aside = found
        steps[:0] = made
        line |= {node, *aside}
        node = source
    if not isinstance(node, fx.Node) or {*line, node} != set(nodes):
        return None
    layers: list[nn.Module] = []
    seen: set[nn.Module] = set()
    for step in steps:
        if not is_nothing(step):
            layers.append(copy.deepcopy(step) if step in seen and not step.state_dict() else step)
            seen.add(step)
    chain = nn.Sequential(*layers)
    for name in CARRIED:
        if hasattr(model, name):
            chain.__dict__[name] = getattr(model, name)
    return chain.eval()


def steps_of(
    node: fx.Node, modules: Mapping[str, nn.Module], flow: Flow
) -> tuple[fx.Node, list[nn.Module], list[fx.Node]] | None:
    """The node that a node reads from, the modules that compute the same, and other nodes that only serve it."""
    if node.target in ("view", "reshape") and node.op == "call_method":
        return _flattening(node)
    source = source_of(node)
    if source is None:
        return None
    if node.target == "mean" or node.target is torch.mean:
        pooled = _global_average(node, source, modules)
        return None if pooled is None else (source, pooled, [])
    module = as_module(node, modules)
    if module is None or str(node.target) in flow.opaque or not type(module).__module__.startswith("torch.nn.modules."):
        return None
    if node.op == "call_module" and len(node.args) + len(node.kwargs) != 1:
        return None
    return source, [module], []


def _flattening(node: fx.Node) -> tuple[fx.Node, list[nn.Module], list[fx.Node]] | None:
    """`x.view(x.size(0), -1)`, in the forms in which it is written."""
    source, *shape = node.args
    shape = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    if not isinstance(source, fx.Node) or node.kwargs or len(shape) != 2 or shape[1] != -1:
        return None
    size = shape[0]
    if not isinstance(size, fx.Node):
        return None
    aside = [size]
    if size.op == "call_function" and size.target is operator.getitem and size.args[1] == 0:  # x.shape[0], x.size()[0]
        whole = size.args[0]
        if not isinstance(whole, fx.Node):
            return None
        aside.append(whole)
        of, *rest = whole.args
        right = rest == (["shape"] if whole.target is getattr else [])
        right = right and (whole.target is getattr or (whole.op == "call_method" and whole.target == "size"))
    else:
        of = size.args[0] if size.args else None
        right = size.op == "call_method" and size.target == "size" and size.args == (of, 0)
    right = right and (of is source or (isinstance(of, fx.Node) and of.op == "placeholder"))
    return (source, [nn.Flatten()], aside) if right else None


def _global_average(node: fx.Node, source: fx.Node, modules: Mapping[str, nn.Module]) -> list[nn.Module] | None:
    """`x.mean((2, 3))` over all dimensions after the channels; the layer before it shows how many there are."""
    before: fx.Node | None = source
    axes = 0
    while before is not None and not axes:
        kind = type(as_module(before, modules)).__name__
        axes = int(kind[-2]) if kind.startswith(("Conv", "MaxPool", "AvgPool")) else 0
        passes = kind in ("Identity", "ReLU", "ReLU6", "LeakyReLU", "SiLU", "GELU") or kind.startswith("Dropout")
        before = source_of(before) if passes else None
    rest = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
    rest.pop("input", None)
    dims = rest.pop("dim", ())
    dims = [dims] if isinstance(dims, int) else dims
    keep = rest.pop("keepdim", False)
    # negative dimensions would mean others on an image without batch dimension
    if not axes or rest or not isinstance(dims, list | tuple) or sorted(dims) != list(range(2, axes + 2)):
        return None
    pool: nn.Module = getattr(nn, f"AdaptiveAvgPool{axes}d")(1).eval()
    return [pool] if keep is True else [pool, nn.Flatten().eval()]
