"""Which integers stand for a layer's weights: those that change its output least, on the inputs that it gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 64  # columns, whose effect on the others is added up
FACTORS = (1.0, 0.94, 0.87, 0.78, 0.65, 0.5)  # of the scale that holds the largest weight


def reconstructed(
    weight: Tensor, moments: Tensor, bits: int = 8, *, largest: Tensor | None = None, factors: Sequence[float] = FACTORS
) -> tuple[Tensor, Tensor]:
    """Integers and scales with the least squared error of the layer's output.

    Column after column is rounded, and the columns that follow make up for the error (Frantar et al. 2023,
    arXiv:2210.17323); then each integer is set to the best one given the others, until none changes. The scale is the
    best of a few.

    Args:
        weight: float64 [out, in].
        moments: float64 [in, in], the mean of x x^T over the inputs x that the layer gets.
        bits: of an integer: -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        largest: float64 [], the largest absolute weight, for one scale for all rows; by default each has its own.
        factors: the scales to try, as parts of the one by which the largest weight becomes the largest integer.

    Returns:
        float64 [out, in], whole numbers, and float32 [out] or [1].

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(100, 8, generator=generator, dtype=torch.float64).cumsum(1)  # of which neighbours are alike
    >>> weight = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    >>> integers, scales = reconstructed(weight, x.T @ x / 100, bits=3)
    >>> nearest = (weight / scales[:, None]).round().clamp(-3, 3) * scales[:, None]
    >>> bool((x @ (integers * scales[:, None] - weight).T).norm() < 0.9 * (x @ (nearest - weight).T).norm())
    True
    """
    most = 2 ** (bits - 1) - 1
    damped = moments + torch.eye(len(moments), dtype=moments.dtype) * (moments.diagonal().mean() * 1e-4 + 1e-12)
    shared = largest is not None
    largest = weight.abs().amax(1) if largest is None else largest[None]
    scales = (largest * torch.tensor(factors, dtype=weight.dtype)[:, None] / most).clamp(min=1e-30).float()
    order = damped.diagonal().argsort(descending=True)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order])), upper=True)
    integers = torch.empty(len(scales), *weight.shape)
    steps = scales[:, :, None].expand(-1, len(weight), 1)  # [factors, out, 1]
    integers[:, :, order] = _one_by_one(weight[:, order].float(), inverse.float(), steps, most)
    left = integers.double() * steps - weight
    errors = ((left @ damped) * left).sum(2)  # [factors, out]
    best = (errors.sum(1, keepdim=True) if shared else errors).argmin(0)
    rows = torch.arange(len(weight))
    chosen = scales[best, torch.arange(len(largest))]
    first = integers[best.expand(len(weight)), rows].double()
    return _settled(first, weight, damped, chosen.double()[:, None], most), chosen


def _one_by_one(weight: Tensor, inverse: Tensor, steps: Tensor, most: int) -> Tensor:
    """Each column rounded, its error spread over those after it; `inverse` is the Cholesky factor of 1 / moments."""
    rest = weight.repeat(len(steps), 1, 1)  # [factors, out, in]
    integers, errors = torch.empty_like(rest), torch.empty_like(rest)
    for start in range(0, weight.shape[1], _BLOCK):
        end = min(start + _BLOCK, weight.shape[1])
        for column in range(start, end):
            now = rest[:, :, column : column + 1]
            whole = (now / steps).round_().clamp_(-most, most)
            error = (now - whole * steps).div_(inverse[column, column])
            integers[:, :, column : column + 1], errors[:, :, column : column + 1] = whole, error
            rest[:, :, column:end] -= error * inverse[column, column:end]
        rest[:, :, end:] -= errors[:, :, start:end] @ inverse[start:end, end:]
    return integers


def _settled(integers: Tensor, weight: Tensor, moments: Tensor, steps: Tensor, most: int, sweeps: int = 5) -> Tensor:
    """Coordinate descent on the squared error: each column set to the best integers, given the other columns."""
    gradient = (integers * steps - weight) @ moments  # [out, in]
    for _ in range(sweeps):
        before = integers.clone()
        for start in range(0, weight.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            near, inner, was = gradient[:, block], moments[block, block], integers[:, block].clone()
            now = near.clone()
            for column in range(inner.shape[0]):
                whole = integers[:, start + column, None]
                wanted = whole - now[:, column, None] / (inner[column, column] * steps)
                change = wanted.round_().clamp_(-most, most) - whole
                whole += change
                now += change * steps * inner[column]
            gradient += (integers[:, block] - was) * steps @ moments[block]
        if torch.equal(before, integers):
            break
    return integers
