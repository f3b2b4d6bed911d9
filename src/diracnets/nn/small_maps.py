"""Convolutions of many channels over small maps, in bfloat16 on CPUs: their filters' gradient in less time.

oneDNN, which torch convolves with there (torch 2.13), takes the longer for the filters' gradient the smaller the maps
are for their channels: with AMX, of 128 maps of 6x6 with 256 channels, 43 ms; the convolutions here, which are as wide
as the batch, take 11 for the same sums. Without AMX they take 0.6 to 1.2 of its time, mostly less than 1; in float32,
for which they are not used, up to 2.6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from diracnets.nn.effective_weight import is_traced

CHANNELS_PER_PIXEL = 1  # from which on it is worth it; 64 channels for maps of up to 8x8


def suits(conv: nn.Conv2d, images: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` computes what `conv` does, and with AMX trains faster.

    Args:
        conv: without bias and groups, of stride 1, and padded with zeros to keep the size of its input.
        images: its input, [batch, in, height, width].
        weight: its filters, [out, in, height, width], whose gradient will be wanted.

    >>> suits(nn.Conv2d(256, 256, 3, padding=1, bias=False), torch.randn(2, 256, 4, 4), torch.randn(256, 256, 3, 3))
    False
    """
    if is_traced() or not (
        isinstance(images, Tensor)  # not what stands for it while a model is traced by torch.fx
        and images.device.type == "cpu"
        and images.ndim == 4
        and len(images)
        and CHANNELS_PER_PIXEL * images.shape[2] * images.shape[3] <= min(conv.in_channels, conv.out_channels)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and conv.bias is None
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
        and all(size % 2 for size in conv.kernel_size)
        and conv.padding in ("same", tuple(size // 2 for size in conv.kernel_size))
    ):
        return False
    if torch.autograd.forward_ad.unpack_dual(images).tangent is not None:  # type: ignore[no-untyped-call]
        return False
    if torch.is_autocast_enabled("cpu"):
        cast = (torch.float32, torch.float16, torch.bfloat16)  # other dtypes autocast leaves alone
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and images.dtype in cast and weight.dtype in cast
    return images.dtype == weight.dtype == torch.bfloat16


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    """Convolve in bfloat16, with stride 1 and zeros around the images, so that they keep their size.

    Args:
        images: [batch, in, height, width], on the CPU.
        weight: [out, in, kernel height, kernel width], both odd.

    Returns:
        bfloat16 [batch, out, height, width]; it can be differentiated any number of times.

    >>> convolve(torch.randn(2, 4, 3, 3), torch.randn(8, 4, 3, 3)).shape
    torch.Size([2, 8, 3, 3])
    """
    return _Convolution.apply(images.bfloat16(), weight.bfloat16())  # type: ignore[no-untyped-call,no-any-return]


class _Convolution(torch.autograd.Function):
    """torch's convolution, but for the filters' gradient, unless that is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(images, weight)
        return conv2d(images, weight, padding="same")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        images, weight = ctx.saved_tensors
        of_images, of_weight = ctx.needs_input_grad
        by_torch = torch.is_grad_enabled()  # the gradients are to be differentiated too
        padding, wanted = [size // 2 for size in weight.shape[2:]], [of_images, of_weight and by_torch, False]
        for_images, for_weight, _ = torch.ops.aten.convolution_backward(
            grad, images, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
        )
        if of_weight and not by_torch:
            for_weight = filters_gradient(images, grad, (weight.shape[2], weight.shape[3]))
        return for_images, for_weight


def filters_gradient(images: Tensor, grad: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """The gradient of the filters, by convolutions over images of the same data: as high as the maps, the batch wide.

    What a column of the filters meets is a column of the maps and one next to it. For each such distance, torch's own
    gradient for filters of that one column is taken over columns as images, whose width is the batch.

    Args:
        images: what was convolved, [batch, in, height, width].
        grad: of the output, [batch, out, height, width], of the same dtype.
        kernel_size: of the filters, odd numbers.

    Returns:
        [out, in, *kernel_size], of that dtype.
    """
    width, (rows, columns) = images.shape[3], kernel_size
    column_filters = images.new_empty(grad.shape[1], images.shape[1], rows, 1)  # of which the shape alone counts
    images, grad = (maps.permute(3, 2, 0, 1).contiguous().permute(0, 3, 1, 2) for maps in (images, grad))
    by_column = []
    for distance in range(-(columns // 2), columns // 2 + 1):
        met = slice(min(width, max(0, distance)), max(0, min(width, width + distance)))
        meeting = slice(met.start - distance, met.stop - distance)
        fixed = (None, [1, 1], [rows // 2, 0], [1, 1], False, [0, 0], 1, [False, True, False])
        by_column.append(torch.ops.aten.convolution_backward(grad[meeting], images[met], column_filters, *fixed)[1])
    return torch.cat(by_column, dim=3)
