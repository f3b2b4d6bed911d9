"""Networks by name: `create_model` makes them, `list_models` lists them."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections import OrderedDict
from functools import partial

import torch
from torch import nn

from diracnets.errors import UsageError
from diracnets.models.diracnet import DiracNet, batch_norm
from diracnets.nn.dirac import DiracConv2d, Init, draw_filters

_CIFAR_NAMES = ("16-1", "28-1", "28-5", "28-10", "34-2", "34-4", "52-1", "100-1", "196-1", "400-1", "1000-1")
IMAGENET_DEPTHS = {18: (4, 4, 4, 4), 34: (6, 8, 12, 6)}  # blocks of each group
_NAME = re.compile(r"(diracnet|plain)-(\d+)(?:-(\d+(?:\.\d+)?))?")


def list_models(pattern: str = "*") -> list[str]:
    """The names of networks, those that the paper speaks of and some more.

    Every `diracnet-N-k` with N = 6n + 4 and any width k, whole or fraction, can be made, and the same for `plain-N-k`;
    only some of them are listed.

    Args:
        pattern: a shell pattern that the names have to match.

    >>> list_models("plain-[13]*")
    ['plain-16-1', 'plain-34-2', 'plain-34-4', 'plain-100-1', 'plain-196-1', 'plain-1000-1', 'plain-18', 'plain-34']
    """
    sizes = (*_CIFAR_NAMES, *map(str, IMAGENET_DEPTHS))
    return fnmatch.filter((f"{family}-{size}" for family in ("diracnet", "plain") for size in sizes), pattern)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    width: float = 1.0,
    init: Init | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DiracNet:
    """Make a network with fresh weights.

    `diracnet-N-k` is the paper's network for CIFAR-size images: N = 6n + 4, three groups of 2n blocks, 16k, 32k and 64k
    channels. `diracnet-18` and `diracnet-34` are those for ImageNet-size images. `plain-...` is the same network with
    ordinary convolutions.

    Args:
        name: see `list_models`.
        num_classes: by default 10 for the CIFAR networks, 1000 for the ImageNet ones; 0 for pooled features.
        in_channels: channels of the images.
        image_size: height and width, or one number for both; by default 32 or 224. The network runs on other sizes too;
            this is the size that it is folded, described and exported with.
        width: multiplies the channels of `diracnet-18` and `diracnet-34`; the others have it in their name.
        init: how the blocks' filters are drawn, "normal" or "kaiming", see `DiracConv2d`; by default normal for
            `diracnet-...`, Kaiming for `plain-...`. With a batch norm behind, a filter's scale matters only for how far
            a step turns it.
        device, dtype: of the parameters.

    Raises:
        UsageError: an unknown name, a depth that is not 6n + 4, or a number that makes no network.

    >>> net = create_model("diracnet-28-1")
    >>> sum(p.numel() for p in net.parameters())
    368730
    """
    family, depth, factor = _parse(name)
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"width is {width}; it must be a positive number")
    if in_channels < 1:
        raise UsageError(f"in_channels is {in_channels}; images need at least 1")
    if factor is not None and width != 1.0:
        raise UsageError(f"{name} has its width in its name; leave width={width} out")
    if init is None:
        init = "normal" if family == "diracnet" else "kaiming"
    cifar = factor is not None
    image_size = (32 if cifar else 224) if image_size is None else image_size
    height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
    num_classes = (10 if cifar else 1000) if num_classes is None else num_classes
    config = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": [height, across],
        "width": width,
        "init": init,
    }
    if factor is not None:
        widths = [_channels(base, factor, name) for base in (16, 32, 64)]
        depths = [(depth - 4) // 3] * 3
        stem = OrderedDict(conv=_plain_conv(in_channels, widths[0], "kaiming"), bn=batch_norm(widths[0]))
    else:
        widths = [_channels(base, width, f"width {width}") for base in (64, 128, 256, 512)]
        depths = list(IMAGENET_DEPTHS[depth])
        stem = OrderedDict(
            conv=_plain_conv(in_channels, widths[0], "kaiming", size=7, stride=2),
            bn=batch_norm(widths[0]),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    net = DiracNet(
        stem=nn.Sequential(stem),
        stem_width=widths[0],
        widths=widths,
        depths=depths,
        conv=partial(_dirac_conv if family == "diracnet" else _plain_conv, init=init),
        num_classes=num_classes,
        input_size=(in_channels, height, across),
        min_image_size=8 if cifar else 32,
        config=config,
    )
    return net.to(device=device, dtype=dtype)


def _parse(name: str) -> tuple[str, int, float | None]:
    """'diracnet-28-1' -> ('diracnet', 28, 1.0); 'plain-18' -> ('plain', 18, None)."""
    match = _NAME.fullmatch(name)
    if match is None:
        near = difflib.get_close_matches(name, list_models(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"no network is called {name!r}; {hint}There are diracnet-N-k and plain-N-k (N = 6n + 4, k any width), "
            "diracnet-18, diracnet-34, plain-18 and plain-34"
        )
    family, depth = match[1], int(match[2])
    if match[3] is None:
        if depth not in IMAGENET_DEPTHS:
            raise UsageError(f"{name}: without a width the depth is 18 or 34; for CIFAR-size images write {name}-1")
        return family, depth, None
    if depth < 10 or depth % 6 != 4:
        nearest = max(10, 6 * round((depth - 4) / 6) + 4)
        raise UsageError(
            f"{name}: the depth must be 6n + 4 (10, 16, 22, 28, ...); the nearest is {family}-{nearest}-{match[3]}"
        )
    return family, depth, float(match[3])


def _channels(base: int, factor: float, what: str) -> int:
    channels = round(base * factor)
    if channels < 1:
        raise UsageError(f"{what} leaves less than one channel of {base}; choose a larger width")
    return channels


def _dirac_conv(channels_in: int, channels_out: int, init: Init) -> nn.Conv2d:
    return DiracConv2d(channels_in, channels_out, 3, padding=1, bias=False, init=init)


def _plain_conv(channels_in: int, channels_out: int, init: Init, size: int = 3, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)
    draw_filters(conv.weight, init)
    return conv
