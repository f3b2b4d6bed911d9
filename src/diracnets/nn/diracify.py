"""Make the convolutions of any model Dirac convolutions, and Dirac convolutions ordinary ones again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from diracnets.errors import UsageError, did_you_mean
from diracnets.nn.dirac import DiracConv, DiracConv1d, DiracConv2d, DiracConv3d, Init
from diracnets.nn.effective_weight import dirac_weight, identity_diagonal
from diracnets.nn.kernels import warn_of_unsafe

_DIRAC_OF: dict[type[nn.Module], type[DiracConv]] = {
    nn.Conv1d: DiracConv1d,
    nn.Conv2d: DiracConv2d,
    nn.Conv3d: DiracConv3d,
}
_ORDINARY_OF: dict[type[nn.Module], type[nn.Module]] = {dirac: ordinary for ordinary, dirac in _DIRAC_OF.items()}


@dataclass(frozen=True)
class DiracifyReport:
    """What `diracify` did.

    Attributes:
        converted: names of the convolutions that are Dirac convolutions now; a shared one has its first name.
        left: names of the other convolutions, and why they were left.
    """

    converted: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} convolutions became Dirac convolutions, {len(self.left)} were left"]
        return "\n".join(lines + [f"  left {name}: {reason}" for name, reason in self.left.items()])


def diracify(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | Iterable[str] | None = None,
    *,
    preserve: bool = False,
    inplace: bool = False,
    alpha: float = 1.0,
    beta: float = 0.1,
    init: Init = "normal",
) -> tuple[nn.Module, DiracifyReport]:
    """Make `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` layers of a model Dirac convolutions.

    A layer stays the same object and only changes its class, so hooks, device, dtype, training mode, shared layers and
    references from elsewhere stay as they are. Subclasses of the three are left alone: what they compute is not known.

    Args:
        model: any module; a single convolution too.
        where: which layers: a predicate of name and layer, or the layers' names; all by default.
        preserve: keep the function that the weights compute: W becomes W - diag(alpha) I and beta its norm, filter by
            filter, so that a trained network can be trained on as a Dirac network. Otherwise the layers start afresh.
        inplace: change `model` itself and return it; otherwise a deep copy.
        alpha: what the scales of the identity start at.
        beta, init: see `DiracConv2d`; for a fresh start, not used with `preserve`.

    Returns:
        The model and a report of what was converted and what was left.

    Warns:
        KernelWarning: training a convolution that was left can crash on this processor.

    Raises:
        UsageError: a name in `where` that is no convolution of the model; `beta` or `init` together with `preserve`;
            a model that cannot be copied.

    >>> net, report = diracify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3)))
    >>> print(report)
    1 convolutions became Dirac convolutions, 1 were left
      left 2: a transposed convolution has no identity filter
    """
    if preserve and (beta, init) != (0.1, "normal"):
        raise UsageError("with preserve=True the old weights decide beta and W; leave beta and init out")
    DiracConv1d(1, 1, 1, alpha=alpha, beta=beta, init=init)  # refuses what the layers would refuse, before any change
    names = {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd)}
    wanted = _predicate(where, names)
    if not inplace:
        model = _copied(model)
        names = {name: cast(_ConvNd, model.get_submodule(name)) for name in names}
    left = {name: reason for name, module in names.items() if (reason := _why_not(name, module, wanted))}
    chosen = {name: module for name, module in names.items() if name not in left}
    left |= _left_for_sharing(model, chosen)
    tied: dict[int, _ConvNd] = {}
    for name, layer in chosen.items():
        if name not in left:
            first = tied.setdefault(id(layer.weight), layer)
            _become_dirac(layer, first, preserve, alpha, beta, init)
    warn_of_unsafe(model)
    return model, DiracifyReport(tuple(name for name in chosen if name not in left), left)


def undiracify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Make Dirac convolutions ordinary convolutions that compute the same; batch norms and all else stay.

    The effective weights are computed in float64 and rounded once. On the meta device there is nothing to compute.

    Args:
        model: any module.
        inplace: change `model` itself and return it; otherwise a deep copy.

    Raises:
        UsageError: two layers share their weight, but not their scales; a model that cannot be copied.

    >>> dirac = DiracConv2d(4, 4, 3)
    >>> undiracify(dirac)
    Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
    >>> images = torch.randn(1, 4, 8, 8)
    >>> torch.allclose(undiracify(dirac)(images), dirac(images), atol=1e-6)
    True
    """
    if not inplace:
        model = _copied(model)
    layers = [cast(DiracConv, module) for module in model.modules() if type(module) in _ORDINARY_OF]
    computed: dict[int, tuple[object, ...]] = {}
    for layer in layers:
        what = (layer.alpha, layer.beta, layer.groups)
        if any(
            mine is not theirs for mine, theirs in zip(what, computed.setdefault(id(layer.weight), what), strict=True)
        ):
            raise UsageError(
                "two Dirac convolutions share their weight but not alpha, beta and groups: untie them first"
            )
    with torch.no_grad():
        for layer in {id(layer.weight): layer for layer in layers}.values():  # a shared weight once
            if layer.weight.is_meta:
                continue
            weight, alpha, beta = (tensor.cpu().double() for tensor in (layer.weight, layer.alpha, layer.beta))
            layer.weight.copy_(dirac_weight(weight, alpha, beta, layer.groups))
    for layer in layers:
        cast(nn.Module, layer).__class__ = _ORDINARY_OF[type(layer)]
        del layer.alpha, layer.beta, layer.initial
    return model


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a part of the model raises
        raise UsageError(f"the model cannot be copied ({error}); change it in place with inplace=True") from error


def _predicate(
    where: Callable[[str, nn.Module], bool] | Iterable[str] | None, names: dict[str, _ConvNd]
) -> Callable[[str, nn.Module], bool]:
    if where is None:
        return lambda name, module: True
    if callable(where):
        return where
    listed = {where} if isinstance(where, str) else set(where)
    for name in sorted(listed - names.keys()):
        hint = did_you_mean(name, names, f"its convolutions are {', '.join(names) or 'none'}")
        raise UsageError(f"the model has no convolution called {name!r}; {hint}")
    return lambda name, module: name in listed


def _why_not(name: str, module: _ConvNd, wanted: Callable[[str, nn.Module], bool]) -> str | None:
    """Why this convolution is left, or None where it is not."""
    kind = type(module)
    if kind in _ORDINARY_OF:
        return "is a Dirac convolution already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "is lazy; run a batch through the model first"
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution has no identity filter"
    if nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is computed by another parameterization"
    if kind not in _DIRAC_OF:
        return f"is of an unknown subclass, {kind.__qualname__}"
    return None if wanted(name, module) else "was not chosen"


def _left_for_sharing(model: nn.Module, chosen: dict[str, _ConvNd]) -> dict[str, str]:
    """Convolutions whose weight is also that of a layer that stays as it is, or that has its identity elsewhere."""
    groups = {id(layer): layer.groups for layer in chosen.values()}
    left = {}
    for name, layer in chosen.items():
        for other_name, other in model.named_modules():
            shares = any(parameter is layer.weight for parameter in other._parameters.values())
            if shares and groups.get(id(other)) != layer.groups:
                left[name] = f"shares its weight with {other_name}, which is not a Dirac convolution of the same groups"
    return left


@torch.no_grad()
def _become_dirac(conv: _ConvNd, first: _ConvNd, preserve: bool, alpha: float, beta: float, init: Init) -> None:
    """Change the layer's class and give it scales; those of `first` where the two share their weight."""
    conv.__class__ = _DIRAC_OF[type(conv)]
    layer = cast(DiracConv, conv)
    layer.initial = (alpha, beta, init)
    if first is not conv:
        layer.alpha, layer.beta = cast(DiracConv, first).alpha, cast(DiracConv, first).beta
        return
    trained = layer.weight.requires_grad
    layer.alpha = nn.Parameter(layer.weight.new_full((layer.out_channels,), alpha), requires_grad=trained)
    layer.beta = nn.Parameter(layer.weight.new_empty(layer.out_channels), requires_grad=trained)
    if not preserve:
        layer.reset_parameters()
        return
    identity = identity_diagonal(layer.weight, layer.groups)
    identity -= alpha
    norm = layer.weight.flatten(1).double().norm(dim=1)
    layer.beta.copy_(norm)
    nothing_left = norm == 0  # the filter was the identity; W needs a direction to learn from, which beta = 0 hides
    layer.weight[nothing_left] = torch.randn_like(layer.weight[nothing_left])
