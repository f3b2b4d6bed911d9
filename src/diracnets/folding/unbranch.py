"""Unbranch: make a chain of a trained residual network that computes the same, with more channels."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError
from diracnets.folding.branches import Straight, refuse_untraced, straightened
from diracnets.folding.chain import CARRIED, flatten
from diracnets.folding.difference import ROUNDING, Difference, compare, run
from diracnets.folding.flow import follow, has_forward_hooks, inside
from diracnets.folding.fold import check_foldable, quietly_undiracified
from diracnets.folding.pieces import pair
from diracnets.folding.probe import in_float64, lowest_dtype, probe_inputs, smaller_than_usual
from diracnets.folding.proof import TOLERANCE, Witness, perturbed
from diracnets.folding.report import shapes_of, sizes
from diracnets.folding.rules import make_plan
from diracnets.folding.surgery import copied, is_finite, rebuilt, tensors_of
from diracnets.nn.kernels import warn_of_unsafe
from diracnets.nn.module import check_module


@dataclass(frozen=True)
class UnbranchReport:
    """What a chain without skip-connections costs more, and how exact it is.

    Attributes:
        sums: how many sums and concatenations of the network are gone.
        widest: the most channels that a convolution of the network has, and one of the chain.
        dtype: the dtype that the network computes in, such as "float32".
        probe: the shapes of the tensors that both were run on.
        other_probe: the shapes of those of another size and range; empty if the network accepts no others.
        max_abs_float64, max_rel_float64: the largest absolute difference of the outputs, with both in float64, and the
            same divided by the largest absolute output.
        max_abs, max_rel: the same in the network's dtype.
        parameters_before, parameters_after: numbers of parameters.
        multiply_adds_before, multiply_adds_after: of convolutions and linear layers, for one image of `probe`.
        notes: sentences on how exact it is.
    """

    sums: int
    widest: tuple[int, int]
    dtype: str
    probe: tuple[tuple[int, ...], ...]
    other_probe: tuple[tuple[int, ...], ...]
    max_abs_float64: float
    max_rel_float64: float
    max_abs: float
    max_rel: float
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.sums} sums removed; largest difference {self.max_abs:.1e} in {self.dtype}>"

    def __str__(self) -> str:
        params, macs = (
            (self.parameters_before, self.parameters_after),
            (self.multiply_adds_before, self.multiply_adds_after),
        )
        lines = [
            f"removed     {self.sums} sums of skip-connections: one flat chain",
            "channels    at most {:,} -> {:,}".format(*self.widest),
            "parameters  {:,} -> {:,}, {:.2f} times as many".format(*params, params[1] / max(params[0], 1)),
            "work        {:,} -> {:,} multiply-adds, {:.2f} times as many".format(*macs, macs[1] / max(macs[0], 1)),
            f"checked on  {sizes(self.probe)}"
            + (f", and on {sizes(self.other_probe)} of another range" if self.other_probe else ""),
            f"  float64   largest difference {self.max_abs_float64:.1e}, relative {self.max_rel_float64:.1e}",
            f"  {self.dtype:<9} largest difference {self.max_abs:.1e}, relative {self.max_rel:.1e}",
        ]
        return "\n".join([*lines, *(f"note        {note}" for note in self.notes)])


def unbranch(model: nn.Module, example_input: Tensor | None = None) -> nn.Sequential:
    """Make a chain of a trained network with skip-connections: the same function, computed with more channels.

    Batch norms and Dirac convolutions are folded first. What a skip-connection carries is then carried by more channels
    of the convolutions that it passes, whose filters are identities. After a ReLU these values are not negative, so
    that ReLUs let them through. Signed ones, as in pre-activation networks, are carried as `relu(x)` and `relu(-x)`. A
    convolution on a skip-connection becomes a part of the one that it is added to. A ResNet-18 gets about 1.7 times
    the work, a Wide ResNet about five times.

    The data flow (`torch.fx`) decides. Beside a skip-connection there may be convolutions padded with zeros (those
    with groups become full ones), batch norms, ReLUs and other piecewise linear functions (LeakyReLU, PReLU, ReLU6,
    Hardtanh, clamp), sums and differences, concatenations and slices of channels, average pooling, and products with
    numbers of each channel. Where all paths meet there may be any layer of torch's.

    The chain is computed in float64 and checked as by `fold`: its outputs may differ by 1e-9 of the largest one in
    float64, on two batches of different size and range, and by 16 times the network's own rounding error in its dtype.

    Args:
        model: any module in evaluation mode whose input is one tensor.
        example_input: a batch to check the chain on; None if the model has an attribute `input_size`, (channels,
            height, width), as our networks have. The result holds for inputs of as many dimensions.

    Returns:
        A flat `nn.Sequential` in evaluation mode, on the model's device and in its dtype, whose parameters do not
        require gradients. Its attribute `unbranch_report` is an `UnbranchReport`.

    Raises:
        FoldError: no chain computes exactly the same, and the message names the layer and the reason; or the model is
            in training mode, cannot be traced, run or copied, or has weights that are not finite; or the two differ.
        UsageError: `model` is no module, or the example input is no tensor.

    Source: the idea of reserving and merging, Meng et al. 2021, arXiv 2111.00687.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    ...     def forward(self, x):
    ...         return torch.relu(x + self.second(torch.relu(self.first(x))))
    >>> unbranch(nn.Sequential(nn.ReLU(), Block()).eval(), torch.randn(2, 4, 8, 8))
    Sequential(
      (0): ReLU()
      (1): Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (2): ReLU()
      (3): Conv2d(8, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
      (4): ReLU()
    )
    """
    check_module(model, "unbranch")
    devices = {tensor.device for tensor in tensors_of(model).values() if tensor.device.type == "cuda"}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        chain = _unbranch(model, example_input)
    warn_of_unsafe(chain)
    return chain


def _unbranch(model: nn.Module, example_input: Tensor | None) -> nn.Sequential:
    while (wrapped := inside(model)) is not None and not has_forward_hooks(model):
        model = wrapped
    check_foldable(model)
    inputs = probe_inputs(model, example_input)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise FoldError("a chain has one input, a tensor: give one as the example input")
    dtype = lowest_dtype(model)
    if others := {p.dtype for p in model.parameters() if p.is_floating_point()} - {dtype}:
        raise FoldError(f"its layers compute in {dtype} and {others.pop()}: convert the model to one dtype first")
    own = Witness(copied(model), inputs, "the model")
    wide = Witness(in_float64(copied(model)), in_float64(inputs), "the model in float64")
    exact, how = _straight(quietly_undiracified(copied(wide.model), wide.inputs), wide)
    for name in CARRIED:
        if hasattr(model, name):
            exact.__dict__[name] = getattr(model, name)
    notes = [note for note in (smaller_than_usual(model, inputs),) if note and example_input is None]
    found = _agree(wide, exact, notes)
    other = wide.elsewhere()
    if other is not None:
        _agree(other, exact, notes)
    if how.uneven:
        _agree_at_every_size(wide, exact, notes)
    rounded = copied(exact).to(inputs[0].device, dtype)
    for name, parameter in rounded.named_parameters():
        if not is_finite(parameter):
            raise FoldError(f"{name} of the chain exceeds {dtype}: convert the model to float32 first")
    tiny = torch.finfo(dtype).tiny  # smaller numbers may vanish in the model's dtype
    error = compare(wide.run, own.run, (), tiny).relative
    if error == math.inf:
        raise FoldError(f"the model's output on the probe batch overflows in {dtype}: give an example_input of data")
    own.tolerance = max(TOLERANCE, ROUNDING * (error + own.eps))
    given = _agree(own, rounded, notes, tiny)
    work = [_cost(network, inputs) for network in (model, rounded)]
    rounded.requires_grad_(False)
    rounded.__dict__["unbranch_report"] = UnbranchReport(
        sums=how.sums,
        widest=(work[0][1], work[1][1]),
        dtype=str(dtype).removeprefix("torch."),
        probe=shapes_of(inputs),
        other_probe=() if other is None else shapes_of(other.inputs),
        max_abs_float64=found.absolute,
        max_rel_float64=found.relative,
        max_abs=given.absolute,
        max_rel=given.relative,
        parameters_before=sum(parameter.numel() for parameter in model.parameters()),
        parameters_after=sum(parameter.numel() for parameter in rounded.parameters()),
        multiply_adds_before=work[0][0],
        multiply_adds_after=work[1][0],
        notes=tuple(dict.fromkeys(notes)),
    )
    return rounded


def _straight(plain: nn.Module, wide: Witness) -> tuple[nn.Sequential, Straight]:
    """The chain of a model in float64 without Dirac convolutions, and how it was found."""
    ranks: dict[str, set[int]] = defaultdict(set)
    for record in wide.run.records:
        ranks[record.name].add(record.ndim)
    flow = follow(plain)
    refuse_untraced(plain, flow)
    plan = make_plan(plain, flow, ranks)
    folded = rebuilt(plain, plan.layers)
    if (chain := flatten(flow, folded)) is not None:
        return chain, Straight([])
    found = straightened(folded, flow, wide.inputs[0], plain)
    return nn.Sequential(*found.layers).eval(), found


def _agree_at_every_size(wide: Witness, chain: nn.Sequential, notes: list[str]) -> None:
    """Check a chain at one size of image for each remainder that its strides distinguish.

    Raises:
        FoldError: it differs from the original at one of them.
    """
    strides = [pair(cast("int | tuple[int, ...]", layer.stride)) for layer in chain if hasattr(layer, "stride")]
    step = math.prod(max(stride) for stride in strides)
    first = wide.inputs[0]
    for length in range(2 * step, 3 * step):
        noise = torch.randn(1, first.shape[1], length, length, generator=torch.Generator().manual_seed(0))
        try:
            at = Witness(wide.model, (noise.to(first),), wide.what)
        except FoldError:  # it takes no images of this size
            continue
        try:
            _agree(at, chain, notes)
        except FoldError as error:
            raise FoldError(
                f"no chain computes the same on images of other sizes, such as {length}x{length}"
            ) from error


def _agree(witness: Witness, chain: nn.Module, notes: list[str], tiny: float = 0.0) -> Difference:
    """The difference between a chain and the original; FoldError if it is larger than rounding errors make it."""
    found = compare(witness.run, run(copied(chain), witness.inputs, "the chain"), (), tiny)
    if found.relative <= witness.tolerance:
        return found
    model, inputs = perturbed(witness.model, witness.inputs, witness.eps)
    noise = compare(witness.run, run(model, inputs, witness.what), (), tiny).relative
    if not found.relative <= ROUNDING * noise:
        raise FoldError(
            f"the chain is not the original: their outputs differ by {found.relative:.1e} of the largest one, and "
            f"{max(witness.tolerance, ROUNDING * noise):.1e} is allowed"
        )
    notes.append(f"rounding errors alone change its output by {noise:.1e} of the largest one")
    return found


def _cost(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Multiply-adds of convolutions and linear layers for one image, and the most channels of a convolution."""
    found: list[tuple[int, int]] = []

    def hook(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = cast(Tensor, layer.weight)
        found.append((weight[0].numel() * output[0].numel(), len(weight) if weight.ndim > 2 else 0))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        run(model, inputs, "the model")
    finally:
        for handle in handles:
            handle.remove()
    return sum(work for work, _ in found), max((channels for _, channels in found), default=0)
