"""How far two networks differ on a batch: in their outputs, in those of each layer, and in which layer first."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError, first_line
from diracnets.folding.flow import first_floating
from diracnets.folding.tree import layout_of, leaves, mapped

SAMPLE = 2**14  # elements of a layer's output that are compared
ROUNDING = 16.0  # times the rounding error that the original itself shows


@dataclass(frozen=True)
class Record:
    """The output of a module in a run.

    Attributes:
        name: the module's.
        ndim: how many dimensions the output has.
        dtype: of the output.
        sample: elements of it, evenly spaced, in float64.
    """

    name: str
    ndim: int
    dtype: torch.dtype
    sample: Tensor


@dataclass(frozen=True)
class Difference:
    """The difference between two outputs.

    Attributes:
        absolute: the largest absolute difference.
        relative: the same divided by the largest absolute output; the largest quotient if there are several outputs.
        unequal: how many integers differ. Rounding can cause that where a network rounds, sorts or chooses.
    """

    absolute: float = 0.0
    relative: float = 0.0
    unequal: int = 0


@dataclass
class Run:
    """A network's output on a batch, and the outputs of its modules without submodules, in the order of their calls.

    Attributes:
        output: the network's.
        records: of floating-point outputs of modules.
        kept: the whole outputs, by module, if they were asked for.
    """

    output: Any = None
    records: list[Record] = field(default_factory=list)
    kept: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def run(
    model: nn.Module,
    inputs: tuple[Any, ...],
    what: str,
    *,
    keep: bool = False,
    given: dict[str, list[Tensor]] | None = None,
) -> Run:
    """Call a network once, on a copy of the inputs, without autocast around it.

    Args:
        model: the network.
        inputs: its arguments.
        what: names the network in errors.
        keep: whether to keep the whole outputs of modules.
        given: outputs, by module, that replace the module's own in what follows. Its own are recorded.

    Raises:
        FoldError: the network fails.
    """
    result, handles = Run(), []
    left = {name: list(outputs) for name, outputs in (given or {}).items()}
    for name, module in model.named_modules():
        if next(module.children(), None) is not None or isinstance(module, torch.jit.ScriptModule):
            continue  # a scripted module takes no hooks

        def hook(_module: nn.Module, _inputs: object, output: object, name: str = name) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            sample = output.detach().flatten()[:: output.numel() // SAMPLE | 1].cpu().double().clone()
            result.records.append(Record(name, output.ndim, output.dtype, sample))
            if keep:
                result.kept[name].append(output.detach().clone())
            return left[name].pop(0).clone() if left.get(name) else None

        handles.append(module.register_forward_hook(hook))
    inputs = mapped(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
    like = first_floating(model)
    device = "cpu" if like is None else like.device.type
    try:
        with torch.autocast(device, enabled=False), torch.autocast("cpu", enabled=False):
            result.output = model(*inputs)
    except Exception as error:  # the model's code may raise anything
        raise FoldError(
            f"{what} cannot be run to check the fold ({type(error).__name__}: {first_line(error)})"
            + ("; is the example input one that it takes?" if what == "the model" else "")
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return result


def compare(expected: Run, given: Run, moved: Collection[str] = (), tiny: float = 0.0) -> Difference:
    """The difference between the outputs of two networks: tensors, or structures of them.

    If all outputs are integers, such as classes or bytes, the last floating-point outputs of modules are compared.

    Args:
        expected, given: of two networks, or of one.
        moved: modules whose outputs are expected to differ.
        tiny: the smallest number that a difference is divided by.

    The difference is infinite for unequal values that are no tensors, and for different shapes.

    Raises:
        FoldError: outputs that are not numbers, or `expected` holds NaN.

    >>> compare(Run(torch.tensor([1.0, 4.0])), Run(torch.tensor([1.0, 5.0])))
    Difference(absolute=1.0, relative=0.25, unequal=0)
    """
    ours, theirs = leaves(expected.output), leaves(given.output)
    if layout_of(expected.output) != layout_of(given.output):
        return Difference(math.inf, math.inf)
    if not any(isinstance(leaf, Tensor) and leaf.numel() for leaf in ours):
        raise FoldError("the model returns no tensor that could be compared; wrap it in a module that returns tensors")
    found = [_compare(leaf, other, tiny) for leaf, other in zip(ours, theirs, strict=True)]
    if not any(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in ours):
        last, other = (
            next((r for r in reversed(each.records) if r.name not in moved), None) for each in (expected, given)
        )
        if last is not None and other is not None:
            found.append(_compare(last.sample, other.sample, tiny))
        elif any(each.unequal for each in found):
            found.append(Difference(math.inf, math.inf))
    absolute, relative = max(each.absolute for each in found), max(each.relative for each in found)
    return Difference(absolute, relative, sum(each.unequal for each in found))


def _compare(expected: object, given: object, tiny: float) -> Difference:
    if not isinstance(expected, Tensor) or not isinstance(given, Tensor):
        if not isinstance(expected, int | float | str | None):
            raise FoldError(
                f"the model returns a {type(expected).__name__}, which cannot be compared; "
                "wrap it in a module that returns tensors"
            )
        return Difference() if expected == given else Difference(math.inf, math.inf)
    if expected.shape != given.shape:
        return Difference(math.inf, math.inf)
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (expected.detach().cpu(), given.detach().cpu()))
    if not a.is_floating_point():
        return Difference(unequal=int((a != b).sum())) if a.dtype == b.dtype else Difference(math.inf, math.inf)
    a, b = a.double(), b.double()
    if a.isnan().any():
        raise FoldError("the model's output on the probe batch is NaN, so the fold cannot be checked")
    apart = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(math.inf)  # equal infinities are no difference
    absolute = apart.max().item() if apart.numel() else 0.0
    largest = torch.where(a.isfinite(), a.abs(), 0.0).max().item() if a.numel() else 0.0
    return Difference(absolute, absolute / (max(largest, tiny) or 1.0))


def first_difference(
    expected: Sequence[Record],
    given: Sequence[Record],
    tolerance: float,
    moved: Collection[str] = (),
    noisy: Sequence[Record] = (),
) -> tuple[str, float] | None:
    """The name of the first module whose outputs differ in runs of two networks with the same names; None if none do.

    Args:
        expected, given: what `run` recorded.
        tolerance: the largest difference that is allowed, relative to the largest element of an output. An output that
            is less than a millionth of the previous one is rounding noise, and counts as a millionth.
        moved: modules whose outputs are expected to differ.
        noisy: what `run` recorded of the original with rounding noise in its weights. `ROUNDING` times the difference
            that this noise makes is allowed too.

    Returns:
        The name, and the difference relative to the largest element; infinite where all are zero.
    """
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    noises: dict[str, list[Tensor]] = defaultdict(list)
    for lists, records in ((outputs, given), (noises, noisy)):
        for record in records:
            lists[record.name].append(record.sample)
    before = 0.0
    for record in expected:
        a = record.sample
        finite = a[a.isfinite()]
        largest = finite.abs().max().item() if len(finite) else 0.0
        noise = noises[record.name].pop(0) if noises[record.name] else a
        if record.name not in moved:
            b = outputs[record.name].pop(0) if outputs[record.name] else a[:0]
            if a.shape != b.shape:
                return record.name, math.inf
            least = ROUNDING * torch.finfo(record.dtype).tiny  # where numbers get sparse
            allowed = tolerance * max(largest, 1e-6 * before, least) + ROUNDING * _apart(a, noise)
            if not (apart := _apart(a, b)) <= allowed:
                return record.name, apart / largest if largest else math.inf
        before = largest
    return None


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, infinite where just one of two is NaN."""
    if a.shape != b.shape or not a.numel():
        return 0.0
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(math.inf).max().item()
