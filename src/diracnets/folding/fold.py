"""Fold: a model without Dirac parameterization and, as far as it is exact, without batch norms; proven on the spot."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from diracnets.errors import FoldError, UsageError
from diracnets.folding.chain import flatten
from diracnets.folding.flow import follow
from diracnets.folding.proof import (
    Difference,
    Record,
    compare,
    first_difference,
    in_float64,
    lowest_dtype,
    probe_inputs,
    run,
)
from diracnets.folding.rules import Folded, Plan, make_plan
from diracnets.folding.surgery import as_in, copied, is_finite, rebuilt, replace_inside, tensors_of
from diracnets.nn.dirac import DiracConv1d, DiracConv2d, DiracConv3d
from diracnets.nn.diracify import undiracify
from diracnets.nn.kernels import warn_of_unsafe

DIRAC = (DiracConv1d, DiracConv2d, DiracConv3d)
TOLERANCE = 1e-9  # relative, in float64
LAYER_TOLERANCE = 1e-6  # relative, in float64, for the outputs of layers, which may be all rounding noise
ROUNDING = 16.0  # times the model's own rounding error, in its dtype


@dataclass(frozen=True)
class FoldReport:
    """What a fold did, and how exact it is; `dataclasses.asdict` makes it plain JSON values.

    Attributes:
        folded: what went into which layer, in order.
        left: what stays as it was, by name, with the reason.
        chain: whether the result is one flat chain.
        dtype: the dtype that the model computes in, such as "float32".
        probe: the shapes of the tensors that both networks were run on.
        max_abs_float64: the largest absolute difference of the outputs, with both networks in float64.
        max_rel_float64: that, divided by the largest absolute output; at most 1e-9.
        max_abs, max_rel: the same in the model's dtype, with the result as it is returned.
        parameters_before, parameters_after: numbers of parameters.
    """

    folded: tuple[Folded, ...]
    left: dict[str, str]
    chain: bool
    dtype: str
    probe: tuple[tuple[int, ...], ...]
    max_abs_float64: float
    max_rel_float64: float
    max_abs: float
    max_rel: float
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        counts = {kind: sum(entry.kind == kind for entry in self.folded) for kind in ("dirac", "batch norm")}
        lines = [
            f"folded      {counts['dirac']} Dirac parameterizations and {counts['batch norm']} batch norms"
            + (" into one flat chain" if self.chain else ""),
            f"parameters  {self.parameters_before:,} -> {self.parameters_after:,}",
            f"checked on  {' and '.join('x'.join(map(str, shape)) for shape in self.probe)}",
            f"  float64   largest difference {self.max_abs_float64:.1e}, relative {self.max_rel_float64:.1e}",
            f"  {self.dtype:<9} largest difference {self.max_abs:.1e}, relative {self.max_rel:.1e}",
        ]
        lines += [f"left        {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def fold(model: nn.Module, example_input: object = None, *, inplace: bool = False) -> nn.Module:
    """Turn Dirac convolutions, and the batch norms beside convolutions and linear layers, into ordinary layers.

    What is folded is decided by the data flow (`torch.fx`), and only what is exact is done. A Dirac convolution becomes
    an ordinary one. A batch norm goes into the layers before it, through pooling, Identity and Dropout where the order
    can be exchanged, or into those behind it, or into another batch norm. All the rest is left, and named with the
    reason in the report, a `FoldReport` in the result's attribute `fold_report`. Where the model cannot be traced, its
    batch norms are left.

    The weights are computed in float64 and keep dtype, device and memory format. Then the original and the folded model
    run on the same batch: in float64, where they may differ by 1e-9 of the largest output, and by 1e-6 in each layer's;
    and in the model's dtype, where they may differ by 16 times the rounding error that the original itself shows
    against float64.

    Args:
        model: any module in evaluation mode. Its hooks run in the check, on copies of it.
        example_input: a tensor, or a tuple of arguments, to check the fold on; None if the model has an attribute
            `input_size`, (channels, height, width), as DiracNets have. It holds for as many dimensions.
        inplace: replace the layers in `model` itself, with an Identity for each folded batch norm.

    Returns:
        A model whose data flow is a straight line of torch's layers, as a DiracNet's is, becomes one flat
        `nn.Sequential` without Dropout and Identity. Any other, and every one with `inplace`, keeps its class, with its
        layers replaced. The result is in evaluation mode, and no parameter of it asks for gradients.

    Warns:
        KernelWarning: training a convolution of the result can crash on this processor, which running it cannot.

    Raises:
        FoldError: the model is in training mode, has a batch norm without running statistics or with negative
            variances, has weights that are not finite, cannot be copied or run, gives another output each time, the
            folded weights do not fit the dtype, or the two models differ: the message names the layer where it starts.
        UsageError: no module, or an example input that is neither a tensor nor a tuple.

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
    check_foldable(model)
    inputs = probe_inputs(model, example_input)
    wide_inputs = in_float64(inputs)
    dirac = [Folded(name, "dirac") for name, module in model.named_modules() if type(module) in DIRAC]
    before = sum(parameter.numel() for parameter in model.parameters())

    original = copied(model)
    output = run(original, inputs, "the model")
    original = in_float64(original)
    records: list[Record] = []
    wide_output = run(original, wide_inputs, "the model in float64", records)

    plain = undiracify(original, example_input=wide_inputs)
    flow = follow(plain)
    ranks: dict[str, set[int]] = defaultdict(set)
    for record in records:
        ranks[record.name].add(record.ndim)
    plan = make_plan(plain, flow, ranks)

    wide = rebuilt(plain, plan.layers)
    after: list[Record] = []
    exact = compare(wide_output, run(wide, wide_inputs, "the folded model in float64", after))
    if first_difference(records, after, LAYER_TOLERANCE, plan.moved) or not exact.relative <= TOLERANCE:
        _refuse(original, wide, wide_inputs, plan, TOLERANCE, LAYER_TOLERANCE, exact)
    if (straight := flatten(flow, wide)) is not None:
        exact = compare(wide_output, run(straight, wide_inputs, "the chain in float64"))
        if not exact.relative <= TOLERANCE:
            _refuse(original, wide, wide_inputs, plan, TOLERANCE, LAYER_TOLERANCE, exact)

    dtype = lowest_dtype(model)
    tiny = torch.finfo(dtype).tiny  # what is smaller may vanish in the model's dtype
    own = compare(wide_output, output, tiny).relative
    if own == math.inf:
        raise FoldError(
            f"the model's output on the probe batch overflows in {dtype}: give an example_input of real data"
        )
    rounding = max(TOLERANCE, ROUNDING * (own + torch.finfo(dtype).eps))
    base = undiracify(model, example_input=inputs)
    layers = {name: as_in(layer, base.get_submodule(name), name) for name, layer in plan.layers.items()}
    parts = rebuilt(base, layers)
    chain = None if inplace else flatten(flow, parts)
    result = parts if chain is None else chain
    rounded = compare(output, run(copied(result), inputs, "the folded model"), tiny)
    if not rounded.relative <= rounding:
        _refuse(copied(model), parts, inputs, plan, rounding, rounding, rounded)

    if inplace:
        replace_inside(model, layers)
        result = undiracify(model, example_input=inputs, inplace=True)
    result.eval().requires_grad_(False)
    result.__dict__["fold_report"] = FoldReport(
        folded=(*dirac, *plan.folded),
        left=plan.left,
        chain=chain is not None,
        dtype=str(dtype).removeprefix("torch."),
        probe=tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)),
        max_abs_float64=exact.absolute,
        max_rel_float64=exact.relative,
        max_abs=rounded.absolute,
        max_rel=rounded.relative,
        parameters_before=before,
        parameters_after=sum(parameter.numel() for parameter in result.parameters()),
    )
    return result


def check_foldable(model: nn.Module) -> None:
    """Refuse a model whose evaluation is not that of fixed, finite numbers.

    Raises:
        FoldError: see `fold`.
    """
    if isinstance(model, torch.jit.ScriptModule) or type(model).__module__.startswith("torch._dynamo"):
        raise FoldError("a scripted or compiled model cannot be changed any more: fold it before that")
    for name, tensor in tensors_of(model).items():
        if is_lazy(tensor) or tensor.is_meta:
            raise FoldError(f"{name} has no values yet; load or initialize the model before folding it")
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if module.training:
            raise FoldError(f"{where} is in training mode, where nothing can be folded: call model.eval() first")
        if isinstance(module, _BatchNorm):
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


def _refuse(
    original: nn.Module,
    folded: nn.Module,
    inputs: tuple[Any, ...],
    plan: Plan,
    tolerance: float,
    layer_tolerance: float,
    found: Difference,
) -> NoReturn:
    """Say why two models differ, which have the same names."""
    first, second, after = [], [], []  # type: tuple[list[Record], list[Record], list[Record]]
    again = compare(run(original, inputs, "the model", first), run(original, inputs, "the model", second))
    unsteady = first_difference(first, second, layer_tolerance, ())
    if unsteady is not None or not again.relative <= tolerance:
        raise FoldError(
            f"the model gives different outputs for the same input{f', first at {unsteady!r}' if unsteady else ''}, so "
            "that a fold cannot be checked: is there a dropout or another random number in its forward?"
        )
    run(folded, inputs, "the folded model", after)
    where = first_difference(first, after, layer_tolerance, plan.moved)
    parts = {name for entry in plan.folded if where in (entry.layer, entry.norm) for name in (entry.layer, entry.norm)}
    via = f", with {' and '.join(map(repr, sorted(str(part) for part in parts - {where})))}" if parts - {where} else ""
    raise FoldError(
        f"the folded model is not the original: their outputs differ by {found.relative:.1e} of the largest one, where "
        f"{tolerance:.1e} is allowed, "
        + ("though all layers agree" if where is None else f"and the first layer to differ is {where!r}{via}")
    )
