"""Convolutions whose gradients torch's kernels for CPUs without AVX-512 get wrong: which they are, and how to say so.

They are 1x1, have a stride and fewer than 8 input channels, and get channels_last images. With one thread, oneDNN (3.7
to 3.12, in torch 2.8 to 2.14) writes past the end of their filters' gradient, and the process may crash much
later; with several the gradient is wrong, or never done. `docs/kernels.md` says how that was found. Subsampling first
and a convolution of stride 1 compute the same, safely.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import nn

SAFE_CHANNELS = 8  # from which on the gradient is right; as many float32 numbers as AVX2 computes with at once
ENVIRONMENT = "ONEDNN_MAX_CPU_ISA"  # the newest instructions that oneDNN may use


class KernelWarning(UserWarning):
    """Convolutions of a model whose training can crash on this processor."""


def is_strided_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution uses single pixels, and not all: 1x1, a stride and no padding.

    >>> is_strided_pointwise(nn.Conv2d(4, 8, 1, stride=2)), is_strided_pointwise(nn.Conv2d(4, 8, 3, stride=2))
    (True, False)
    """
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.padding in ((0, 0), "valid")


def has_unsafe_kernels() -> bool:
    """Whether this process's convolutions use the kernels for CPUs with AVX2 and without AVX-512.

    That is decided by the processor, and by the environment variable ONEDNN_MAX_CPU_ISA where it is set.
    """
    capability, most = torch.backends.cpu.get_cpu_capability(), os.environ.get(ENVIRONMENT, "").upper()
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return most.startswith("AVX2") or (capability == "AVX2" and most not in ("SSE41", "AVX"))


def unsafe_convolutions(model: nn.Module) -> list[str]:
    """The names of a model's convolutions whose training on this processor can corrupt memory.

    They are ordinary ones: `DiracConv2d` computes them in another way.

    >>> unsafe_convolutions(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, stride=2)))
    []
    """
    if not has_unsafe_kernels():
        return []
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and is_strided_pointwise(module)
        and module.groups == 1
        and module.in_channels < SAFE_CHANNELS
    ]


def caution(names: list[str]) -> str:
    """The warning about `unsafe_convolutions`.

    >>> print(caution(["shortcut"]))
    training 'shortcut' can crash or compute wrong gradients on this processor (a 1x1 convolution with a stride and
    fewer than 8 input channels): subsample before it, by nn.AvgPool2d(1, stride), and convolve with stride 1; or set
    the environment variable ONEDNN_MAX_CPU_ISA=AVX before torch is imported
    """
    return (
        f"training {', '.join(map(repr, names))} can crash or compute wrong gradients on this processor (a 1x1 "
        f"convolution with a stride and fewer than {SAFE_CHANNELS} input channels): subsample before it, by "
        f"nn.AvgPool2d(1, stride), and convolve with stride 1; or set the environment variable {ENVIRONMENT}=AVX "
        "before torch is imported"
    )


def warn_of_unsafe(model: nn.Module, stacklevel: int = 3) -> None:
    """Give a `KernelWarning` where a model has `unsafe_convolutions`."""
    if names := unsafe_convolutions(model):
        warnings.warn(caution(names), KernelWarning, stacklevel=stacklevel)
