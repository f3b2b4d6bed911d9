"""Where a scale and a shift of channels can pass a layer exactly, and whether that layer is what it seems."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from torch import Tensor, fx, nn

from diracnets.folding.flow import has_forward_hooks
from diracnets.folding.steps import is_nothing
from diracnets.nn.dirac import CONVOLUTIONS, TRANSPOSED

RANKS: dict[type[nn.Module], int] = {  # dimensions of outputs whose channels are where a batch norm expects them
    nn.Linear: 2,
    **{kind: 3 + axes for kinds in (CONVOLUTIONS, TRANSPOSED) for axes, kind in enumerate(kinds)},
}
POOLS: dict[type[nn.Module], int] = {  # dimensions of their inputs, with those of batch and channels
    getattr(nn, f"{kind}Pool{axes}d"): axes + 2
    for kind in ("Max", "AdaptiveMax", "Avg", "AdaptiveAvg")
    for axes in (1, 2, 3)
}
_IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "setitem")


def why_not_exchange(step: nn.Module, scale: Tensor, ranks: Collection[int]) -> str | None:
    """Why scaling and shifting channels before a step is not the same as after it; None where it is.

    A maximum can be exchanged with scales that are not negative, an average with all where its weights sum to one.

    Args:
        step: a pooling layer, or one that does nothing.
        scale: [channels]; on the meta device it counts as positive.
        ranks: the numbers of dimensions that inputs of the step have.

    >>> why_not_exchange(nn.MaxPool2d(2).eval(), Tensor([1.0, -1.0]), {4})
    'and 1 of its 2 scales are negative'
    """
    if is_nothing(step):
        return None
    if has_forward_hooks(step):
        return "and has a forward hook"
    if set(ranks) != {POOLS[type(step)]}:
        return "and may pool over channels"
    if "Max" in type(step).__name__:
        if getattr(step, "return_indices", False):
            return "and returns indices"
        negative = 0 if scale.is_meta else int((scale < 0).sum())  # see `folded_structure`
        return f"and {negative} of its {len(scale)} scales are negative" if negative else None
    padding = getattr(step, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple) else padding
    if padded and getattr(step, "count_include_pad", False):
        return "and averages its padding too"
    return "and divides by another number" if getattr(step, "divisor_override", None) else None


def takes_shifts(layer: nn.Module) -> bool:
    """Whether a shift of all of a layer's inputs is the same as one of its outputs, which zero padding prevents.

    >>> takes_shifts(nn.Conv2d(1, 1, 3)), takes_shifts(nn.Conv2d(1, 1, 3, padding="same"))
    (True, False)
    """
    if isinstance(layer, CONVOLUTIONS):
        return layer.padding_mode != "zeros" or not _pads(layer)
    return not isinstance(layer, TRANSPOSED)


def _pads(layer: nn.Module) -> bool:
    padding = cast("str | tuple[int, ...]", layer.padding)
    if padding == "same":
        sizes = zip(cast("tuple[int, ...]", layer.kernel_size), cast("tuple[int, ...]", layer.dilation), strict=True)
        return any((size - 1) * dilation for size, dilation in sizes)
    return padding != "valid" and any(padding)


def changes_input(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a step may work in place."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return bool(node.kwargs.get("inplace")) or name.endswith("_") or name in _IN_PLACE_OPERATORS


def strangeness(module: nn.Module, known: Collection[type[nn.Module]]) -> str | None:
    """Why a module may not compute what its base class does; None where it does."""
    if type(module) not in known:
        return f"its class {type(module).__name__} is none that fold knows"
    return "its forward was replaced on the instance" if "forward" in vars(module) else None


def sharing_parameters(model: nn.Module) -> dict[str, str]:
    """Modules that have a parameter in common with another one, and that one, by name."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name: other for names in owners.values() for name in names for other in names if other != name}
