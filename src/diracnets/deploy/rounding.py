"""Which integers stand for a layer's weights: those that change its output least, on the inputs that it gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 64  # columns, whose effect on the others is added up
PAIR = 128  # 255 * 128 is the most that fits 16 bits, and so is -255 * 128
FACTORS = (1.0, 0.94, 0.87, 0.78, 0.65, 0.5)  # of the scale that holds the largest weight


def reconstructed(
    weight: Tensor,
    moments: Tensor,
    bits: int = 8,
    *,
    largest: Tensor | None = None,
    factors: Sequence[float] = FACTORS,
    partners: Tensor | None = None,
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
        partners: int64 [pairings, in]: which column a kernel adds to each column in 16 bits, or -1 for none. The
            integers of a pair then sum to -128 to 128, so that with inputs of up to 255 no such sum saturates.
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
    if partners is None:
        partners = torch.empty(0, weight.shape[1], dtype=torch.int64)
    damped = moments + torch.eye(len(moments), dtype=moments.dtype) * (moments.diagonal().mean() * 1e-4 + 1e-12)
    shared = largest is not None
    largest = extents(weight, partners) if largest is None else largest[None]
    scales = (largest * torch.tensor(factors, dtype=weight.dtype)[:, None] / most).clamp(min=1e-30).float()
    order = damped.diagonal().argsort(descending=True)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order])), upper=True)
    integers = torch.empty(len(scales), *weight.shape)
    steps = scales[:, :, None].expand(-1, len(weight), 1)  # [factors, out, 1]
    place = order.argsort()
    ordered = torch.where(partners < 0, -1, place[partners.clamp(min=0)])[:, order]
    integers[:, :, order] = _one_by_one(weight[:, order].float(), inverse.float(), steps, most, ordered)
    left = integers.double() * steps - weight
    errors = ((left @ damped) * left).sum(2)  # [factors, out]
    best = (errors.sum(1, keepdim=True) if shared else errors).argmin(0)
    rows = torch.arange(len(weight))
    chosen = scales[best, torch.arange(len(largest))]
    first = integers[best.expand(len(weight)), rows].double()
    return _settled(first, weight, damped, chosen.double()[:, None], most, partners), chosen


def pairings(shape: Sequence[int]) -> Tensor:
    """Whose product each weight's is added to in 16 bits, on x86 processors without VNNI, where such sums saturate.

    OpenVINO (oneDNN) adds the products of channels 0 and 1, 2 and 3, ... of one place of the filter. ONNX Runtime
    (MLAS) adds neighbours in the order place, channel, which is the same for an even number of channels. Found by
    trying all pairs of weights with ONNX Runtime 1.32.0 and OpenVINO
    2026.4.1.

    Args:
        shape: of a filter, [in, height, width], or [in] of a fully connected layer.

    Returns:
        int64 [1 or 2, in * height * width]: the place of the other weight in the flattened filter, -1 for none.

    >>> pairings([3]).tolist(), pairings([3, 1, 2]).tolist()
    ([[1, 0, -1]], [[2, 3, 0, 1, -1, -1], [2, 4, 0, 5, 1, 3]])
    """
    places = torch.arange(math.prod(shape)).reshape(shape[0], -1).T  # [height * width, in]
    by_channel = torch.arange(shape[0]) ^ 1
    found = [torch.where(by_channel < shape[0], places[:, by_channel.clamp(max=shape[0] - 1)], -1)]
    if shape[0] % 2 and len(places) > 1:
        row = places.flatten()
        beside = torch.arange(len(row)) ^ 1
        other = torch.where(beside < len(row), row[beside.clamp(max=len(row) - 1)], -1)
        found.append(other.reshape(places.shape))
    return torch.stack([each.T.flatten() for each in found])


def extents(weight: Tensor, partners: Tensor | None) -> Tensor:
    """The largest absolute weight of each row, or sum of two that are paired: [out].

    >>> extents(torch.tensor([[3.0, 2.0, -4.0]]), pairings([3])).tolist()
    [5.0]
    """
    largest = weight.abs().amax(1)
    for pairing in partners if partners is not None else ():
        sums = (weight + weight[:, pairing.clamp(min=0)]) * (pairing >= 0)
        largest = torch.maximum(largest, sums.abs().amax(1))
    return largest


def _limits(integers: Tensor, column: int, most: int, partners: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest integers of a column, given those of its partners: [..., 1] each."""
    low = torch.full_like(integers[..., :1], -most)
    high = -low
    for other in partners[:, column].tolist():
        if other >= 0:
            beside = integers[..., other : other + 1]
            low, high = torch.maximum(low, -PAIR - beside), torch.minimum(high, PAIR - beside)
    return low, high


def _one_by_one(weight: Tensor, inverse: Tensor, steps: Tensor, most: int, partners: Tensor) -> Tensor:
    """Each column rounded, its error spread over those after it; `inverse` is the Cholesky factor of 1 / moments."""
    rest = weight.repeat(len(steps), 1, 1)  # [factors, out, in]
    integers, errors = torch.zeros_like(rest), torch.empty_like(rest)  # 0 of a partner that is not rounded yet
    for start in range(0, weight.shape[1], _BLOCK):
        end = min(start + _BLOCK, weight.shape[1])
        for column in range(start, end):
            now = rest[:, :, column : column + 1]
            whole = (now / steps).round_().clamp_(*_limits(integers, column, most, partners))
            error = (now - whole * steps).div_(inverse[column, column])
            integers[:, :, column : column + 1], errors[:, :, column : column + 1] = whole, error
            rest[:, :, column:end] -= error * inverse[column, column:end]
        rest[:, :, end:] -= errors[:, :, start:end] @ inverse[start:end, end:]
    return integers


def _settled(
    integers: Tensor, weight: Tensor, moments: Tensor, steps: Tensor, most: int, partners: Tensor, sweeps: int = 5
) -> Tensor:
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
                change = wanted.round_().clamp_(*_limits(integers, start + column, most, partners)) - whole
                whole += change
                now += change * steps * inner[column]
            gradient += (integers[:, block] - was) * steps @ moments[block]
        if torch.equal(before, integers):
            break
    return integers
