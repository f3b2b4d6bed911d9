"""The algebra of folding: in evaluation mode a batch norm scales and shifts each channel, as filters can do too."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from diracnets.nn.dirac import TRANSPOSED

Layer = TypeVar("Layer", bound=nn.Module)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """The two vectors [channels] with `norm(x) = scale * x + shift` for each channel, in evaluation mode.

    >>> norm = nn.BatchNorm2d(2, eps=0.0).eval()
    >>> _ = norm.running_mean.fill_(3.0), norm.running_var.fill_(4.0)
    >>> [vector.tolist() for vector in scale_and_shift(norm)]
    [[0.5, 0.5], [-1.5, -1.5]]
    """
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def is_zero(shift: Tensor) -> bool:
    """Whether a shift does nothing; one on the meta device counts as one that does something."""
    return not shift.is_meta and not shift.any()


def scale_outputs(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, *, groups: int = 1, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """The weight and bias of the layer that computes `scale * layer(x) + shift`.

    Args:
        weight: [out, in / groups, *kernel], [out, in] of a linear layer, or [in, out / groups, *kernel] if transposed.
        bias: [out] or None.
        scale, shift: [out].
        groups: those of the convolution.
        transposed: whether it is the weight of a transposed convolution.

    >>> weight, bias = scale_outputs(torch.ones(1, 2), None, torch.tensor([3.0]), torch.tensor([4.0]))
    >>> weight.tolist(), bias.tolist()
    ([[3.0, 3.0]], [4.0])
    """
    kernel = (1,) * (weight.ndim - 2)
    if transposed:
        by_group = weight.reshape(groups, -1, *weight.shape[1:])  # [groups, in / groups, out / groups, *kernel]
        scaled = (by_group * scale.reshape(groups, 1, -1, *kernel)).flatten(0, 1)
    else:
        scaled = weight * scale.reshape(-1, 1, *kernel)
    return scaled, shift.clone() if bias is None else bias * scale + shift


def scale_inputs(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor, *, groups: int = 1, transposed: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of the layer that computes `layer(scale * x + shift)`.

    Where a layer pads with zeros this holds for shifts of zero alone: what it pads with is not shifted. The same goes
    for a transposed convolution, to whose outputs a varying number of inputs contributes.

    Args:
        weight: as for `scale_outputs`.
        bias: [out] or None.
        scale, shift: [in].
        groups: those of the convolution.
        transposed: whether it is the weight of a transposed convolution; then `shift` must be zero.

    Returns:
        The weight, and the bias, which is None where there was none and nothing is shifted.

    >>> weight, bias = scale_inputs(torch.ones(1, 2), None, torch.tensor([3.0, 5.0]), torch.tensor([4.0, 1.0]))
    >>> weight.tolist(), bias.tolist()
    ([[3.0, 5.0]], [5.0])
    """
    kernel = (1,) * (weight.ndim - 2)
    if transposed:
        return weight * scale.reshape(-1, 1, *kernel), bias
    by_group = weight.reshape(groups, -1, *weight.shape[1:])  # [groups, out / groups, in / groups, *kernel]
    scaled = (by_group * scale.reshape(groups, 1, -1, *kernel)).flatten(0, 1)
    if is_zero(shift):
        return scaled, bias
    constant = (by_group * shift.reshape(groups, 1, -1, *kernel)).flatten(2).sum(2).flatten()  # [out]
    return scaled, constant if bias is None else bias + constant


def then(layer: Layer, norm: BatchNorm) -> Layer:
    """A layer that computes `norm(layer(x))`: a convolution, a transposed one, a linear layer or a batch norm."""
    scale, shift = scale_and_shift(norm)
    if isinstance(layer, BATCH_NORMS):
        own_weight = torch.ones_like(scale) if layer.weight is None else layer.weight
        merged = with_tensors(layer, *scale_outputs(own_weight[:, None], layer.bias, scale, shift))
        merged.weight = nn.Parameter(merged.weight.flatten(), requires_grad=False)
        merged.affine = True
        return merged
    weight, bias, groups, transposed = _parts(layer)
    return with_tensors(layer, *scale_outputs(weight, bias, scale, shift, groups=groups, transposed=transposed))


def after(norm: BatchNorm, layer: Layer) -> Layer:
    """A layer that computes `layer(norm(x))`; see `scale_inputs` for where that is possible."""
    weight, bias, groups, transposed = _parts(layer)
    scale, shift = scale_and_shift(norm)
    return with_tensors(layer, *scale_inputs(weight, bias, scale, shift, groups=groups, transposed=transposed))


def with_tensors(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """A copy of `layer` with another weight and bias, none of which asks for gradients."""
    result = copy.deepcopy(layer, {id(tensor): tensor for tensor in layer.parameters()})
    for name, tensor in (("weight", weight), ("bias", bias)):
        setattr(result, name, None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False))
    return result


def _parts(layer: nn.Module) -> tuple[Tensor, Tensor | None, int, bool]:
    """Weight, bias, groups, and whether the weight is that of a transposed convolution."""
    groups = cast(int, getattr(layer, "groups", 1))
    return cast(Tensor, layer.weight), cast("Tensor | None", layer.bias), groups, isinstance(layer, TRANSPOSED)
