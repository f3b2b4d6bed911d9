"""What a layer or function beside a skip-connection is, in the terms that a chain carries values in."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diracnets.errors import FoldError
from diracnets.folding.affine import ONE, Pair, Window, both

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
DIFFERENCES = (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_")
NEGATIVES = (operator.neg, torch.neg, torch.negative, "neg", "neg_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
PADDINGS = (F.pad,)
CLAMPS: dict[Any, tuple[str, ...]] = {  # the names of their arguments after the first
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clamp_", "clip"), ("min", "max")),
    **dict.fromkeys((torch.clamp_min, "clamp_min", "clamp_min_"), ("min",)),
    **dict.fromkeys((torch.clamp_max, "clamp_max", "clamp_max_"), ("max",)),
    F.hardtanh: ("min_val", "max_val", "inplace"),
}
Bend = tuple[
    float | Tensor, float | Tensor, float | Tensor
]  # scale, shift and factor: factor * relu(scale * x + shift)


def bends_of(module: nn.Module) -> tuple[list[Bend], float] | None:
    """A piecewise linear function as a sum of ReLUs and a constant; None for any other module.

    >>> bends_of(nn.ReLU6())
    ([(1.0, -0.0, 1.0), (1.0, -6.0, -1.0)], 0.0)
    """
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return bends_between(module.min_val, module.max_val)
    if type(module) is nn.LeakyReLU:
        return [(1.0, 0.0, 1.0), (-1.0, 0.0, -module.negative_slope)], 0.0
    if type(module) is nn.PReLU:
        return [(1.0, 0.0, 1.0), (-1.0, 0.0, -module.weight)], 0.0
    return None


def bends_between(low: float | None, high: float | None) -> tuple[list[Bend], float]:
    """`clamp(x, low, high)` as a sum of ReLUs and a constant."""
    if low is None:
        return ([], 0.0) if high is None else ([(-1.0, high, -1.0)], high)
    return [(1.0, -low, 1.0), *([] if high is None else [(1.0, -high, -1.0)])], low


def clamped(target: object, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[list[Bend], float] | None:
    """The same for a call of one of `CLAMPS` with arguments after the first; None where they are no numbers."""
    given = dict(zip(CLAMPS[target], args, strict=False)) | dict(kwargs)
    low, high = given.pop("min", None), given.pop("max", None)
    if target is F.hardtanh:
        low, high = given.pop("min_val", -1.0), given.pop("max_val", 1.0)
        given.pop("inplace", None)
    if given or (low is None and high is None) or not all(isinstance(each, int | float | None) for each in (low, high)):
        return None
    return bends_between(*cast("tuple[float | None, float | None]", (low, high)))


def of_channels(constant: float | Tensor, shape: Sequence[int], like: Tensor) -> Tensor | None:
    """A number or tensor that is the same for all images and pixels, as one number for each channel; else None.

    >>> of_channels(torch.ones(3, 1, 1), (2, 3, 8, 8), torch.ones(()))
    tensor([1., 1., 1.])
    """
    if not isinstance(constant, Tensor):
        return like.new_full((shape[1],), float(constant))
    if constant.ndim > len(shape):
        return None
    whole = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if whole.numel() != whole.shape[1] or whole.shape[1] not in (1, shape[1]):
        return None
    return whole.flatten().to(like).expand(shape[1])


def picked(index: object, channels: int, axes: int) -> tuple[list[int], Pair] | None:
    """The channels that `x[index]` takes, and its step in rows and columns; None where it takes something else.

    >>> picked((slice(None), slice(None), slice(None, None, 2), slice(None, None, 2)), 2, 4)
    ([0, 1], (2, 2))
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts.count(...) == 1:
        place = parts.index(...)
        parts[place : place + 1] = [slice(None)] * (axes - len(parts) + 1)
    slices = [part for part in parts if isinstance(part, slice) and _is_plain(part)]
    if len(parts) > axes or len(slices) < len(parts):
        return None
    batch, chosen, *rest = [*slices, *[slice(None)] * (axes - len(slices))]
    if batch != slice(None) or any(part.start not in (None, 0) or part.stop is not None for part in rest):
        return None
    rows, columns = [*(part.step or 1 for part in rest), 1, 1][:2]
    return list(range(channels))[chosen], (rows, columns)


def _is_plain(part: slice) -> bool:
    return all(isinstance(each, int | None) for each in (part.start, part.stop, part.step)) and (part.step or 1) > 0


def padded_channels(args: Sequence[object], kwargs: Mapping[str, object], axes: int) -> Pair | None:
    """How many channels of zeros `F.pad` adds before and after; None where it does something else.

    >>> padded_channels(((0, 0, 0, 0, 2, 3), "constant", 0), {}, 4)
    (2, 3)
    """
    given = dict(zip(("pad", "mode", "value"), args, strict=False)) | dict(kwargs)
    sizes = given.get("pad")
    if not isinstance(sizes, list | tuple) or given.get("mode", "constant") != "constant" or given.get("value"):
        return None
    sizes = [*sizes, *[0] * (2 * axes - len(sizes))]
    before, after = (sizes[2 * (axes - 2) + each] for each in (0, 1))
    others = [size for at, size in enumerate(sizes) if at // 2 != axes - 2]
    right = all(isinstance(size, int) for size in sizes) and not any(others) and before >= 0 and after >= 0
    return (before, after) if right else None


def selection(rows: Sequence[int | None], channels: int, like: Tensor) -> Tensor:
    """The weight of a 1x1 convolution that gives some of its input's channels, and zeros for None."""
    weight = like.new_zeros(len(rows), channels, 1, 1)
    for row, channel in enumerate(rows):
        if channel is not None:
            weight[row, channel] = 1
    return weight


def dense(conv: nn.Conv2d) -> Tensor:
    """The weight of the convolution without groups that computes the same, [out, in, kernel height, kernel width]."""
    if conv.groups == 1:
        return conv.weight
    out, inner = len(conv.weight) // conv.groups, conv.weight.shape[1]
    weight = conv.weight.new_zeros(len(conv.weight), conv.in_channels, *conv.kernel_size)
    for group in range(conv.groups):
        rows = slice(group * out, (group + 1) * out)
        weight[rows, group * inner : (group + 1) * inner] = conv.weight[rows]
    return weight


def window_of(conv: nn.Conv2d) -> Window | None:
    """Where a convolution looks; None where it pads with other values than zeros, or more on one side."""
    if conv.padding_mode != "zeros":
        return None
    kernel, stride, dilation = (cast(Pair, each) for each in (conv.kernel_size, conv.stride, conv.dilation))
    if conv.padding == "valid":
        return Window(kernel, stride, (0, 0), dilation)
    if conv.padding == "same":
        total = both(lambda k, d: d * (k - 1), kernel, dilation)
        return None if total[0] % 2 or total[1] % 2 else Window(kernel, stride, both(lambda t: t // 2, total), dilation)
    return Window(kernel, stride, cast(Pair, conv.padding), dilation)


def subsamples(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    """Whether a pooling layer takes single pixels as they are."""
    return pair(pool.kernel_size) == ONE and not pool.ceil_mode and not _pads(pool) and _gives_one(pool)


def averages_alike(pool: nn.AvgPool2d) -> bool:
    """Whether an average pooling divides by the same number everywhere, so that it is a convolution."""
    return not pool.ceil_mode and not pool.divisor_override and (pool.count_include_pad or not _pads(pool))


def average(pool: nn.AvgPool2d, channels: int, like: Tensor) -> tuple[Tensor, Window]:
    """The weight of the convolution that an average pooling is, and where it looks."""
    kernel = pair(pool.kernel_size)
    weight = torch.eye(channels).to(like)[..., None, None].repeat(1, 1, *kernel) / math.prod(kernel)
    return weight, Window(kernel, pair(pool.stride), pair(pool.padding))


def refusal(name: str, module: nn.Module, beside: str, dimensions: int) -> FoldError:
    """Why what passes a layer by cannot be carried past it, and what can be done."""
    then = ""
    if dimensions not in (2, 4):
        why = f"gets a tensor of {dimensions} dimensions, where only images [N, C, H, W] and vectors [N, C] are carried"
        then = "; is the example input a batch?" if dimensions == 3 else ""
    elif type(module) is nn.Conv2d and module.padding_mode != "zeros":
        why = f"pads with {module.padding_mode} values"
    elif type(module) is nn.Conv2d:
        why = "pads one side more than the other"
    elif isinstance(module, nn.AvgPool2d):
        why, kernel = "divides by fewer pixels at the borders", module.kernel_size
        if module.ceil_mode and not _pads(module):
            then = f"; where its maps divide by {kernel}, AvgPool2d({kernel}, {module.stride}) is the same, and carried"
    elif "MaxPool" in type(module).__name__:
        why = "takes the largest of several pixels, which is no sum of convolutions and ReLUs of one pixel"
    else:
        why = "is none of convolution, batch norm, ReLU and its like, sum, concatenation and average pooling"
    return FoldError(f"{name} {why}, and {beside} is used after it too, past it: no chain is known for that{then}")


def _gives_one(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    return not getattr(pool, "divisor_override", None) and not getattr(pool, "return_indices", False)


def _pads(pool: nn.AvgPool2d | nn.MaxPool2d) -> bool:
    return pair(pool.padding) != (0, 0)


def pair(number: int | tuple[int, ...]) -> Pair:
    """One number for each axis."""
    return (number, number) if isinstance(number, int) else cast(Pair, number)
