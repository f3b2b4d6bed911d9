"""The Dirac parameterization of a convolution's filters, and the layers that have it.

Zagoruyko & Komodakis, "DiracNets: Training Very Deep Neural Networks Without Skip-Connections", arXiv 1706.00388 (v2):

    effective weight = diag(alpha) I + diag(beta) W / ||W||

with I the filters that pass their input through (`torch.nn.init.dirac_`), ||W|| the norm of each whole filter, and one
alpha and one beta per output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diracnets.errors import UsageError

Init = Literal["normal", "kaiming"]
Size = int | tuple[int, ...]
EPS = 1e-12


def identity_diagonal(weight: Tensor, groups: int = 1) -> Tensor:
    """The elements of `weight` that a Dirac delta would set to one, as a view.

    Args:
        weight: filters [out, in / groups, *kernel].
        groups: the groups of the convolution; each has an identity of its own.

    Returns:
        A view [groups, min(out / groups, in / groups)]: for each group, element [o, o, centre] of its filters.

    >>> identity_diagonal(torch.nn.init.dirac_(torch.empty(4, 2, 3, 3), groups=2), groups=2)
    tensor([[1., 1.],
            [1., 1.]])
    """
    by_group = weight.view(groups, -1, *weight.shape[1:])  # [groups, out / groups, in / groups, *kernel]
    for size in weight.shape[:1:-1]:
        by_group = by_group.select(-1, size // 2)
    return torch.diagonal(by_group, dim1=1, dim2=2)


def dirac_weight(weight: Tensor, alpha: Tensor, beta: Tensor, groups: int = 1) -> Tensor:
    """The filters that a Dirac convolution convolves with: `diag(alpha) I + diag(beta) W / ||W||`.

    The norm is that of each whole filter. A filter whose norm is under 1e-12 counts as zero, in the result and in its
    gradients. No dense identity is made. float16 and bfloat16 weights are computed in float32 and cast back.
    Differentiable any number of times, and usable under `torch.compile`, `torch.export` and `torch.func`.

    Args:
        weight: W, [out, in / groups, *kernel] with any number of kernel axes, floating point.
        alpha: the scale of the identity, [out].
        beta: the scale of the normalized filters, [out].
        groups: the groups of the convolution.

    Returns:
        The effective weight, of `weight`'s shape, dtype and memory format.

    Source: Zagoruyko & Komodakis 2017, section 3.

    >>> dirac_weight(torch.tensor([[[0.0, 3.0, 4.0]]]), torch.tensor([1.0]), torch.tensor([0.1]))
    tensor([[[0.0000, 1.0600, 0.0800]]])
    """
    return dirac_weights([weight], [alpha], [beta], groups)[0]


def dirac_weights(
    weights: Sequence[Tensor], alphas: Sequence[Tensor], betas: Sequence[Tensor], groups: int = 1
) -> tuple[Tensor, ...]:
    """`dirac_weight` of several layers at once, whose weights agree in shape, dtype, device and memory format.

    A stack of n layers is one layer with n times the groups, so that a deep network of equal layers takes a handful of
    operations instead of a handful for each. Arguments and results are lists of `dirac_weight`'s.

    >>> weights, ones = torch.randn(2, 4, 4, 3, 3), torch.ones(2, 4)
    >>> [w.shape for w in dirac_weights(list(weights), list(ones), list(ones))]
    [torch.Size([4, 4, 3, 3]), torch.Size([4, 4, 3, 3])]
    """
    if (  # what traces or transforms the operations itself wants to see them
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()  # has no public name; torch.autograd.Function asks the same
    ):
        return _split(_formula(_stack(weights), _stack(alphas), _stack(betas), groups * len(weights)), len(weights))
    return _DiracWeights.apply(groups * len(weights), *weights, *alphas, *betas)  # type: ignore[no-untyped-call,no-any-return]


class _DiracWeights(torch.autograd.Function):
    """`_formula` of a stack, with a backward of few operations that keeps nothing but the layers' own parameters."""

    @staticmethod
    def forward(ctx: Any, groups: int, *parameters: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.groups = groups
        ctx.save_for_backward(*parameters)
        return _split(_formula(*_stacks(parameters), groups), len(parameters) // 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        stacks = _stacks(ctx.saved_tensors)
        dtype = stacks[0].dtype
        weight, _, beta, grad = (_at_least_float32(tensor) for tensor in (*stacks, _stack(grads)))
        filter_axes = tuple(range(1, weight.ndim))
        norm = _filter_norm(weight)
        scale = _per_filter(beta, weight) / norm
        along = (grad * weight).sum(filter_axes, keepdim=True) / norm  # the gradient along W / ||W||
        # moving W along itself changes nothing, so that part of the gradient goes
        grad_weight = (grad * scale).addcmul_(weight, along * scale / norm, value=-1)
        identity = identity_diagonal(grad, ctx.groups)
        outputs = len(beta) // ctx.groups
        grad_alpha = F.pad(identity, (0, outputs - identity.shape[1])).reshape(-1)
        layers = len(grads)
        return None, *(
            part for whole in (grad_weight, grad_alpha, along.reshape(-1)) for part in _split(whole.to(dtype), layers)
        )


def draw_filters(weight: Tensor, init: Init) -> None:
    """Fill filters in place: "normal" from N(0, 1) as in the paper, "kaiming" as in the authors' last code.

    Raises:
        UsageError: an unknown `init`.

    >>> draw_filters(torch.empty(8, 8, 3, 3), "normal")
    """
    if init not in get_args(Init):
        raise UsageError(f"init is {init!r}; choose one of {', '.join(get_args(Init))}")
    nn.init.normal_(weight) if init == "normal" else nn.init.kaiming_normal_(weight)


def _formula(weight: Tensor, alpha: Tensor, beta: Tensor, groups: int) -> Tensor:
    """The definition, in differentiable operations."""
    dtype = weight.dtype
    weight, alpha, beta = (_at_least_float32(tensor) for tensor in (weight, alpha, beta))
    effective = weight * (_per_filter(beta, weight) / _filter_norm(weight))
    identity = identity_diagonal(effective, groups)
    identity += alpha.view(groups, -1)[:, : identity.shape[1]]
    return effective.to(dtype)


def _filter_norm(weight: Tensor) -> Tensor:
    """[out, 1, ...]: the norm of each filter; infinite for one of zeros, which makes its gradients zero."""
    norm: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return norm.masked_fill(norm < EPS, torch.inf)


def _per_filter(scale: Tensor, weight: Tensor) -> Tensor:
    """[out] -> [out, 1, ...], to multiply filters with."""
    return scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _stacks(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(weights..., alphas..., betas...) -> weight, alpha, beta, each the stack of all layers."""
    layers = len(parameters) // 3
    return _stack(parameters[:layers]), _stack(parameters[layers : 2 * layers]), _stack(parameters[2 * layers :])


def _split(stack: Tensor, layers: int) -> tuple[Tensor, ...]:
    return (stack,) if layers == 1 else stack.chunk(layers)


class _DiracConv(nn.modules.conv._ConvNd):
    """What the three Dirac convolutions share; the class after it in the bases does the convolving."""

    alpha: nn.Parameter
    beta: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        init: Init = "normal",
    ) -> None:
        arguments: tuple[Any, ...] = (
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        super().__init__(*arguments)  # of nn.Conv1d, nn.Conv2d or nn.Conv3d, which follow in the bases
        self.alpha = nn.Parameter(self.weight.new_empty(out_channels))
        self.beta = nn.Parameter(self.weight.new_empty(out_channels))
        self.start = (alpha, beta, init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw `weight` (and `bias`) anew and set `alpha` and `beta` to their start."""
        super().reset_parameters()
        if "alpha" not in self._parameters:  # called by torch's constructor, before ours has come to the scales
            return
        alpha, beta, init = self.start
        nn.init.constant_(self.alpha, alpha)
        nn.init.constant_(self.beta, beta)
        draw_filters(self.weight, init)

    def effective_weight(self) -> Tensor:
        """The filters that this layer convolves with, [out, in / groups, *kernel]: see `dirac_weight`."""
        return dirac_weight(self.weight, self.alpha, self.beta, self.groups)

    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:
        """Convolve [batch, in, *size] with the effective weight.

        Args:
            input: the images, as for `torch.nn.Conv1d`, `Conv2d` and `Conv3d`.
            weight: this layer's effective weight where it was computed already, see `effective_weights`.
        """
        return self._conv_forward(input, self.effective_weight() if weight is None else weight, self.bias)


class DiracConv1d(_DiracConv, nn.Conv1d):
    """`torch.nn.Conv1d` with the Dirac parameterization; see `DiracConv2d`.

    >>> DiracConv1d(4, 8, 3, padding=1)(torch.randn(2, 4, 10)).shape
    torch.Size([2, 8, 10])
    """


class DiracConv2d(_DiracConv, nn.Conv2d):
    """`torch.nn.Conv2d` that convolves with `diag(alpha) I + diag(beta) W / ||W||`.

    All arguments are those of `torch.nn.Conv2d`, and more:

    Args:
        alpha: what the scales of the identity start at.
        beta: what the scales of the normalized filters start at.
        init: how `weight` is drawn: "normal", N(0, 1) as in the paper, or "kaiming", Kaiming normal as in the authors'
            last code. As W is normalized this leaves the function alone and sets how far a step turns the filters.

    Attributes:
        weight: W, [out, in / groups, kernel height, kernel width].
        alpha, beta: [out].

    Raises:
        UsageError: an unknown `init`.

    >>> layer = DiracConv2d(16, 32, 3, stride=2, padding=1, bias=False)
    >>> layer(torch.randn(1, 16, 8, 8)).shape, layer.effective_weight().shape
    (torch.Size([1, 32, 4, 4]), torch.Size([32, 16, 3, 3]))
    """


class DiracConv3d(_DiracConv, nn.Conv3d):
    """`torch.nn.Conv3d` with the Dirac parameterization; see `DiracConv2d`.

    >>> DiracConv3d(2, 2, 3, padding=1)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """


DiracConv = DiracConv1d | DiracConv2d | DiracConv3d


def effective_weights(layers: Sequence[DiracConv]) -> list[Tensor]:
    """The effective weights of a network's layers, computed together: what makes a training step cost as a plain one.

    Args:
        layers: Dirac convolutions of any shapes; equal ones are computed as one.

    Returns:
        One tensor a layer, in order, to be given to the layer's `forward`.

    >>> layers = [DiracConv2d(4, 4, 3), DiracConv2d(4, 8, 3), DiracConv2d(4, 4, 3)]
    >>> [list(weight.shape) for weight in effective_weights(layers)]
    [[4, 4, 3, 3], [8, 4, 3, 3], [4, 4, 3, 3]]
    """
    alike: dict[object, list[int]] = {}
    for index, layer in enumerate(layers):
        weight = layer.weight
        alike.setdefault((weight.shape, weight.stride(), weight.dtype, weight.device, layer.groups), []).append(index)
    result: dict[int, Tensor] = {}
    for indices in alike.values():
        same = [layers[index] for index in indices]
        computed = dirac_weights(
            [layer.weight for layer in same],
            [layer.alpha for layer in same],
            [layer.beta for layer in same],
            same[0].groups,
        )
        result.update(zip(indices, computed, strict=True))
    return [result[index] for index in range(len(layers))]
