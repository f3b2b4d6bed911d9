"""The check of a fold against the original model, which distinguishes rounding errors from a wrong fold."""

from __future__ import annotations

import copy
import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError
from diracnets.folding.difference import ROUNDING, Difference, Run, compare, first_difference, run
from diracnets.folding.probe import other_inputs
from diracnets.folding.rules import Plan
from diracnets.folding.tree import leaves, mapped

TOLERANCE = 1e-9  # relative, in float64
LAYER_TOLERANCE = 1e-6  # relative, in float64, for the outputs of layers, which may be all rounding noise


class Witness:
    """The original on a batch, in one dtype: what folded networks are compared with.

    Args:
        model: the original.
        inputs: its arguments.
        what: names the original in errors.

    Attributes:
        run: its output and records.
        eps: the relative rounding error of what it computes with.
        tolerance: the largest difference of outputs that is allowed, relative to the largest output.
        layer_tolerance: the same for the outputs of each layer.
        ill_conditioned: after a check, the relative difference that rounding errors alone make in its output; 0 if the
            fold was within the tolerance.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], what: str) -> None:
        self.model, self.inputs, self.what = model, inputs, what
        self.run = run(model, inputs, what)
        tensors = (leaf for leaf in (*leaves(self.run.output), *model.parameters()) if isinstance(leaf, Tensor))
        dtypes = {record.dtype for record in self.run.records} | {tensor.dtype for tensor in tensors}
        self.eps = max((torch.finfo(each).eps for each in dtypes if each.is_floating_point), default=2.0**-52)
        lowered = 0.0 if self.eps <= 2.0**-52 else ROUNDING * self.eps
        self.tolerance, self.layer_tolerance = max(TOLERANCE, lowered), max(LAYER_TOLERANCE, lowered)
        self.ill_conditioned = 0.0

    def elsewhere(self) -> Witness | None:
        """The original on the first batch of another size and range that it accepts; None if it accepts none."""
        for inputs in other_inputs(self.inputs):
            try:
                other = Witness(self.model, inputs, self.what)
                finite = math.isfinite(compare(other.run, other.run).absolute)
            except FoldError:
                continue
            if finite and all(bool(record.sample.isfinite().all()) for record in other.run.records):
                return other
        return None

    def check(self, folded: nn.Module, plan: Plan, tiny: float = 0.0) -> Run:
        """Run a folded model with the same names, and compare its output and those of its layers.

        Args:
            folded: the model.
            plan: how it was folded.
            tiny: see `compare`.

        Raises:
            FoldError: it differs from the original; the message names the first layer that does.
        """
        given = run(folded, self.inputs, f"the folded model{self.what.removeprefix('the model')}")
        found = compare(self.run, given, plan.moved, tiny)
        where = first_difference(self.run.records, given.records, self.layer_tolerance, plan.moved)
        if where is not None or not found.relative <= self.tolerance:
            self._judge(folded, plan, found, tiny)
        return given

    def _judge(self, folded: nn.Module, plan: Plan, found: Difference, tiny: float) -> None:
        """Refuse a wrong fold, accept rounding errors: some networks amplify them, and some outputs are nothing else.

        Each layer gets the input that it has in the original, so that errors do not add up. It may differ by as much as
        rounding noise in the weights changes.
        """
        again = run(self.model, self.inputs, self.what, keep=True)
        steadiness = max(LAYER_TOLERANCE, ROUNDING * self.eps)
        unsteady = first_difference(self.run.records, again.records, steadiness)
        if unsteady is not None or compare(self.run, again).relative > steadiness:
            first = f", first at {unsteady[0]!r}" if unsteady else ""
            raise FoldError(
                f"the model gives different outputs for the same input{first}, so the fold cannot be checked: "
                "is there a dropout or another random number in its forward?"
            )
        rounded, inputs = perturbed(self.model, self.inputs, self.eps)
        noise = compare(self.run, run(rounded, inputs, self.what), (), tiny).relative
        steady = {name: outputs for name, outputs in again.kept.items() if name not in plan.moved}
        layers = run(rounded, inputs, self.what, given=steady).records  # a batch norm gets its convolution's noise too
        forced = run(folded, self.inputs, "the folded model", given=steady)
        where = first_difference(self.run.records, forced.records, max(TOLERANCE, self.eps), plan.moved, layers)
        allowed = max(self.tolerance, ROUNDING * noise)
        if where is not None or not found.relative <= allowed:
            _refuse(plan, where, found.relative, allowed)
        if found.relative > self.tolerance:
            self.ill_conditioned = noise


def perturbed(model: nn.Module, inputs: tuple[Any, ...], eps: float) -> tuple[nn.Module, tuple[Any, ...]]:
    """A copy of a model and its inputs with the noise of rounding to a relative precision of `eps`."""
    generator = torch.Generator().manual_seed(0)

    def noisy(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
        return (value.double() * (1 + eps * noise.to(value.device))).to(value.dtype)

    model = copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.copy_(noisy(tensor))
    return model, mapped(noisy, inputs)


def _refuse(plan: Plan, where: tuple[str, float] | None, relative: float, allowed: float) -> NoReturn:
    """Say where two models differ."""
    if where is None:
        raise FoldError(
            f"the folded model is not the original: their outputs differ by {relative:.1e} of the largest one, and "
            f"{allowed:.1e} is allowed, although all layers agree"
        )
    name, apart = where
    parts = {part for entry in plan.folded if name in (entry.layer, entry.norm) for part in (entry.layer, entry.norm)}
    with_parts = " and ".join(repr(part) for part in sorted(str(part) for part in parts - {name}))
    how_far = f"by {apart:.1e} of its largest output" if math.isfinite(apart) else "which was zero, or of another shape"
    raise FoldError(
        f"the folded model is not the original: the first layer to differ is {name!r}"
        f"{f', with {with_parts}' if with_parts else ''}, {how_far}"
    )
