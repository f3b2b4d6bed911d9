"""The batches that networks are compared on: the caller's or one of the model's input size, and a different one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError, UsageError
from diracnets.folding.flow import first_floating
from diracnets.folding.tree import leaves, mapped

BATCH = 2
WIDER = 1.25  # factor of the height and width of images in the other batch
LOUDER = 4.0  # factor of its values


def probe_inputs(model: nn.Module, example_input: object = None) -> tuple[Any, ...]:
    """The arguments to compare networks on.

    Args:
        model: needs an attribute `input_size`, (channels, height, width), if `example_input` is None. If it also has
            `min_image_size`, the images are at most twice that size. That is faster, and even the smallest feature maps
            are still 2x2, so that all elements of a 3x3 filter count.
        example_input: a tensor, or a tuple of arguments.

    Returns:
        `example_input` as a tuple, or two images of standard normal noise, always the same, of the model's dtype.

    Raises:
        UsageError: an example input of another type.
        FoldError: neither an example input nor an input size.

    >>> probe_inputs(nn.ReLU(), torch.ones(1, 3))
    (tensor([[1., 1., 1.]]),)
    """
    if example_input is not None:
        if not isinstance(example_input, Tensor | tuple):
            raise UsageError(
                f"example_input is a {type(example_input).__name__}; give a tensor or a tuple of arguments, "
                "(example,) for a single one of another type"
            )
        return example_input if isinstance(example_input, tuple) else (example_input,)
    size = _input_size(model)
    if not isinstance(size, tuple | list) or not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise FoldError(
            f"the input size of {type(model).__name__} is not known: give a batch to check the result on, as in "
            "fold(model, example_input), or give the model an attribute input_size = (channels, height, width)"
        )
    least = getattr(model, "min_image_size", None)
    channels, *image = size
    if isinstance(least, int):
        image = [min(length, 2 * least) for length in image]
    noise = torch.randn(BATCH, channels, *image, generator=torch.Generator().manual_seed(0), device="cpu")
    like = first_floating(model)
    return (noise if like is None else noise.to(like.device, like.dtype),)


def smaller_than_usual(model: nn.Module, inputs: tuple[Any, ...]) -> str | None:
    """Why images of `probe_inputs` are smaller than those that a model is for, in a sentence; None if they are not."""
    usual, size = _input_size(model), tuple(inputs[0].shape[1:])
    if usual is None or tuple(usual) == size:
        return None
    given, less = ("x".join(map(str, each[1:])) for each in (usual, size))
    return (
        f"checked at {less} instead of {given} pixels, which is faster: the layers are the same for images of any size"
    )


def _input_size(model: nn.Module) -> Any:  # noqa: ANN401
    return getattr(model, "input_size", None) or getattr(getattr(model, "card", None), "input_size", None)


def other_inputs(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Batches of another size and range, the most different first. A model may refuse some of them.

    The values are the given ones times -4 or 4, repeated if there are more. A batch of several elements becomes one of
    one, and a batch of one becomes one of two. Images are a quarter higher and wider. Integers keep their range.

    >>> [tuple(batch.shape) for batch, in other_inputs((torch.ones(2, 3, 8, 8),))]
    [(1, 3, 10, 10), (1, 3, 10, 10), (1, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8), (2, 3, 8, 8)]
    """
    batches = {len(value) for value in leaves(inputs) if isinstance(value, Tensor) and value.ndim > 1}
    (batch,) = batches if len(batches) == 1 else (0,)

    def changed(value: object, resize: bool, rebatch: bool, factor: float) -> object:
        if not isinstance(value, Tensor):
            return value
        if rebatch and value.ndim > 1 and len(value) == batch:
            value = value.repeat_interleave(2, 0) if batch == 1 else value[:1]
        for axis in range(2, value.ndim) if resize else ():
            size = value.shape[axis]
            value = value.index_select(axis, torch.arange(round(WIDER * size), device=value.device) % max(size, 1))
        return value * factor if value.is_floating_point() else value.clone()

    for resize, rebatch, factor in itertools.product((True, False), (True, False), (-LOUDER, LOUDER)):
        if rebatch or not resize:
            yield mapped(changed, inputs, resize, rebatch, factor)


def in_float64(values: Any) -> Any:  # noqa: ANN401
    """A model (in place), or a structure of tensors, with float64 for all other floating-point numbers.

    Tensors on a device without float64 move to the CPU.
    """
    if isinstance(values, nn.Module):
        for module in values.modules():
            if any(tensor.device.type not in ("cpu", "cuda") for tensor in module.parameters(recurse=False)):
                values.cpu()
                break
        return values.double()
    return mapped(lambda value: _widened(value) if isinstance(value, Tensor) else value, values)


def lowest_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's parameters, the least precise one if there are several."""
    dtypes = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())


def _widened(tensor: Tensor) -> Tensor:
    device = tensor.device if tensor.device.type in ("cpu", "cuda") else torch.device("cpu")
    return tensor.to(device, torch.float64 if tensor.is_floating_point() else tensor.dtype)
