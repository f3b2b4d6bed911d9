"""What `fold` makes of a network, layer by layer, without any numbers: the same rules on the meta device."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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

_LIKE_INPUT = {F.batch_norm, F.relu, Tensor.rsqrt, Tensor.neg, Tensor.clone}
_BROADCASTING = {Tensor.mul, Tensor.add}


@torch.no_grad()
def folded_structure(model: nn.Module, input_size: Sequence[int] | None = None) -> nn.Module:
    """The layers that `fold` makes of a model, on the meta device: types, arguments and parameters, but no values.

    The rules are those of `fold`. What they ask of values, which a model on the meta device does not have, is taken to
    be as in a fresh model: no scale of a batch norm is negative, so that max-pooling lies in the way of none, and its
    shift is not zero. Of a model whose scales have become negative before a max-pooling, `fold` leaves these batch
    norms. Whether a fold is exact, only `fold` can say.

    Args:
        model: in training or evaluation mode, on any device; it is not changed.
        input_size: (channels, height, width) of an image; the model's attribute `input_size` by default.

    Returns:
        In evaluation mode, what `fold` would return: a flat `nn.Sequential` where the data flow is a straight line,
        else a model of the same class.

    Raises:
        FoldError: no input size, or a model that takes no such images or cannot run without values.

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
        raise FoldError(f"nothing tells what {type(model).__name__} takes as input: give input_size")
    memo: dict[int, Any] = {id(tensor): _without_values(tensor) for tensor in tensors_of(model).values()}
    plain = undiracify(copy.deepcopy(model, memo), inplace=True).eval()
    flow = follow(plain)
    with ShapesOnly():
        plan = make_plan(plain, flow, _ranks(plain, size))
    folded = rebuilt(plain, plan.layers)
    return flatten(flow, folded) or folded


class ShapesOnly(TorchFunctionMode):
    """Within it simple functions on the meta device take a hundredth of the time, which deep networks need.

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
        if func in _LIKE_INPUT and args[0].is_meta:
            return args[0].new_empty(args[0].shape)
        if func in _BROADCASTING and all(not isinstance(arg, Tensor) or arg.is_meta for arg in args):
            shapes = [arg.shape for arg in args if isinstance(arg, Tensor)]
            return args[0].new_empty(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _ranks(plain: nn.Module, input_size: Sequence[int]) -> dict[str, set[int]]:
    """The numbers of dimensions that the outputs of each module have, by its name."""
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
