"""Fold: remove the Dirac parameterization and, where it is exact, the batch norms; each result is checked at once."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from diracnets.errors import FoldError
from diracnets.folding.chain import flatten
from diracnets.folding.difference import ROUNDING, Difference, compare, run
from diracnets.folding.flow import follow, has_forward_hooks, inside
from diracnets.folding.fuse import BATCH_NORMS
from diracnets.folding.probe import in_float64, lowest_dtype, probe_inputs, smaller_than_usual
from diracnets.folding.proof import TOLERANCE, Witness
from diracnets.folding.report import FoldReport, shapes_of
from diracnets.folding.rules import Folded, Plan, make_plan
from diracnets.folding.surgery import as_in, copied, is_finite, rebuilt, replace_inside, tensors_of
from diracnets.nn.dirac import DiracConv
from diracnets.nn.diracify import undiracify
from diracnets.nn.kernels import warn_of_unsafe
from diracnets.nn.module import check_module

DIRAC = get_args(DiracConv)


def fold(model: nn.Module, example_input: object = None, *, inplace: bool = False) -> nn.Module:
    """Turn Dirac convolutions, and the batch norms next to convolutions and linear layers, into ordinary layers.

    The data flow (`torch.fx`) decides what is folded, and only exact folds are made. A Dirac convolution becomes an
    ordinary one. A batch norm is folded into the layers before it, into those after it, or into another batch norm.
    Pooling, Identity and Dropout may lie between the two if the order can be exchanged. Everything else is left.
    The result's attribute `fold_report`, a `FoldReport`, names what is left, with the reason. If the model cannot be
    traced, its batch norms are left.

    The weights are computed in float64 and keep their dtype, device and memory format. Then the original and the folded
    model run on the same batch, and on a batch of another size and range if the model accepts one. In float64, outputs
    may differ by 1e-9 of the largest one, and outputs of each layer by 1e-6. In the model's dtype, outputs may differ
    by 16 times the rounding error of the original, measured against float64. A model that does not run in float64 is
    checked only in its own dtype, against the effect of rounding noise in its weights. Very deep networks amplify such
    noise. If it changes more than the check allows, each layer is compared on the inputs that it has in the original,
    and the report's notes say so.

    Args:
        model: any module in evaluation mode. Its hooks run in the check, on copies of it.
            A wrapper that only passes its arguments on, such as `DataParallel`, `AveragedModel` or what `torch.compile`
            returns, is removed.
        example_input: a tensor, or a tuple of arguments, to check the fold on; None if the model has an attribute
            `input_size`, (channels, height, width), as DiracNets have. The result holds for inputs of as many
            dimensions.
        inplace: replace the layers in `model` itself, with an Identity for each folded batch norm. Wrappers stay.

    Returns:
        A model whose data flow is a straight line of torch's layers, such as a DiracNet, becomes one flat
        `nn.Sequential` without Dropout and Identity. Any other model keeps its class, with its layers replaced; so does
        one whose code enters contexts or stores anything, and every model with `inplace`. The result is in evaluation
        mode, and its parameters do not require gradients.

    Warns:
        KernelWarning: training a convolution of the result can crash on this processor; running it cannot.

    Raises:
        FoldError: the model is in training mode, has a batch norm without running statistics or with negative
            variances, has weights that are not finite, cannot be copied or run, or gives another output each time; or
            the folded weights do not fit the dtype; or the two models differ (the message names the first layer).
        UsageError: `model` is no module, or the example input is neither a tensor nor a tuple; or two Dirac
            convolutions share their weight but not alpha and beta, so that one folded weight cannot serve both.

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
    check_module(model, "fold")
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
    if smaller := smaller_than_usual(within, inputs) if example_input is None else None:
        notes.append(smaller)
    base = undiracify(copied(model), example_input=inputs, inplace=True)
    undone = [Folded(name, "dirac") for name in dirac if type(base.get_submodule(name)) not in DIRAC]
    plain = in_float64(copied(base)) if wide is None else quietly_undiracified(copied(wide.model), wide.inputs)
    flow = follow(plain)
    ranks: dict[str, set[int]] = defaultdict(set)
    for record in own.run.records:
        ranks[record.name].add(record.ndim)
    plan = make_plan(plain, flow, ranks)
    folded = rebuilt(plain, plan.layers)
    exact = None if wide is None else _check(wide, folded, flatten(flow, folded), plan)

    tiny = torch.finfo(dtype).tiny  # smaller numbers may vanish in the model's dtype
    error = 0.0 if wide is None else compare(wide.run, own.run, (), tiny).relative
    if error == math.inf:
        raise FoldError(
            f"the model's output on the probe batch overflows in {dtype}: give an example_input of real data"
        )
    own.tolerance = max(TOLERANCE, ROUNDING * (error + own.eps))
    if wide is not None:  # it has shown that the layers are right, unless rounding errors hide it
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
            f"rounding errors alone change its output by {noise:.1e} of the largest one, so the outputs cannot agree "
            "better; each layer was also compared on the input that it has in the original"
        )
    if rounded.unequal:
        notes.append(f"{rounded.unequal:,} integers of its output differ, where rounding decides")
    if not inplace:
        notes += [f"it is not a flat chain, because {effect}" for effect in flow.effects]
    result = parts if chain is None else chain
    if inplace:
        replace_inside(model, layers)
        result = quietly_undiracified(model, inputs)
    result.eval().requires_grad_(False)
    result.__dict__["fold_report"] = FoldReport(
        folded=(*undone, *plan.folded),
        left=plan.left,
        chain=chain is not None,
        dtype=str(dtype).removeprefix("torch."),
        probe=shapes_of(inputs),
        max_abs_float64=None if exact is None else exact.absolute,
        max_rel_float64=None if exact is None else exact.relative,
        max_abs=rounded.absolute,
        max_rel=rounded.relative,
        parameters_before=before,
        parameters_after=sum(parameter.numel() for parameter in result.parameters()),
        other_probe=() if other is None else shapes_of(other.inputs),
        notes=tuple(notes),
    )
    return result


def quietly_undiracified(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """Remove the Dirac convolutions of a model in place, without the warning, which has been given before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return undiracify(model, example_input=inputs, inplace=True)


def _in_float64(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Witness | None, list[str]]:
    """The model in float64 on a batch, None if it does not run in float64; and notes on that."""
    try:
        wide = Witness(in_float64(copied(model)), in_float64(inputs), "the model in float64")
    except FoldError as error:
        return None, [f"{error}; it is checked only in its own dtype"]
    lowered = wide.eps > torch.finfo(torch.float64).eps
    return wide, ["it casts to a lower precision even with float64 weights"] if lowered else []


def _check(witness: Witness, folded: nn.Module, chain: nn.Module | None, plan: Plan, tiny: float = 0.0) -> Difference:
    """The difference between a folded model, or its chain if it has one, and the original.

    Raises:
        FoldError: it is too large.
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
    """Refuse a model that does not compute with fixed, finite numbers.

    Raises:
        FoldError: see `fold`.
    """
    if isinstance(model, torch.jit.ScriptModule) or type(model).__module__.startswith("torch._dynamo"):
        raise FoldError("a scripted model, or one compiled in place, cannot be changed: fold it before that")
    for name, tensor in tensors_of(model).items():
        if is_lazy(tensor) or tensor.is_meta:
            raise FoldError(f"{name} has no values yet; load or initialize the model before folding it")
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if module.training:
            raise FoldError(f"{where} is in training mode, which cannot be folded: call model.eval() first")
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
