"""Fold: a model without Dirac parameterization and, as far as it is exact, without batch norms; proven on the spot."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diracnets.errors import FoldError, UsageError
from diracnets.folding.chain import flatten
from diracnets.folding.difference import ROUNDING, Difference, compare, run
from diracnets.folding.flow import follow, has_forward_hooks, inside
from diracnets.folding.fuse import BATCH_NORMS
from diracnets.folding.probe import in_float64, lowest_dtype, probe_inputs
from diracnets.folding.proof import TOLERANCE, Witness
from diracnets.folding.rules import Folded, Plan, make_plan
from diracnets.folding.surgery import as_in, copied, is_finite, rebuilt, replace_inside, tensors_of
from diracnets.folding.tree import leaves
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d
from diracnets.nn.diracify import undiracify
from diracnets.nn.kernels import warn_of_unsafe

DIRAC = (DiracConv1d, DiracConv2d, DiracConv3d)


@dataclass(frozen=True)
class FoldReport:
    """What a fold did, and how exact it is; `dataclasses.asdict` makes it plain JSON values.

    Attributes:
        folded: what went into which layer, in order.
        left: what stays as it was, by name, with the reason.
        chain: whether the result is one flat chain.
        dtype: the dtype that the model computes in, such as "float32".
        probe: the shapes of the tensors that both networks were run on.
        max_abs_float64: the largest absolute difference of the outputs, with both networks in float64; None where the
            model does not run in float64.
        max_rel_float64: that, divided by the largest absolute output; at most 1e-9, but for models that amplify
            rounding errors, see `notes`.
        max_abs, max_rel: the same in the model's dtype, with the result as it is returned. Where outputs are whole
            numbers only, these are differences of the last floating-point outputs of layers.
        parameters_before, parameters_after: numbers of parameters.
        other_probe: the shapes of the tensors of another size and range that both networks were run on too; empty where
            the model takes no others.
        notes: what else is to be known of how exact it is, and why the result is no flat chain, in sentences.
    """

    folded: tuple[Folded, ...]
    left: dict[str, str]
    chain: bool
    dtype: str
    probe: tuple[tuple[int, ...], ...]
    max_abs_float64: float | None
    max_rel_float64: float | None
    max_abs: float
    max_rel: float
    parameters_before: int
    parameters_after: int
    other_probe: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {kind: sum(entry.kind == kind for entry in self.folded) for kind in ("dirac", "batch norm")}
        lines = [
            f"folded      {counts['dirac']} Dirac parameterizations and {counts['batch norm']} batch norms"
            + (" into one flat chain" if self.chain else ""),
            f"parameters  {self.parameters_before:,} -> {self.parameters_after:,}",
            f"checked on  {_sizes(self.probe)}"
            + (f", and on {_sizes(self.other_probe)} of another range" if self.other_probe else ""),
        ]
        if self.max_abs_float64 is not None:
            lines.append(
                f"  float64   largest difference {self.max_abs_float64:.1e}, relative {self.max_rel_float64:.1e}"
            )
        lines.append(f"  {self.dtype:<9} largest difference {self.max_abs:.1e}, relative {self.max_rel:.1e}")
        lines += [f"note        {note}" for note in self.notes]
        lines += [f"left        {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def _sizes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes)


def fold(model: nn.Module, example_input: object = None, *, inplace: bool = False) -> nn.Module:
    """Turn Dirac convolutions, and the batch norms beside convolutions and linear layers, into ordinary layers.

    What is folded is decided by the data flow (`torch.fx`), and only what is exact is done. A Dirac convolution becomes
    an ordinary one. A batch norm goes into the layers before it, through pooling, Identity and Dropout where the order
    can be exchanged, or into those behind it, or into another batch norm. All the rest is left, and named with the
    reason in the report, a `FoldReport` in the result's attribute `fold_report`. Where the model cannot be traced, its
    batch norms are left.

    The weights are computed in float64 and keep dtype, device and memory format. Then the original and the folded model
    run on the same batch, and on one of another size and range where the model takes one: in float64, where they may
    differ by 1e-9 of the largest output, and by 1e-6 in each layer's; and in the model's dtype, where they may differ
    by 16 times the rounding error that the original itself shows against float64. A model that does not run in float64
    is checked in its own dtype alone, against what rounding noise in its weights changes. If such noise changes more
    than the check allows, which very deep networks amplify, each layer is compared on the inputs that it has in the
    original. The report's notes say so.

    Args:
        model: any module in evaluation mode. Its hooks run in the check, on copies of it.
            A wrapper that only passes its arguments on, such as `DataParallel`, `AveragedModel` or what `torch.compile`
            returns, is taken off.
        example_input: a tensor, or a tuple of arguments, to check the fold on; None if the model has an attribute
            `input_size`, (channels, height, width), as DiracNets have. It holds for as many dimensions.
        inplace: replace the layers in `model` itself, with an Identity for each folded batch norm; no wrapper is taken
            off then.

    Returns:
        A model whose data flow is a straight line of torch's layers, as a DiracNet's is, becomes one flat
        `nn.Sequential` without Dropout and Identity. Any other, also one whose code enters contexts or stores anything,
        and every one with `inplace`, keeps its class, with its layers replaced. The result is in evaluation mode, and
        no parameter of it asks for gradients.

    Warns:
        KernelWarning: training a convolution of the result can crash on this processor, which running it cannot.

    Raises:
        FoldError: the model is in training mode, has a batch norm without running statistics or with negative
            variances, has weights that are not finite, cannot be copied or run, gives another output each time, the
            folded weights do not fit the dtype, or the two models differ: the message names the layer where it starts.
        UsageError: no module, or an example input that is neither a tensor nor a tuple; or two Dirac convolutions
            share their weight but not alpha and beta, so that one folded weight cannot serve both.

    Source: Zagoruyko & Komodakis 2017, section 3.

    >>> from diracnets.nn.dirac import DiracConv2d
    >>> model = nn.Sequential(DiracConv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> folded = fold(model, torch.randn(2, 3, 8, 8))
    >>> folded
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
    )
    >>> folded.fold_report.max_rel_float64 < 1e-12
    True
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"fold takes a torch.nn.Module, not a {type(model).__name__}")
    devices = {tensor.device for tensor in tensors_of(model).values() if tensor.device.type == "cuda"}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        folded = _fold(model, example_input, inplace)
    warn_of_unsafe(folded)
    return folded


def _fold(model: nn.Module, example_input: object, inplace: bool) -> nn.Module:
    within = model
    while (wrapped := inside(within)) is not None and not has_forward_hooks(within):
        within = wrapped
    if not inplace:
        model = within
    check_foldable(model)
    inputs = probe_inputs(within, example_input)
    dtype = lowest_dtype(model)
    dirac = [name for name, module in model.named_modules() if type(module) in DIRAC]
    before = sum(parameter.numel() for parameter in model.parameters())

    own = Witness(copied(model), inputs, "the model")
    wide, notes = _in_float64(model, inputs)
    base = undiracify(copied(model), example_input=inputs, inplace=True)
    undone = [Folded(name, "dirac") for name in dirac if type(base.get_submodule(name)) not in DIRAC]
    plain = in_float64(copied(base)) if wide is None else _quietly_undiracified(copied(wide.model), wide.inputs)
    flow = follow(plain)
    ranks: dict[str, set[int]] = defaultdict(set)
    for record in own.run.records:
        ranks[record.name].add(record.ndim)
    plan = make_plan(plain, flow, ranks)
    folded = rebuilt(plain, plan.layers)
    exact = None if wide is None else _check(wide, folded, flatten(flow, folded), plan)

    tiny = torch.finfo(dtype).tiny  # what is smaller may vanish in the model's dtype
    error = 0.0 if wide is None else compare(wide.run, own.run, (), tiny).relative
    if error == math.inf:
        raise FoldError(
            f"the model's output on the probe batch overflows in {dtype}: give an example_input of real data"
        )
    own.tolerance = max(TOLERANCE, ROUNDING * (error + own.eps))
    if wide is not None:  # has seen that the layers are right, but if rounding errors hide it
        own.layer_tolerance = 0.0 if wide.ill_conditioned else math.inf
    layers = {name: as_in(layer, base.get_submodule(name), name) for name, layer in plan.layers.items()}
    parts = rebuilt(base, layers)
    chain = None if inplace else flatten(flow, parts)
    rounded = _check(own, parts, chain, plan, tiny)
    other = (wide or own).elsewhere()
    if other is not None:
        folded = parts if wide is None else folded
        _check(other, folded, flatten(flow, folded), plan)

    noise = max(witness.ill_conditioned for witness in (own, wide or own, other or own))
    if noise:
        notes.append(
            f"rounding errors alone change its output by {noise:.1e} of the largest one, so that the outputs cannot "
            "agree better; each layer was also compared on what it gets in the original"
        )
    if rounded.unequal:
        notes.append(f"{rounded.unequal:,} whole numbers of its output differ, where rounding decides")
    if not inplace:
        notes += [f"it is no flat chain, since {effect}" for effect in flow.effects]
    result = parts if chain is None else chain
    if inplace:
        replace_inside(model, layers)
        result = _quietly_undiracified(model, inputs)
    result.eval().requires_grad_(False)
    result.__dict__["fold_report"] = FoldReport(
        folded=(*undone, *plan.folded),
        left=plan.left,
        chain=chain is not None,
        dtype=str(dtype).removeprefix("torch."),
        probe=_shapes(inputs),
        max_abs_float64=None if exact is None else exact.absolute,
        max_rel_float64=None if exact is None else exact.relative,
        max_abs=rounded.absolute,
        max_rel=rounded.relative,
        parameters_before=before,
        parameters_after=sum(parameter.numel() for parameter in result.parameters()),
        other_probe=() if other is None else _shapes(other.inputs),
        notes=tuple(notes),
    )
    return result


def _quietly_undiracified(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """The model itself without Dirac convolutions, after a warning has named those that stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return undiracify(model, example_input=inputs, inplace=True)


def _shapes(inputs: object) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(leaf.shape) for leaf in leaves(inputs) if isinstance(leaf, Tensor))


def _in_float64(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Witness | None, list[str]]:
    """The model in float64 on a batch, or None where it does not run so; and what is to be known of that."""
    try:
        wide = Witness(in_float64(copied(model)), in_float64(inputs), "the model in float64")
    except FoldError as error:
        return None, [f"{error}; it is checked in its own dtype alone"]
    lowered = wide.eps > torch.finfo(torch.float64).eps
    return wide, ["it casts to a lower precision also where its weights are float64"] if lowered else []


def _check(witness: Witness, folded: nn.Module, chain: nn.Module | None, plan: Plan, tiny: float = 0.0) -> Difference:
    """How far a folded model, or its chain where it has one, is from the original.

    Raises:
        FoldError: too far.
    """
    given = witness.check(copied(folded), plan, tiny)
    if chain is None:
        return compare(witness.run, given, plan.moved, tiny)
    straight = run(copied(chain), witness.inputs, "the flat chain")
    apart = compare(given, straight, (), tiny).relative
    if not apart <= witness.tolerance:
        raise FoldError(
            f"the flat chain is not the folded model: their outputs differ by {apart:.1e} of the largest one"
        )
    return compare(witness.run, straight, (), tiny)


def check_foldable(model: nn.Module) -> None:
    """Refuse a model whose evaluation is not that of fixed, finite numbers.

    Raises:
        FoldError: see `fold`.
    """
    if isinstance(model, torch.jit.ScriptModule) or type(model).__module__.startswith("torch._dynamo"):
        raise FoldError("a scripted model, or a compiled one in place, cannot be changed: fold it before that")
    for name, tensor in tensors_of(model).items():
        if is_lazy(tensor) or tensor.is_meta:
            raise FoldError(f"{name} has no values yet; load or initialize the model before folding it")
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if module.training:
            raise FoldError(f"{where} is in training mode, where nothing can be folded: call model.eval() first")
        if isinstance(module, BATCH_NORMS):
            if module.running_mean is None or module.running_var is None:
                raise FoldError(f"{where} has no running statistics: what it computes depends on the batch")
            for key, statistic in (("running_mean", module.running_mean), ("running_var", module.running_var)):
                if not is_finite(statistic):
                    raise FoldError(f"{name}.{key} is not finite: train or load the model again".lstrip("."))
            if (module.running_var < 0).any():
                raise FoldError(f"{name}.running_var is negative: load the model again".lstrip("."))
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not is_finite(parameter):
            raise FoldError(f"{name} is not finite: train or load the model again")
