"""The Dirac parameterization of a convolution's filters, and the layers that have it.

Zagoruyko & Komodakis, "DiracNets: Training Very Deep Neural Networks Without Skip-Connections", arXiv 1706.00388 (v2):

    effective weight = diag(alpha) I + diag(beta) W / ||W||

with I the filters that pass their input through (`torch.nn.init.dirac_`), ||W|| the norm of each whole filter, and one
alpha and one beta per output channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from diracnets.errors import UsageError
from diracnets.nn import small_maps
from diracnets.nn.kernels import is_strided_pointwise
from diracnets.nn.traced import is_traced

Init = Literal["normal", "kaiming"] | float
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
    return _dirac_weights([weight], [alpha], [beta], [groups])[0]


def draw_filters(weight: Tensor, init: Init) -> None:
    """Fill filters in place with random numbers.

    Args:
        weight: [out, in / groups, *kernel].
        init: "normal" for N(0, 1) as in the paper, "kaiming" for Kaiming normal as in the authors' last code, or the
            standard deviation s of N(0, s^2).

    Raises:
        UsageError: an unknown `init`, or a standard deviation that is not a positive number.

    >>> draw_filters(torch.empty(8, 8, 3, 3), "normal")
    """
    if init == "kaiming":
        nn.init.kaiming_normal_(weight)
    elif init == "normal":
        nn.init.normal_(weight)
    elif isinstance(init, int | float) and 0 < init < math.inf and not isinstance(init, bool):
        nn.init.normal_(weight, std=init)
    else:
        raise UsageError(f"init is {init!r}; choose normal, kaiming, or a standard deviation above 0")


def _dirac_weights(
    weights: Sequence[Tensor], alphas: Sequence[Tensor], betas: Sequence[Tensor], groups: Sequence[int]
) -> Sequence[Tensor]:
    """The effective weights of layers of one dtype and device."""
    if is_traced():
        return [_formula(*layer) for layer in zip(weights, alphas, betas, groups, strict=True)]
    return _DiracWeights.apply(groups, *weights, *alphas, *betas)  # type: ignore[no-untyped-call,no-any-return]


def _formula(weight: Tensor, alpha: Tensor, beta: Tensor, groups: int) -> Tensor:
    """The definition, in differentiable operations."""
    wide, alpha, beta = _at_least_float32([weight, alpha, beta])
    # the zeros make it as large as alpha's batch, which is about to be added in place, under `vmap` over alpha alone
    zeros = _per_filter(torch.zeros_like(alpha), wide)
    effective = torch.addcmul(zeros, wide, _per_filter(beta / _norms([wide]), wide))
    diagonal = identity_diagonal(effective, groups)
    diagonal += alpha.view(groups, -1)[:, : diagonal.shape[1]]
    return effective.to(weight.dtype)


class _DiracWeights(torch.autograd.Function):
    """`_formula` of many layers, forward and backward, in few operations and with few temporary tensors.

    A layer costs four operations on its filters and a few on its diagonal; what there is one of for each filter is
    computed for all layers at once. Nothing as large as the weights is kept for the backward pass but they themselves.

    Measured and dropped: layers of one shape stacked into one tensor save operations, but lose more to copies that
    leave the cache; torch's fused weight norm is a little faster for one layer, but makes NaN of a filter of zeros.
    """

    @staticmethod
    def forward(ctx: Any, groups: Sequence[int], *parameters: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        weights, alphas, betas = _thirds(_at_least_float32(parameters))
        ctx.groups, ctx.norms = groups, _norms(weights)
        ctx.save_for_backward(*parameters)
        effective = torch._foreach_mul(weights, _by_layer(torch.cat(betas) / ctx.norms, weights))
        for layer, alpha, count in zip(effective, alphas, groups, strict=True):
            diagonal = identity_diagonal(layer, count)
            diagonal += alpha.view(count, -1)[:, : diagonal.shape[1]]
        return tuple(layer.to(parameters[0].dtype) for layer in effective)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        parameters = ctx.saved_tensors  # once: checkpointed activations are given out only once
        if torch.is_grad_enabled():  # these gradients are to be differentiated too
            return None, *_differentiable_gradients(parameters, ctx.groups, grads, ctx.needs_input_grad[1:])
        weights, _, betas = _thirds(_at_least_float32(parameters))
        wide_grads = _at_least_float32(grads)
        dots = [(grad * weight).sum(_filter_axes(weight)) for grad, weight in zip(wide_grads, weights, strict=True)]
        grad_beta = torch.cat(dots) / ctx.norms  # that of the length of W / ||W||, too
        scale = torch.cat(betas) / ctx.norms
        grad_weights = torch._foreach_mul(wide_grads, _by_layer(scale, weights))
        # moving W along itself changes nothing, so that part of the gradient goes
        torch._foreach_addcmul_(grad_weights, weights, _by_layer(grad_beta * scale / ctx.norms, weights), value=-1)
        grad_alphas = _split(torch.zeros_like(scale), weights)
        for grad_alpha, grad, count in zip(grad_alphas, wide_grads, ctx.groups, strict=True):
            diagonal = identity_diagonal(grad, count)
            grad_alpha.view(count, -1)[:, : diagonal.shape[1]] = diagonal
        dtype = parameters[0].dtype
        return None, *(grad.to(dtype) for grad in (*grad_weights, *grad_alphas, *_split(grad_beta, weights)))


def _differentiable_gradients(
    parameters: Sequence[Tensor], groups: Sequence[int], grads: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of `_formula` for all layers, by autograd."""
    effective = [_formula(*layer) for layer in zip(*_thirds(parameters), groups, strict=True)]
    wanted = [parameter for parameter, need in zip(parameters, needed, strict=True) if need]
    found = iter(torch.autograd.grad(effective, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _norms(weights: Sequence[Tensor]) -> Tensor:
    """The norms of all filters of all layers; infinite for filters of zeros, which makes their gradients zero."""
    norms = torch.cat([torch.linalg.vector_norm(weight, dim=_filter_axes(weight)) for weight in weights])
    return norms.masked_fill(norms < EPS, torch.inf)


def _by_layer(scales: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """One number for each filter of all layers -> for each layer, [out, 1, ...]."""
    return [_per_filter(part, weight) for part, weight in zip(_split(scales, weights), weights, strict=True)]


def _split(scales: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One number for each filter of all layers -> for each layer, [out]."""
    return torch.split(scales, [len(weight) for weight in weights])


def _per_filter(scale: Tensor, weight: Tensor) -> Tensor:
    """[out] -> [out, 1, ...], to multiply filters with."""
    return scale.view(-1, *(1,) * (weight.ndim - 1))


def _filter_axes(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.ndim))


def _at_least_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors]


def _thirds(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(weights..., alphas..., betas...) -> weights, alphas, betas."""
    layers = len(parameters) // 3
    return list(parameters[:layers]), list(parameters[layers : 2 * layers]), list(parameters[2 * layers :])


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

    Many channels over small maps, in bfloat16 on a CPU, it trains faster than `torch.nn.Conv2d` does, see
    `diracnets.nn.small_maps`; a 1x1 one with a stride subsamples first, see `diracnets.nn.kernels`. All arguments
    are those of `torch.nn.Conv2d`, and more:

    Args:
        alpha: what the scales of the identity start at.
        beta: what the scales of the normalized filters start at.
        init: how `weight` is drawn: "normal", N(0, 1) as in the paper, "kaiming", Kaiming normal as in the authors'
            last code, or a standard deviation s for N(0, s^2). As W is normalized this leaves the function alone and
            sets how far a step turns the filters.

    Attributes:
        weight: W, [out, in / groups, kernel height, kernel width].
        alpha, beta: [out].

    Raises:
        UsageError: an unknown `init`, or a standard deviation that is not a positive number.

    >>> layer = DiracConv2d(16, 32, 3, stride=2, padding=1, bias=False)
    >>> layer(torch.randn(1, 16, 8, 8)).shape, layer.effective_weight().shape
    (torch.Size([1, 32, 4, 4]), torch.Size([32, 16, 3, 3]))
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_strided_pointwise(self):  # the same numbers, by kernels whose gradients are safe
            rows, columns = self.stride
            return conv2d(input[..., ::rows, ::columns], weight, bias, groups=self.groups)
        if small_maps.suits(self, input, weight):
            return small_maps.convolve(input, weight)
        return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]


class DiracConv3d(_DiracConv, nn.Conv3d):
    """`torch.nn.Conv3d` with the Dirac parameterization; see `DiracConv2d`.

    >>> DiracConv3d(2, 2, 3, padding=1)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """


DiracConv = DiracConv1d | DiracConv2d | DiracConv3d


def effective_weights(layers: Sequence[DiracConv]) -> list[Tensor]:
    """The effective weights of a network's layers, computed together: what makes a training step cost as a plain one.

    Args:
        layers: Dirac convolutions of any shapes.

    Returns:
        One tensor a layer, in order, to be given to the layer's `forward`.

    >>> layers = [DiracConv2d(4, 4, 3), DiracConv2d(4, 8, 3), DiracConv2d(4, 4, 3)]
    >>> [list(weight.shape) for weight in effective_weights(layers)]
    [[4, 4, 3, 3], [8, 4, 3, 3], [4, 4, 3, 3]]
    """
    alike: dict[object, list[int]] = {}
    for index, layer in enumerate(layers):
        frozen = not any(each.requires_grad for each in (layer.weight, layer.alpha, layer.beta))
        alike.setdefault((layer.weight.dtype, layer.weight.device, frozen), []).append(index)
    result: dict[int, Tensor] = {}
    for indices in alike.values():
        same = [layers[index] for index in indices]
        weights, alphas, betas = zip(*((layer.weight, layer.alpha, layer.beta) for layer in same), strict=True)
        computed = _dirac_weights(weights, alphas, betas, [layer.groups for layer in same])
        result.update(zip(indices, computed, strict=True))
    return [result[index] for index in range(len(layers))]
