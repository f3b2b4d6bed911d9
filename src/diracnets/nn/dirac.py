"""The layers that have the Dirac parameterization, and which of their parameters an optimizer decays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from diracnets.errors import UsageError
from diracnets.nn import small_maps
from diracnets.nn.effective_weight import check_dtype, dirac_weight, dirac_weights
from diracnets.nn.kernels import is_strided_pointwise
from diracnets.nn.module import check_module

Init = Literal["normal", "kaiming"] | float
Size = int | tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

torch.fx.wrap("dirac_weight")  # one call in what `torch.fx.symbolic_trace` records, for it asks for shapes


def draw_filters(weight: Tensor, init: Init) -> None:
    """Fill filters in place with random numbers.

    Args:
        weight: [out, in / groups, *kernel].
        init: "normal" for N(0, 1) as in the paper, "kaiming" for Kaiming normal as in the authors' last code, or the
            standard deviation s of N(0, s^2).

    Raises:
        UsageError: an unknown `init`, or a standard deviation that is not a positive number.

    >>> draw_filters(torch.empty(8, 8, 3, 3), "normal")
    """
    if init == "kaiming":
        nn.init.kaiming_normal_(weight)
    elif init == "normal":
        nn.init.normal_(weight)
    elif isinstance(init, int | float) and 0 < init < math.inf and not isinstance(init, bool):
        nn.init.normal_(weight, std=init)
    else:
        raise UsageError(f"init is {init!r}; choose normal, kaiming, or a standard deviation above 0")


@torch.no_grad()
def _start(scales: nn.Parameter, values: float | Sequence[float]) -> None:
    """Set scales, [out], to one number, or to one for each filter."""
    given = torch.as_tensor(values, dtype=scales.dtype, device="cpu")  # also where torch makes tensors elsewhere
    if given.ndim == 0:
        nn.init.constant_(scales, given.item())
    elif given.shape == scales.shape:
        scales.copy_(given)
    else:
        raise UsageError(
            f"initial scales of shape {tuple(given.shape)} are given for {len(scales)} filters: give one number, or "
            "one for each"
        )


class _DiracConv(nn.Module):
    """What the three Dirac convolutions share; the class after it in the bases does the convolving."""

    weight: Tensor
    alpha: nn.Parameter
    beta: nn.Parameter
    bias: Tensor | None
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float | Sequence[float] = 1.0,
        beta: float | Sequence[float] = 0.1,
        init: Init = "normal",
    ) -> None:
        check_dtype(torch.get_default_dtype() if dtype is None else dtype)
        arguments: tuple[Any, ...] = (
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        super().__init__(*arguments)  # of nn.Conv1d, nn.Conv2d or nn.Conv3d, which follow in the bases
        self.alpha = nn.Parameter(self.weight.new_empty(out_channels))
        self.beta = nn.Parameter(self.weight.new_empty(out_channels))
        self.initial = (alpha, beta, init)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw `weight` (and `bias`) again and set `alpha` and `beta` to their initial values."""
        super().reset_parameters()  # type: ignore[misc]
        if not hasattr(self, "alpha"):  # called by torch's constructor, before ours has come to the scales
            return
        alpha, beta, init = self.initial
        _start(self.alpha, alpha)
        _start(self.beta, beta)
        draw_filters(self.weight, init)

    def effective_weight(self) -> Tensor:
        """The filters that this layer convolves with, [out, in / groups, *kernel]: see `dirac_weight`."""
        return dirac_weight(self.weight, self.alpha, self.beta, self.groups)

    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:
        """Convolve [batch, in, *size] with the effective weight.

        Args:
            input: the images, as for `torch.nn.Conv1d`, `Conv2d` and `Conv3d`.
            weight: this layer's effective weight where it was computed already, see `effective_weights`.
        """
        # private, but all that torch has for a layer's convolution with other filters than its weight
        return self._conv_forward(input, self.effective_weight() if weight is None else weight, self.bias)  # type: ignore[no-any-return, operator]

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by `torch.jit.script` before it compiles the layer."""
        raise UsageError(
            f"{type(self).__name__} cannot be compiled by torch.jit.script: script the folded model, or use "
            "torch.jit.trace, torch.export or torch.compile"
        )


class DiracConv1d(_DiracConv, nn.Conv1d):
    """`torch.nn.Conv1d` with the Dirac parameterization; see `DiracConv2d`.

    >>> DiracConv1d(4, 8, 3, padding=1)(torch.randn(2, 4, 10)).shape
    torch.Size([2, 8, 10])
    """


class DiracConv2d(_DiracConv, nn.Conv2d):
    """`torch.nn.Conv2d` that convolves with `diag(alpha) I + diag(beta) W / ||W||`.

    Many channels over small maps, in bfloat16 on a CPU, it trains faster than `torch.nn.Conv2d` does, see
    `diracnets.nn.small_maps`; a 1x1 one with a stride subsamples first, see `diracnets.nn.kernels`. All arguments
    are those of `torch.nn.Conv2d`, and more:

    Args:
        alpha: what the scales of the identity start at: one number, or one for each filter.
        beta: what the scales of the normalized filters start at, likewise.
        init: how `weight` is drawn: "normal", N(0, 1) as in the paper, "kaiming", Kaiming normal as in the authors'
            last code, or a standard deviation s for N(0, s^2). As W is normalized this leaves the function alone and
            sets how far a step turns the filters.

    Attributes:
        weight: W, [out, in / groups, kernel height, kernel width].
        alpha, beta: [out].

    Raises:
        UsageError: an unknown `init`, or a standard deviation that is not a positive number.

    >>> layer = DiracConv2d(16, 32, 3, stride=2, padding=1, bias=False)
    >>> layer(torch.randn(1, 16, 8, 8)).shape, layer.effective_weight().shape
    (torch.Size([1, 32, 4, 4]), torch.Size([32, 16, 3, 3]))
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if is_strided_pointwise(self):  # the same numbers, by kernels whose gradients are safe
            rows, columns = self.stride
            return conv2d(input[..., ::rows, ::columns], weight, bias, groups=self.groups)
        if small_maps.suits(self, input, weight):
            return small_maps.convolve(input, weight)
        return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]


class DiracConv3d(_DiracConv, nn.Conv3d):
    """`torch.nn.Conv3d` with the Dirac parameterization; see `DiracConv2d`.

    >>> DiracConv3d(2, 2, 3, padding=1)(torch.randn(1, 2, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """


DiracConv = DiracConv1d | DiracConv2d | DiracConv3d


def effective_weights(layers: Sequence[DiracConv]) -> list[Tensor]:
    """The effective weights of a network's layers, computed together: what makes a training step cost as a plain one.

    Args:
        layers: Dirac convolutions of any shapes.

    Returns:
        One tensor a layer, in order, to be given to the layer's `forward`.

    >>> layers = [DiracConv2d(4, 4, 3), DiracConv2d(4, 8, 3), DiracConv2d(4, 4, 3)]
    >>> [list(weight.shape) for weight in effective_weights(layers)]
    [[4, 4, 3, 3], [8, 4, 3, 3], [4, 4, 3, 3]]
    """
    weights, alphas, betas = ([getattr(layer, name) for layer in layers] for name in ("weight", "alpha", "beta"))
    return dirac_weights(weights, alphas, betas, [layer.groups for layer in layers])


def is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is just a `kind`: no subclass, no hooks, no other forward, all parameters ordinary tensors.

    >>> layer = DiracConv2d(4, 4, 3)
    >>> is_as_made(layer, DiracConv2d), is_as_made(layer.to(torch.float16).requires_grad_(False), DiracConv2d)
    (True, True)
    >>> handle = layer.register_forward_pre_hook(print)
    >>> is_as_made(layer, DiracConv2d)
    False
    """
    own = vars(module)  # there are no public names for these; asked in each step, so without a loop over the hooks
    return (
        type(module) is kind
        and not (own["_forward_pre_hooks"] or own["_forward_hooks"])
        and not (own["_backward_pre_hooks"] or own["_backward_hooks"])
        and "forward" not in own
        and own.get("_compiled_call_impl") is None  # by `module.compile()`
        and {type(each) for each in own["_parameters"].values()} <= _ORDINARY
    )


_ORDINARY = {nn.Parameter, Tensor, NoneType}
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def in_several_processes() -> bool:
    """Whether this process is one of several of `torch.distributed`.

    >>> in_several_processes()
    False
    """
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for any torch optimizer: the decayed weights, and what must not be decayed.

    Decayed are the `weight`s of convolutions (Dirac ones too) and of linear layers. Not decayed are `alpha` and `beta`,
    biases, and all parameters of norms and other layers. A parameter that several layers share is listed once, and
    decayed if one of them is a convolution or linear layer; parameters that need no gradient are left out.

    Args:
        model: any module.
        weight_decay: of the first group, as the optimizer means it.

    Returns:
        `[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]`, in model order.

    Source: Zagoruyko & Komodakis 2017, section 3: the scales are not decayed.

    >>> groups = parameter_groups(nn.Sequential(DiracConv2d(4, 4, 3), nn.BatchNorm2d(4)), weight_decay=5e-4)
    >>> [len(group["params"]) for group in groups]
    [1, 5]
    """
    check_module(model, "parameter_groups")
    decayed_layers = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, decayed_layers)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) in decayed], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if id(parameter) not in decayed], "weight_decay": 0.0},
    ]
