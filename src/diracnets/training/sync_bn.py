"""Batch norms that normalize with the mean and variance of the whole batch, of which each process has a share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm


def synchronized(net: nn.Module) -> nn.Module:
    """A network of the same weights and statistics, the very tensors, whose batch norms are synchronized.

    What is done to the tensors of one is done to those of the other. The network itself keeps its layers, and is the
    one to save, average and fold.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    >>> twin = synchronized(net)
    >>> twin[1].running_mean is net[1].running_mean, list(twin.state_dict()) == list(net.state_dict())
    (True, True)
    """
    twin = deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    synchronize_norms(twin)
    return twin


@contextmanager
def norms_synchronized(net: nn.Module) -> Iterator[None]:
    """While the block runs, the batch norms of the network itself are synchronized.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    >>> with norms_synchronized(net):
    ...     type(net[1]).__name__
    'SyncBatchNorm'
    >>> type(net[1]).__name__
    'BatchNorm2d'
    """
    before = synchronize_norms(net)
    try:
        yield
    finally:
        for module, name, norm in before:
            setattr(module, name, norm)


def synchronize_norms(net: nn.Module) -> list[tuple[nn.Module, str, nn.BatchNorm2d]]:
    """Put synchronized norms, on the same tensors, in the places of a network's batch norms.

    Returns:
        The modules in which they were, their names there, and the norms.
    """
    norms = [
        (module, name, norm)
        for module in net.modules()
        for name, norm in module.named_children()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    for module, name, norm in norms:
        setattr(module, name, _synchronized_norm(norm))
    return norms


def _synchronized_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """A norm on the tensors of another, also those that FSDP2 gathers for it."""
    on_cuda = norm.running_mean is not None and norm.running_mean.is_cuda
    made = (_CudaNorm if on_cuda else SyncBatchNorm)(norm.num_features, norm.eps, norm.momentum, norm.affine)
    made._parameters, made._buffers = norm._parameters, norm._buffers
    return made.train(norm.training)


class _CudaNorm(nn.SyncBatchNorm):
    """torch's, for a share without images too, of which it says in another type than others how many they are."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, channels, height, width]"""
        return super().forward(input if len(input) else input.float())


class SyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the batches of all processes, also where one has no image; torch's needs CUDA.

    Batches are weighted by their sizes, so that the result is that of one process with all images, up to rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [batch, channels, height, width], and take its statistics in."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _joint_statistics(input)
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        with torch.no_grad():
            tracked = cast(Tensor, self.num_batches_tracked).add_(1)
            new = 1 / float(tracked) if self.momentum is None else self.momentum
            running_mean.lerp_(mean, new)
            running_var.lerp_((variance * count / (count - 1).clamp_min(1)).to(variance.dtype), new)
        return cast(Tensor, _Normalized.apply(input, self.weight, self.bias, mean, variance, count, self.eps))  # type: ignore[no-untyped-call]


@torch.no_grad()
def _joint_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance of each channel over the images of all processes, and over how many values."""
    channels, count = x.shape[1], x.numel() // x.shape[1]
    sums = torch.zeros(2 * channels + 1, dtype=torch.float64)
    if count:
        mean, unbiased = torch.zeros(2, channels)
        batch_norm(x, mean, unbiased, training=True, momentum=1.0)  # leaves the statistics there, faster than var_mean
        mean, variance = mean.double(), unbiased.double() * ((count - 1) / count)
        sums = torch.cat([mean, variance + mean.square(), torch.ones(1)]) * count
    distributed.all_reduce(sums)
    count_all = sums[-1]
    mean, square = (sums[:-1] / count_all).view(2, channels)
    return mean.float(), (square - mean.square()).clamp_min(0).float(), count_all


class _Normalized(torch.autograd.Function):
    """`w (x - mean) / sqrt(variance + eps) + b`, where mean and variance are those of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, variance, count)
        ctx.eps = eps
        return batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (x, weight, bias)]
            normalized = batch_norm(inputs[0], mean, variance, inputs[1], inputs[2], eps=ctx.eps)
        direct, of_weight, of_bias = torch.autograd.grad(normalized, inputs, gradient)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None, None, None, None
        # Through mean and variance: a x + b for each channel.
        sums = torch.cat([of_weight, of_bias]).double()
        distributed.all_reduce(sums)
        along, level = (sums / count).view(2, -1)
        scale = (variance.double() + ctx.eps).rsqrt()
        slope = -weight * scale.square() * along
        shift = -weight * scale * level - slope * mean
        through = torch.addcmul(shift.to(x.dtype)[:, None, None], x, slope.to(x.dtype)[:, None, None])
        return direct + through, of_weight, of_bias, None, None, None, None
