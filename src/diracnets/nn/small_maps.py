"""Convolutions of many channels over small maps, in bfloat16 on CPUs: their filters' gradient as matrix products.

On processors with AMX, oneDNN, which torch convolves with there (torch 2.13), needs the more time for the filters'
gradient the more filters there are, however small the maps: of 500 maps of 2x2 with 256 channels it takes 44 ms, eight
times the forward pass, and the products here take 5. Without AMX both take about the same time; where bfloat16 is
emulated, which is no way to train, the products took up to 1.6 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from diracnets.nn.traced import is_traced

CHANNELS_PER_PIXEL = 5  # from which on the products are faster with AMX; 256 channels for maps of up to 7x7


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
    """The gradient of the filters: for each of their rows, the product of the output's gradient and shifted images.

    Args:
        images: what was convolved, [batch, in, height, width].
        grad: of the output, [batch, out, height, width], of the same dtype.
        kernel_size: of the filters, odd numbers.

    Returns:
        [out, in, *kernel_size], of that dtype, in channels_last.
    """
    channels_in, height, width = images.shape[1:]
    channels_out, (rows, columns) = grad.shape[1], kernel_size
    # with the maps' rows first, those that one row of the filters meets lie one after the other in memory
    padded = pad(images.permute(2, 0, 3, 1), [0, 0, columns // 2, columns // 2, 0, 0, rows // 2, rows // 2])
    shifted = torch.cat([padded[:, :, left : left + width] for left in range(columns)], dim=3)
    by_channel = grad.permute(2, 0, 3, 1).reshape(-1, channels_out).T  # [out, height * batch * width]
    products = [by_channel @ shifted[row : row + height].reshape(-1, columns * channels_in) for row in range(rows)]
    return torch.stack(products, dim=1).view(channels_out, rows, columns, channels_in).permute(0, 3, 1, 2)
