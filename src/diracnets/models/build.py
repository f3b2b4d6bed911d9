"""Networks by name: `build_model` makes them with fresh weights, `list_models` lists them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diracnets.errors import UsageError
from diracnets.models import names
from diracnets.models.diracnet import CIFAR_WIDTHS, IMAGENET_WIDTHS, cifar_diracnet, imagenet_diracnet
from diracnets.models.init import Init, from_arguments
from diracnets.models.initializer import Initializer, resolved
from diracnets.models.names import Family, Name, Pool
from diracnets.models.network import Network, Spec
from diracnets.models.repvgg import SIZES as REPVGG_SIZES
from diracnets.models.repvgg import cifar_repvgg, imagenet_repvgg
from diracnets.models.resnet import cifar_resnet, imagenet_resnet, wide_resnet
from diracnets.models.sprint import WIDTHS as SPRINT_WIDTHS
from diracnets.models.sprint import sprint
from diracnets.models.vgg import WIDTHS as VGG_WIDTHS
from diracnets.models.vgg import vgg

Builder = Callable[[int, Sequence[int], Initializer, Spec], Network]  # from depth and the channels of each group
_CIFAR: dict[Family, tuple[Sequence[int], Builder]] = {
    "plain": (CIFAR_WIDTHS, cifar_diracnet),
    "sprint": (SPRINT_WIDTHS, sprint),
    "repvgg": (CIFAR_WIDTHS, cifar_repvgg),
    "wrn": (CIFAR_WIDTHS, wide_resnet),
    "resnet": (CIFAR_WIDTHS, cifar_resnet),
    "vgg": (VGG_WIDTHS, vgg),
}
_IMAGENET: dict[Family, Builder] = {
    "plain": imagenet_diracnet,
    "resnet": imagenet_resnet,
    "repvgg": imagenet_repvgg,
}


def list_models(pattern: str = "*") -> list[str]:
    """The names of networks, those that the paper speaks of and some more.

    Every `diracnet-N-k` with N = 6n + 4 and any width k, whole or fraction, can be made, and the same for `plain-N-k`,
    `wrn-N-k`, `dirac-wrn-N-k` and `repvgg-N-k`; only some of them are listed.

    Args:
        pattern: a shell pattern that the names have to match.

    >>> list_models("plain-[13]*")
    ['plain-16-1', 'plain-34-2', 'plain-34-4', 'plain-100-1', 'plain-196-1', 'plain-1000-1', 'plain-18', 'plain-34']
    """
    return fnmatch.filter(names.listed(), pattern)


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    width: float = 1.0,
    pool: Pool = "max",
    init: Init | Mapping[str, Any] | str | float | None = None,
    start: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    bias: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """Make a network with fresh weights.

    `diracnet-N-k` is the paper's network for CIFAR-size images: N = 6n + 4, three groups of 2n blocks, 16k, 32k and 64k
    channels. `diracnet-18` and `diracnet-34` are those for ImageNet-size images. `diracnet-sprint` is a shallow, wide
    one for CIFAR that trains fast, also of other widths, `diracnet-sprint-k`. `plain-...` is the same network with
    ordinary convolutions. What they are compared with: `wrn-N-k`, wide ResNets; `resnet-N`, pre-activation ResNets for
    CIFAR, with N = 6n + 2, or 9n + 2 from 164 on; `resnet-18` and `resnet-34` for ImageNet; `vgg-16` for CIFAR;
    `repvgg-N-k`, RepVGG's blocks in the shape of `diracnet-N-k`; and `repvgg-a0` and `repvgg-b0` for ImageNet.
    `dirac-wrn-...`, `dirac-resnet-...` and `dirac-vgg-...` have Dirac convolutions everywhere but in the stem.

    Args:
        name: see `list_models`.
        num_classes: by default 10 for the CIFAR networks, 1000 for the ImageNet ones; 0 for pooled features.
        in_channels: channels of the images, by default 3.
        image_size: height and width, or one number for both; by default 32 or 224. The network runs on other sizes too;
            this is the size that it is folded, described and exported with.
        width: multiplies the channels of networks that do not have their width in their name.
        pool: "max", or "average" for 2x2 average pooling between the groups, each after a ReLU. Converters for spiking
            networks, verifiers and others know no maximum. ResNets have no such pooling, and `diracnet-sprint` pools
            before its ReLUs: they refuse it.
        init: how the blocks are initialized: "paper" (the default), "deep", which keeps the signal alive in hundreds of
            layers, "kaiming", "carriers", or an `Init` with details of its own. What `Init.to_data` gives is taken too.
        start, alpha, beta, bias: deprecated, parts of `init` now; the same holds for "normal" or a number as `init`.
        device, dtype: of the parameters.

    Raises:
        UsageError: an unknown name, a depth that there is not, a number that makes no network, average pooling for a
            network that cannot have it, or one of alpha and beta without the other for one without Dirac convolutions.

    >>> net = build_model("diracnet-28-1")
    >>> sum(p.numel() for p in net.parameters())
    368730
    """
    parsed = names.parse(name)
    in_channels = 3 if in_channels is None else in_channels
    if not 0 < width <= names.MOST_FACTOR:
        raise UsageError(f"width is {width}; it must be a positive number, at most {names.MOST_FACTOR:,}")
    if not _is_whole(in_channels) or in_channels < 1:
        raise UsageError(f"in_channels is {in_channels!r}; it must be a whole number, at least 1")
    if parsed.factor is not None and width != 1.0:
        raise UsageError(f"{name} has its width in its name; leave width={width} out")
    image_size = (224 if parsed.imagenet else 32) if image_size is None else image_size
    sides: Any = [image_size] * 2 if _is_whole(image_size) else image_size
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_whole, sides))):
        raise UsageError(f"image_size is {image_size}; give one whole number, or (height, width)")
    height, across = sides
    num_classes = (1000 if parsed.imagenet else 10) if num_classes is None else num_classes
    if not _is_whole(num_classes):
        raise UsageError(f"num_classes is {num_classes}; it must be a whole number")
    if pool not in get_args(Pool):
        raise UsageError(f"pool is {pool!r}; choose {' or '.join(get_args(Pool))}")
    if pool == "average" and (reason := _why_not_averaged(parsed)):
        raise UsageError(f"{name} cannot have average pooling: {reason}; leave pool out")
    chosen = from_arguments(init, start, alpha, beta, bias)
    config = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": [height, across],
        "width": width,
        **({} if pool == "max" else {"pool": pool}),  # so that earlier versions read files of the others
        "init": chosen.to_data(),
    }
    initializer = resolved(chosen, parsed.blocks, parsed.dirac, "uniform" if parsed.family == "plain" else 1.0)
    spec = Spec(num_classes, (in_channels, height, across), config, pool)
    net = _build(parsed, width if parsed.factor is None else parsed.factor, initializer, spec)
    return net.to(device=device, dtype=dtype)


def _why_not_averaged(name: Name) -> str | None:
    if name.family == "sprint":
        return "its pooling comes before the batch norm and the ReLU"
    strided = name.family in ("resnet", "wrn") or (name.family == "repvgg" and name.imagenet)
    return "its convolutions of stride 2 make the maps smaller" if strided else None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _build(name: Name, factor: float, init: Initializer, spec: Spec) -> Network:
    bases: Sequence[int]
    if name.imagenet:
        bases = REPVGG_SIZES[name.depth][1] if name.family == "repvgg" else IMAGENET_WIDTHS
        build = _IMAGENET[name.family]
    else:
        bases, build = _CIFAR[name.family]
    widths = [_channels(base, factor, spec.config["name"]) for base in bases]
    return build(name.depth, widths, init, spec)


def _channels(base: int, factor: float, name: str) -> int:
    channels = round(base * factor)
    if channels < 1:
        raise UsageError(f"{name} of width {factor} has less than one channel of {base}; choose a larger width")
    return channels


def on_meta(arguments: Mapping[str, Any]) -> Network:
    """`build_model(**arguments)` without memory for the weights and without drawing random numbers."""
    with torch.device("meta"), _Undrawn():
        return build_model(**arguments)


_DRAWING = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


class _Undrawn(TorchFunctionMode):
    """Leaves out `torch.nn.init` and what it calls.

    On the meta device it takes long, for nothing, and the first call imports torch's compiler: seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _DRAWING or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
