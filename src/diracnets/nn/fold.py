"""Fold: a model without Dirac parameterization and, as far as it is exact, without batch norms; proven on the spot."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from diracnets.errors import FoldError
from diracnets.nn.chain import flatten
from diracnets.nn.flow import first_floating, first_line, follow
from diracnets.nn.plan import Folded, Plan, plan_batch_norms, plan_dirac
from diracnets.nn.proof import Difference, compare, first_difference, in_float64, probe_inputs, run

Module = TypeVar("Module", bound=nn.Module)

TOLERANCE = 1e-9  # relative, in float64
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

    What is folded is decided by the data flow (`torch.fx`), and only what is exact is done: a Dirac convolution becomes an
    ordinary one; a batch norm goes into the layers before it, through pooling, Identity and Dropout where the order can be
    exchanged, or into those behind it, or into another batch norm before it. All the rest is left and named with the reason
    in the report, the result's attribute `fold_report`, a `FoldReport`. Where the model cannot be traced, the batch norms
    are left.

    The weights are computed in float64 and keep dtype, device and memory format. Then the original and the folded model
    are run on the same batch, in float64, where they may differ by 1e-9 of the largest output, and in the model's dtype,
    where they may differ by 16 times the rounding error that the original shows itself against float64.

    Args:
        model: any module in evaluation mode. Its hooks run in the check, on copies of it.
        example_input: a tensor, or a tuple of arguments, to check the fold on; None if the model has an attribute
            `input_size`, (channels, height, width), as DiracNets have.
        inplace: replace the layers in `model` itself, with an Identity for each folded batch norm.

    Returns:
        A model whose data flow is a straight line of torch's layers, as a DiracNet's is, becomes one flat `nn.Sequential`
        without Dropout and Identity. Any other, and every one with `inplace`, keeps its class, with its layers replaced.
        The result is in evaluation mode, and no parameter of it asks for gradients.

    Raises:
        FoldError: the model is in training mode, has a batch norm without running statistics or with negative variances,
            has weights that are not finite, cannot be copied or run, gives another output each time, the folded weights do
            not fit the dtype, or the two models differ; the message names the layer where that starts.
        UsageError: an example input that is neither a tensor nor a tuple.

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
    devices = {tensor.device for tensor in _tensors(model).values() if tensor.device.type == "cuda"}
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        return _fold(model, example_input, inplace)


def _fold(model: nn.Module, example_input: object, inplace: bool) -> nn.Module:
    check_foldable(model)
    inputs = probe_inputs(model, example_input)
    wide_inputs = in_float64(inputs)
    before = sum(parameter.numel() for parameter in model.parameters())

    original = _copied(model)
    output = run(original, inputs, "the model")
    original = in_float64(original)
    ranks: dict[str, set[int]] = defaultdict(set)
    wide_output = run(original, wide_inputs, "the model in float64", lambda name, x: ranks[name].add(x.ndim))

    plan = plan_dirac(original)
    plain = _rebuilt(original, plan.layers, share=True)
    flow = follow(plain)
    plan_batch_norms(plan, plain, flow, ranks)

    wide = _rebuilt(original, plan.layers, share=True)
    exact = compare(wide_output, run(flatten(flow, wide) or wide, wide_inputs, "the folded model in float64"))
    if not exact.relative <= TOLERANCE:
        _refuse(original, wide, wide_inputs, plan, TOLERANCE, exact)

    dtype, rounding = _rounding(model, wide_output, output)
    layers = {name: _as_in(layer, model.get_submodule(name), name) for name, layer in plan.layers.items()}
    parts = _rebuilt(model, layers)
    chain = None if inplace else flatten(flow, parts)
    result = parts if chain is None else chain
    rounded = compare(output, run(_copied(result), inputs, "the folded model"))
    if not rounded.relative <= rounding:
        _refuse(_copied(model), parts, inputs, plan, rounding, rounded)

    if inplace:
        result = _replace(model, layers)
    result.eval().requires_grad_(False)
    result.__dict__["fold_report"] = FoldReport(
        folded=tuple(plan.folded),
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
    for name, tensor in _tensors(model).items():
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
                if not statistic.isfinite().all():
                    raise FoldError(f"{name}.{key} is not finite: train or load the model again".lstrip("."))
            if (module.running_var < 0).any():
                raise FoldError(f"{name}.running_var is negative: load the model again".lstrip("."))
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise FoldError(f"{name} is not finite: train or load the model again")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def _copied(model: Module) -> Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # objects in a model may raise anything when copied
        raise FoldError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}), "
            "which the check of a fold needs; make copy.deepcopy(model) work"
        ) from error


def _rebuilt(model: nn.Module, layers: Mapping[str, nn.Module], *, share: bool = False) -> nn.Module:
    """A copy of a model with other layers under the given names, wherever the model refers to them.

    Args:
        model: keeps its own layers.
        layers: what takes the place of what.
        share: let the copy use the model's own tensors.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model).values()} if share else {}
    modules = dict(model.named_modules())
    memo |= {id(modules[name]): layer for name, layer in layers.items()}
    for name, layer in layers.items():
        _take_hooks(layer, copy.deepcopy(_hooks(modules[name]), memo))
    return copy.deepcopy(model, memo)


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if "hook" in key and value}


def _take_hooks(layer: nn.Module, hooks: Mapping[str, Any]) -> None:
    if not isinstance(layer, nn.Identity):  # which stands for a batch norm, and does not compute what that did
        vars(layer).update(hooks)


def _as_in(layer: nn.Module, original: nn.Module, name: str) -> nn.Module:
    """A copy of a float64 layer with the dtypes, devices and memory formats of the one that it replaces."""
    result = copy.deepcopy(layer, {id(tensor): tensor for tensor in layer.parameters()})
    old = dict(original._parameters) | dict(original._buffers)
    main = old.get("weight") if old.get("weight") is not None else old.get("running_mean")
    for key, tensor in layer._parameters.items():
        like = old.get(key) if old.get(key) is not None else main
        if tensor is None or like is None:
            continue
        cast = torch.empty_like(like) if like.shape == tensor.shape else like.new_empty(tensor.shape)
        cast.copy_(tensor)
        if not cast.isfinite().all():
            raise FoldError(f"the folded {key} of {name} exceeds {like.dtype}: convert the model to float32 first")
        result._parameters[key] = nn.Parameter(cast, requires_grad=False)
    for key in layer._buffers:
        result._buffers[key] = copy.deepcopy(original._buffers[key])
    return result


def _replace(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Put other layers into a model itself, under all names that it has for them."""
    modules = dict(model.named_modules())
    new = {id(modules[name]): layer for name, layer in layers.items()}
    if id(model) in new:
        raise FoldError(f"a single {type(model).__name__} cannot be replaced in place: use what fold(model) returns")
    for owner in modules.values():
        for key, value in vars(owner).items():
            held = pytree.tree_leaves(value) if key != "_modules" else []
            if any(id(item) in new for item in held):
                raise FoldError(
                    f"{type(owner).__name__}.{key} holds layers outside of the registered modules, "
                    "where they cannot be replaced in place: use fold(model), which copies the model"
                )
    for name, layer in layers.items():
        _take_hooks(layer, _hooks(modules[name]))
    for owner in modules.values():
        for key, child in owner._modules.items():
            owner._modules[key] = new.get(id(child), child)
    return model


def _rounding(model: nn.Module, wide_output: Any, output: Any) -> tuple[torch.dtype, float]:  # noqa: ANN401
    """The lowest dtype of a model, and the relative difference that rounding may make in it."""
    dtypes = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.get_default_dtype())
    own = compare(wide_output, output).relative
    if not own < 1:
        raise FoldError(
            f"in {dtype} the model's output on the probe batch is far from that in float64 (relative {own:.1e}), so that "
            "nothing can be checked: fold it in float32, or give an example_input of real data"
        )
    return dtype, max(TOLERANCE, ROUNDING * (own + torch.finfo(dtype).eps))


def _refuse(
    original: nn.Module, folded: nn.Module, inputs: tuple[Any, ...], plan: Plan, tolerance: float, found: Difference
) -> NoReturn:
    """Say why two models differ, which have the same names."""
    again = compare(run(original, inputs, "the model"), run(original, inputs, "the model"))
    if not again.relative <= tolerance:
        raise FoldError(
            f"the model gives different outputs for the same input (relative difference {again.relative:.1e}), so that "
            "a fold cannot be checked: is there a dropout or another random number in its forward?"
        )
    where = first_difference(original, folded, inputs, tolerance, plan.moved)
    parts = [entry for entry in plan.folded if where in (entry.layer, entry.norm)]
    via = f" (folded with {', '.join(sorted({part.layer for part in parts} - {where}))})" if parts else ""
    raise FoldError(
        f"the folded model differs from the original by {found.relative:.1e} of the largest output, "
        f"where at most {tolerance:.1e} is allowed; "
        + ("the layers agree, the chain of them does not" if where is None else f"it starts at {where!r}{via}")
    )
