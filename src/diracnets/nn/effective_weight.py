"""The Dirac parameterization of a convolution's filters: the formula, its gradients, and many layers at once.

Zagoruyko & Komodakis, "DiracNets: Training Very Deep Neural Networks Without Skip-Connections", arXiv 1706.00388 (v2):

    effective weight = diag(alpha) I + diag(beta) W / ||W||

with I the filters that pass their input through (`torch.nn.init.dirac_`), ||W|| the norm of each whole filter, and one
alpha and one beta per output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diracnets.errors import UsageError

EPS = 1e-12
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse dtypes of filters for which the formula has no meaning (complex, whole and 8-bit numbers).

    Raises:
        UsageError: `dtype` is none of float16, bfloat16, float32 and float64.
    """
    if dtype not in DTYPES:
        known = ", ".join(str(each).removeprefix("torch.") for each in DTYPES)
        raise UsageError(f"Dirac filters cannot be {str(dtype).removeprefix('torch.')}; choose one of {known}")


def is_traced() -> bool:
    """Whether something traces or transforms the operations, and cannot look into an autograd function.

    >>> is_traced()
    False
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()  # has no public name; torch.autograd.Function asks the same
    )


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

    Raises:
        UsageError: `weight` is complex, of whole numbers or of 8-bit ones.

    Source: Zagoruyko & Komodakis 2017, section 3.

    >>> dirac_weight(torch.tensor([[[0.0, 3.0, 4.0]]]), torch.tensor([1.0]), torch.tensor([0.1]))
    tensor([[[0.0000, 1.0600, 0.0800]]])
    """
    check_dtype(weight.dtype)
    if is_traced():
        return _formula(weight, alpha, beta, groups)
    return _DiracWeights.apply([groups], weight, alpha, beta)[0]  # type: ignore[no-untyped-call,no-any-return]


def dirac_weights(
    weights: Sequence[Tensor], alphas: Sequence[Tensor], betas: Sequence[Tensor], groups: Sequence[int]
) -> list[Tensor]:
    """`dirac_weight` of many layers, computed together: what makes a training step cost as a plain one.

    Args:
        weights, alphas, betas, groups: those of each layer, in order.

    Raises:
        UsageError: a weight is complex, of whole numbers or of 8-bit ones.
    """
    layers = list(zip(weights, alphas, betas, groups, strict=True))
    if is_traced():
        return [dirac_weight(*layer) for layer in layers]
    alike: dict[object, list[int]] = {}
    for index, (weight, alpha, beta, _) in enumerate(layers):
        check_dtype(weight.dtype)
        frozen = not (weight.requires_grad or alpha.requires_grad or beta.requires_grad)
        alike.setdefault((weight.dtype, weight.device, frozen), []).append(index)
    result: dict[int, Tensor] = {}
    for same in alike.values():
        tensors = [part[index] for part in (weights, alphas, betas) for index in same]
        computed = _DiracWeights.apply([groups[index] for index in same], *tensors)  # type: ignore[no-untyped-call]
        result.update(zip(same, computed, strict=True))
    return [result[index] for index in range(len(layers))]


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
        # torch._foreach_*: private, but one launch on a GPU for what are as many launches as layers otherwise
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
