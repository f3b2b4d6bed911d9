"""What `fold` makes of a network, layer by layer, without any numbers: the same rules on the meta device."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diracnets.errors import FoldError, first_line
from diracnets.folding.chain import flatten
from diracnets.folding.flow import first_floating, follow
from diracnets.folding.rules import make_plan
from diracnets.folding.surgery import rebuilt, tensors_of
from diracnets.nn.diracify import undiracify


@torch.no_grad()
def folded_structure(model: nn.Module, input_size: Sequence[int] | None = None) -> nn.Module:
    """The layers that `fold` makes of a model, on the meta device: types, arguments and parameters, but no values.

    The rules are those of `fold`. Some depend on values, which a model on the meta device does not have. Here they are
    assumed to be as in a fresh model: no scale of a batch norm is negative, so max-pooling hinders no fold, and no
    shift is zero. If scales before a max-pooling have become negative, `fold` leaves these batch norms. Only `fold` can
    say whether a fold is exact.

    Args:
        model: in training or evaluation mode, on any device; it is not changed.
        input_size: (channels, height, width) of an image; the model's attribute `input_size` by default.

    Returns:
        In evaluation mode, what `fold` would return: a flat `nn.Sequential` where the data flow is a straight line,
        else a model of the same class.

    Raises:
        FoldError: there is no input size, or the model does not accept such images or cannot run without values.

    >>> from diracnets.nn.dirac import DiracConv2d
    >>> model = nn.Sequential(DiracConv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> folded_structure(model, (3, 32, 32))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    """
    size = getattr(model, "input_size", None) if input_size is None else input_size
    if not size:
        raise FoldError(f"the input size of {type(model).__name__} is not known: give input_size")
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors_of(model).values()}
    return structure_of_plain(undiracify(copy.deepcopy(model, memo), inplace=True).eval(), size)


@torch.no_grad()
def structure_of_plain(plain: nn.Module, input_size: Sequence[int]) -> nn.Module:
    """`folded_structure` of a model on the meta device, in evaluation mode and without Dirac convolutions.

    Raises:
        FoldError: as `folded_structure`.
    """
    flow = follow(plain)
    with ShapesOnly():
        plan = make_plan(plain, flow, _ranks(plain, input_size))
    folded = rebuilt(plain, plan.layers)
    return flatten(flow, folded) or folded


class ShapesOnly(TorchFunctionMode):
    """A context in which simple functions on the meta device take a hundredth of the time. Deep networks need that.

    The first of them does not import torch's symbolic shapes either, which takes a second.

    >>> with ShapesOnly():
    ...     nn.BatchNorm2d(3, device="meta").eval()(torch.empty(1, 3, 8, 8, device="meta")).shape
    torch.Size([1, 3, 8, 8])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        rule = _SHAPES.get(func)
        if rule is not None and all(not isinstance(arg, Tensor) or arg.is_meta for arg in args):
            shape = rule(*args, **(kwargs or {}))
            if shape is not None:
                return args[0].new_empty(shape)
        return func(*args, **(kwargs or {}))


def _like_input(x: Tensor, *_: Any, **__: Any) -> Sequence[int]:  # noqa: ANN401
    return x.shape


def _broadcast(x: Tensor, y: object) -> Sequence[int] | None:
    shapes = [x.shape, y.shape if isinstance(y, Tensor) else ()]
    axes = [{*sizes} - {1} for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)]
    return [next(iter(sizes), 1) for sizes in reversed(axes)] if all(len(sizes) < 2 for sizes in axes) else None


def _pooled(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Sequence[int] | None:
    if ceil_mode or return_indices or x.ndim != 4:
        return None
    out = _windows(x.shape[2:], kernel_size, stride or kernel_size, padding, dilation)
    return [*x.shape[:2], *out] if min(out) > 0 else None


def _windows(sizes: Sequence[int], *window: int | Sequence[int]) -> list[int]:
    """How many windows of a kernel, with its stride, padding and dilation, fit along each axis."""
    spread = [[each] * len(sizes) if isinstance(each, int) else each for each in window]
    return [
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, gap in zip(sizes, *spread, strict=True)
    ]


def _averaged(x: Tensor, size: object) -> Sequence[int] | None:
    return [*x.shape[:-2], 1, 1] if size == 1 and x.ndim in (3, 4) else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Sequence[int] | None:
    return [*x.shape[:-1], len(weight)] if weight.ndim == 2 and x.shape[-1] == weight.shape[1] else None


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Sequence[int] | None:
    if isinstance(padding, str) or x.ndim != weight.ndim or x.shape[1] != groups * weight.shape[1]:
        return None
    out = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return [len(x), len(weight), *out] if min(out) > 0 else None


_SHAPES: dict[Callable[..., Any], Callable[..., Sequence[int] | None]] = {  # what they give; None: torch is to say
    **dict.fromkeys((F.batch_norm, F.relu, Tensor.rsqrt, Tensor.neg, Tensor.clone), _like_input),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolved),
    **dict.fromkeys((Tensor.mul, Tensor.add), _broadcast),
    F.linear: _linear,
    F.max_pool2d: _pooled,
    F.adaptive_avg_pool2d: _averaged,
}


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _ranks(plain: nn.Module, input_size: Sequence[int]) -> dict[str, set[int]]:
    """The numbers of dimensions of the outputs of each module, by its name."""
    ranks: dict[str, set[int]] = defaultdict(set)

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: ranks[name].add(output.ndim) if isinstance(output, Tensor) else None

    leaves = [(name, module) for name, module in plain.named_modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(record(name)) for name, module in leaves]
    like = first_floating(plain)
    dtype = torch.get_default_dtype() if like is None else like.dtype
    try:
        plain(torch.empty(2, *input_size, dtype=dtype, device="meta"))
    except Exception as error:  # the model's code may raise anything
        raise FoldError(
            f"{type(plain).__name__} cannot be run without values on images of {'x'.join(map(str, input_size))} "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return ranks
