"""Make the convolutions of any model Dirac convolutions, and Dirac convolutions ordinary ones again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from diracnets.errors import UsageError, did_you_mean
from diracnets.nn.dirac import CONVOLUTIONS, TRANSPOSED, DiracConv, DiracConv1d, DiracConv2d, DiracConv3d, Init
from diracnets.nn.effective_weight import DTYPES, dirac_weight, identity_diagonal
from diracnets.nn.kernels import warn_of_unsafe
from diracnets.nn.module import check_module
from diracnets.nn.readers import find_readers

_DIRAC_OF: dict[type[nn.Module], type[DiracConv]] = {
    nn.Conv1d: DiracConv1d,
    nn.Conv2d: DiracConv2d,
    nn.Conv3d: DiracConv3d,
}
_ORDINARY_OF: dict[type[nn.Module], type[nn.Module]] = {dirac: ordinary for ordinary, dirac in _DIRAC_OF.items()}
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class DiracifyReport:
    """What `diracify` did.

    Attributes:
        converted: names of the convolutions that are Dirac convolutions now; a shared one has its first name.
        left: names of the other convolutions, and why they were left.
    """

    converted: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{str(self).partition(chr(10))[0]}>"

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} convolutions became Dirac convolutions, {len(self.left)} were left"]
        return "\n".join(lines + [f"  left {name}: {reason}" for name, reason in self.left.items()])


def diracify(
    model: nn.Module,
    where: Callable[[str, nn.Module], bool] | Iterable[str] | None = None,
    *,
    example_input: object | None = None,
    preserve: bool = False,
    inplace: bool = False,
    alpha: float = 1.0,
    beta: float = 0.1,
    init: Init = "normal",
) -> tuple[nn.Module, DiracifyReport]:
    """Make `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` layers of a model Dirac convolutions.

    A layer stays the same object and only changes its class, so hooks, device, dtype, training mode, shared layers and
    references from elsewhere stay as they are. Subclasses of the three are left: what they compute is not known. So are
    layers whose weight anything besides them uses (a tied decoder, weight standardization, a hook, a penalty), as it
    would get W instead of the filters. Only the model's own code is looked through: a training loop that reads
    `conv.weight` is to use `conv.effective_weight()`.

    Args:
        model: any module; a single convolution too.
        where: which layers: a predicate of name and layer, or the layers' names; all by default.
        example_input: a tensor, or a tuple of the arguments of the model's `forward`. Only used where the model's code
            reads a weight without telling which layer's: the model runs on it once, as it is (training or evaluation
            mode), to see whose. Without, all layers are left then.
        preserve: keep the function that the weights compute: W becomes W - diag(alpha) I and beta its norm, filter by
            filter, so that a trained network can be trained on as a Dirac network. Otherwise layers are initialized.
        inplace: change `model` itself and return it; otherwise a deep copy.
        alpha: the initial scales of the identity.
        beta, init: see `DiracConv2d`; not to be given with `preserve`.

    Returns:
        The model and a report of what was converted and what was left.

    Warns:
        KernelWarning: training a convolution that was left can crash on this processor.

    Raises:
        UsageError: `model` is no module; a name in `where` that is no convolution of the model; `beta` or `init`
            together with `preserve`; a model that cannot be copied, or does not run on `example_input`.

    >>> net, report = diracify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3)))
    >>> print(report)
    1 convolutions became Dirac convolutions, 1 were left
      left 2: a transposed convolution has no identity filter
    """
    check_module(model, "diracify")
    if preserve and (beta, init) != (0.1, "normal"):
        raise UsageError("with preserve=True the old weights decide beta and W; leave beta and init out")
    DiracConv1d(1, 1, 1, device="meta", alpha=alpha, beta=beta, init=init)  # refuses what layers would, in time
    names = _convolutions(model)
    wanted = _predicate(where, names)
    if not inplace:
        model = _copied(model)
        names = _convolutions(model)
    left = {name: reason for name, module in names.items() if (reason := _why_not(name, module, wanted))}
    chosen = {name: cast(_Conv, module) for name, module in names.items() if name not in left}
    left |= _left_for_readers(model, chosen, example_input)
    tied: dict[int, _Conv] = {}
    for name, layer in chosen.items():
        if name not in left:
            first = tied.setdefault(id(layer.weight), layer)
            _become_dirac(layer, first, preserve, alpha, beta, init)
    warn_of_unsafe(model)
    return model, DiracifyReport(tuple(name for name in chosen if name not in left), left)


def undiracify(model: nn.Module, *, example_input: object | None = None, inplace: bool = False) -> nn.Module:
    """Make Dirac convolutions ordinary convolutions that compute the same; batch norms and all else stay.

    The effective weights are computed in float64 and rounded once. On the meta device there is nothing to compute.
    Layers that cannot become ordinary ones stay as they are, and a warning names them: subclasses, those whose weight
    a hook computes (pruning), and those whose weight anything besides them uses.

    Args:
        model: any module.
        example_input: see `diracify`.
        inplace: change `model` itself and return it; otherwise a deep copy.

    Raises:
        UsageError: `model` is no module; two layers share their weight, but not their scales; a model that cannot be
            copied, or does not run on `example_input`.

    Warns:
        UserWarning: layers that stay Dirac convolutions, and why.

    >>> dirac = DiracConv2d(4, 4, 3)
    >>> undiracify(dirac)
    Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1))
    >>> images = torch.randn(1, 4, 8, 8)
    >>> torch.allclose(undiracify(dirac)(images), dirac(images), atol=1e-6)
    True
    """
    check_module(model, "undiracify")
    if not inplace:
        model = _copied(model)
    found = {name: each for name, each in model.named_modules() if isinstance(each, DiracConv)}
    left = {name: reason for name, module in found.items() if (reason := _not_as_made(module, _ORDINARY_OF))}
    layers = {name: module for name, module in found.items() if name not in left}
    first_with: dict[int, str] = {}
    for name, layer in layers.items():
        other = layers[first := first_with.setdefault(id(layer.weight), name)]
        if layer.alpha is not other.alpha or layer.beta is not other.beta or layer.groups != other.groups:
            raise UsageError(
                f"the Dirac convolutions {first!r} and {name!r} share their weight but not alpha, beta and groups: "
                "give one of them a copy of the weight, or both the same alpha and beta"
            )
    left |= _left_for_readers(model, layers, example_input)
    layers = {name: layer for name, layer in layers.items() if name not in left}
    with torch.no_grad():
        for layer in {id(layer.weight): layer for layer in layers.values()}.values():  # a shared weight once
            if layer.weight.is_meta:
                continue
            weight, alpha, beta = (tensor.cpu().double() for tensor in (layer.weight, layer.alpha, layer.beta))
            layer.weight.copy_(dirac_weight(weight, alpha, beta, layer.groups))
    for layer in layers.values():
        cast(nn.Module, layer).__class__ = _ORDINARY_OF[type(layer)]
        del layer.alpha, layer.beta, layer.initial
    if left:
        reasons = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in left.items())
        warnings.warn(f"these layers stay Dirac convolutions: {reasons}", UserWarning, stacklevel=2)
    return model


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    return {name: each for name, each in model.named_modules() if isinstance(each, CONVOLUTIONS + TRANSPOSED)}


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a part of the model raises
        raise UsageError(f"the model cannot be copied ({error}); change it in place with inplace=True") from error


def _predicate(
    where: Callable[[str, nn.Module], bool] | Iterable[str] | None, names: dict[str, nn.Module]
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


def _why_not(name: str, module: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> str | None:
    """Why this convolution is left, or None where it is not."""
    if type(module) in _ORDINARY_OF:
        return "is a Dirac convolution already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "is lazy; run a batch through the model first"
    if isinstance(module, TRANSPOSED):
        return "a transposed convolution has no identity filter"
    return _not_as_made(module, _DIRAC_OF) or (None if wanted(name, module) else "was not chosen")


def _not_as_made(module: nn.Module, kinds: Container[type[nn.Module]]) -> str | None:
    """Why a layer does not just compute what its class does with its parameters, or None where it does."""
    weight = module._parameters.get("weight")
    if nn.utils.parametrize.is_parametrized(module) or weight is None:
        return "its weight is computed by another parameterization"
    if type(module) not in kinds:
        return f"is of an unknown subclass, {type(module).__qualname__}"
    if not vars(module).keys().isdisjoint(("forward", "_conv_forward")):
        return "its forward was replaced"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not an ordinary parameter"
    if weight.dtype not in DTYPES:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not float16, bfloat16, float32 or float64"
    return None


def _left_for_readers(
    model: nn.Module, layers: Mapping[str, nn.Module], example_input: object | None
) -> dict[str, str]:
    """Layers whose weight something else uses: one that stays as it is may be another's reason to stay."""
    left: dict[str, str] = {}
    by_weight: dict[int, set[object]] = {}
    for layer in layers.values():
        by_weight.setdefault(id(layer.weight), set()).add(layer.groups)
    for name, layer in layers.items():
        if len(by_weight[id(layer.weight)]) > 1:
            left[name] = "shares its weight with a convolution of other groups"
    while more := find_readers(model, {name: layers[name] for name in layers if name not in left}, example_input):
        left |= more
    return left


@torch.no_grad()
def _become_dirac(conv: _Conv, first: _Conv, preserve: bool, alpha: float, beta: float, init: Init) -> None:
    """Change the layer's class and give it scales; those of `first` where the two share their weight."""
    cast(nn.Module, conv).__class__ = _DIRAC_OF[type(conv)]
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
    if layer.weight.is_meta:  # there are no numbers to keep
        return
    identity = identity_diagonal(layer.weight, layer.groups)
    identity -= alpha
    norm = layer.weight.cpu().flatten(1).double().norm(dim=1)
    layer.beta.copy_(norm)
    nothing_left = norm == 0  # the filter was the identity; W needs a direction to learn from, which beta = 0 hides
    layer.weight[nothing_left] = torch.randn_like(layer.weight[nothing_left])
