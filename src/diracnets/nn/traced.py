"""Whether operations are followed by something that cannot look into an autograd function."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether something traces or transforms the operations, and wants to see them itself.

    >>> is_traced()
    False
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()  # has no public name; torch.autograd.Function asks the same
    )
