"""Whether two networks compute the same: a batch to compare them on, how far apart they are, and where that starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diracnets.errors import FoldError, UsageError, first_line
from diracnets.folding.flow import first_floating

BATCH = 2
SAMPLE = 2**14  # elements of a layer's output that are compared


@dataclass(frozen=True)
class Record:
    """The output of a module in a run.

    Attributes:
        name: the module's.
        ndim: how many dimensions the output has.
        sample: elements of it, evenly spaced, in float64.
    """

    name: str
    ndim: int
    sample: Tensor


@dataclass(frozen=True)
class Difference:
    """How far two outputs are apart.

    Attributes:
        absolute: the largest absolute difference.
        relative: that, divided by the largest absolute output; the largest such quotient where there are more outputs.
    """

    absolute: float
    relative: float


def probe_inputs(model: nn.Module, example_input: object = None) -> tuple[Any, ...]:
    """The arguments to compare networks on.

    Args:
        model: has an attribute `input_size`, (channels, height, width), where `example_input` is None. If it has
            `min_image_size` too, the images are twice as large as that at most: it is quicker, and even the smallest
            feature maps are still 2x2, so that all elements of a 3x3 filter count.
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
                f"example_input is a {type(example_input).__name__}; give a tensor or a tuple of arguments"
            )
        return example_input if isinstance(example_input, tuple) else (example_input,)
    size = getattr(model, "input_size", None) or getattr(getattr(model, "card", None), "input_size", None)
    if not isinstance(size, tuple | list) or not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise FoldError(
            f"nothing tells what {type(model).__name__} takes as input: give fold(model, example_input) a batch to "
            "check the result on, or the model an attribute input_size = (channels, height, width)"
        )
    least = getattr(model, "min_image_size", None)
    channels, *image = size
    if isinstance(least, int):
        image = [min(length, 2 * least) for length in image]
    noise = torch.randn(BATCH, channels, *image, generator=torch.Generator().manual_seed(0), device="cpu")
    like = first_floating(model)
    return (noise if like is None else noise.to(like.device, like.dtype),)


def in_float64(values: Any) -> Any:  # noqa: ANN401
    """A model (in place), or a structure of tensors, with float64 for all other floating-point numbers.

    What lies on a device without float64 moves to the CPU.
    """
    if isinstance(values, nn.Module):
        values._apply(_widened)  # type: ignore[no-untyped-call]
        return values
    return pytree.tree_map(lambda value: _widened(value) if isinstance(value, Tensor) else value, values)


def lowest_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's parameters, the least precise one if there are several."""
    dtypes = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())


def _widened(tensor: Tensor) -> Tensor:
    device = tensor.device if tensor.device.type in ("cpu", "cuda") else torch.device("cpu")
    return tensor.to(device, torch.float64 if tensor.is_floating_point() else tensor.dtype)


def run(model: nn.Module, inputs: tuple[Any, ...], what: str, records: list[Record] | None = None) -> Any:  # noqa: ANN401
    """The output of a network on a copy of the inputs, without autocast.

    Args:
        model: called once.
        inputs: its arguments.
        what: names the network in errors.
        records: gets a record of each output of each module that has no parts, in the order in which they are ready.

    Raises:
        FoldError: the network fails.
    """
    handles = []
    for name, module in model.named_modules() if records is not None else ():
        if next(module.children(), None) is not None or isinstance(module, torch.jit.ScriptModule):
            continue  # a scripted module takes no hooks

        def hook(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
            if records is not None and isinstance(output, Tensor) and output.is_floating_point():
                step = output.numel() // SAMPLE | 1
                records.append(Record(name, output.ndim, output.detach().flatten()[::step].cpu().double().clone()))

        handles.append(module.register_forward_hook(hook))
    inputs = pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    like = first_floating(model)
    device = "cpu" if like is None else like.device.type
    try:
        with torch.autocast(device, enabled=False), torch.autocast("cpu", enabled=False):
            return model(*inputs)
    except Exception as error:  # the model's code may raise anything
        raise FoldError(
            f"{what} cannot be run to check the fold ({type(error).__name__}: {first_line(error)})"
            + ("; is the example input one that it takes?" if what == "the model" else "")
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def compare(expected: Any, given: Any, tiny: float = 0.0) -> Difference:  # noqa: ANN401
    """How far the outputs of two networks are apart: tensors, or structures of them.

    Args:
        expected, given: the outputs.
        tiny: differences are not divided by less than that.

    Other numbers and integer tensors, if they are not equal, are infinitely far apart, as are different shapes.

    Raises:
        FoldError: outputs that are not numbers, or `expected` holds NaN.

    >>> compare(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0]))
    Difference(absolute=1.0, relative=0.25)
    """
    leaves, structure = pytree.tree_flatten(expected)
    others, other_structure = pytree.tree_flatten(given)
    if structure != other_structure:
        return Difference(math.inf, math.inf)
    if not any(isinstance(leaf, Tensor) and leaf.numel() for leaf in leaves):
        raise FoldError("the model returns no tensor that could be compared; wrap it in a module that returns tensors")
    differences = [_compare(leaf, other, tiny) for leaf, other in zip(leaves, others, strict=True)]
    return Difference(max(d.absolute for d in differences), max(d.relative for d in differences))


def _compare(expected: object, given: object, tiny: float) -> Difference:
    if not isinstance(expected, Tensor) or not isinstance(given, Tensor):
        if not isinstance(expected, int | float | str | None):
            raise FoldError(
                f"the model returns a {type(expected).__name__}, which cannot be compared; "
                "wrap it in a module that returns tensors"
            )
        return Difference(0.0, 0.0) if expected == given else Difference(math.inf, math.inf)
    if expected.shape != given.shape:
        return Difference(math.inf, math.inf)
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (expected.detach().cpu(), given.detach().cpu()))
    if not a.is_floating_point():
        return Difference(0.0, 0.0) if torch.equal(a, b) else Difference(math.inf, math.inf)
    a, b = a.double(), b.double()
    if a.isnan().any():
        raise FoldError("the model's output on the probe batch is NaN, so that nothing can be checked on it")
    apart = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(math.inf)  # equal infinities are no difference
    absolute = apart.max().item() if apart.numel() else 0.0
    largest = torch.where(a.isfinite(), a.abs(), 0.0).max().item() if a.numel() else 0.0
    return Difference(absolute, absolute / (max(largest, tiny) or 1.0))


def first_difference(
    expected: Sequence[Record], given: Sequence[Record], tolerance: float, moved: Collection[str]
) -> str | None:
    """The first module, by name, whose outputs differ in runs of two networks with the same names; None if none does.

    Args:
        expected, given: what `run` recorded.
        tolerance: the largest difference that is none, relative to the largest element of an output. An output that is
            less than a millionth of the one before it is rounding noise, and counts as a millionth.
        moved: modules whose outputs are meant to differ.
    """
    outputs: dict[str, list[Tensor]] = {}
    for record in given:
        outputs.setdefault(record.name, []).append(record.sample)
    before = 0.0
    for record in expected:
        a = record.sample
        finite = a[a.isfinite()]
        largest = finite.abs().max().item() if len(finite) else 0.0
        if record.name not in moved:
            b = outputs[record.name].pop(0) if outputs.get(record.name) else a[:0]
            if a.shape != b.shape:
                return record.name
            apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            if not (apart <= tolerance * max(largest, 1e-6 * before)).all():
                return record.name
        before = largest
    return None
