"""The names of networks: what a name says, which are listed, and what is wrong with one that is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from diracnets.errors import UsageError, did_you_mean
from diracnets.models.listed import PARAMETERS

Family = Literal["plain", "sprint", "repvgg", "wrn", "resnet", "vgg"]
Pool = Literal["max", "average"]
_WITH_WIDTH = re.compile(r"(diracnet|plain|repvgg|wrn|dirac-wrn)-(\d+)-(\d+(?:\.\d+)?)")
_WITHOUT_WIDTH = re.compile(r"(diracnet|plain|resnet|dirac-resnet|vgg|dirac-vgg)-(\d+)")
_SPRINT = re.compile(r"(diracnet|plain)-sprint(?:-(\d+(?:\.\d+)?))?")
_SPRINT_BLOCKS = 7
_REPVGG = re.compile(r"repvgg-([ab]0)")
_REPVGG_BLOCKS = {"a0": 22, "b0": 28}  # with the stem
_IMAGENET_DEPTHS = (18, 34)
_IMAGENET_BOTTLENECKS = (50, 101, 152)  # that are not here, and not to be taken for networks for CIFAR
_VGG_DEPTHS = (16, 19)
MOST_LAYERS = 20_000  # of any depth in a name: twice what was ever trained, made in a minute
MOST_FACTOR = 10_000
_LEAST_BOTTLENECK = 164  # from this depth on, a CIFAR ResNet's blocks are bottlenecks


@dataclass(frozen=True)
class Name:
    """What a network's name says.

    Attributes:
        family: "plain" for DiracNets too.
        dirac: whether its blocks have Dirac convolutions.
        depth: the number in its name; for "sprint", which has none, its blocks, and for RepVGG-A0 and -B0 too, with
            the stem.
        factor: what the channels are multiplied with; None where that is not in the name.
        imagenet: whether it is for images of ImageNet's size.
        blocks: how many it has after the stem.
    """

    family: Family
    dirac: bool
    depth: int
    factor: float | None
    imagenet: bool
    blocks: int


def listed() -> tuple[str, ...]:
    """The names that `list_models` gives."""
    return tuple(PARAMETERS)


def parse(name: str) -> Name:
    """What a name says.

    Raises:
        UsageError: no network has this name, or its depth or width is more than anything that could be built.

    >>> parse("dirac-wrn-28-10")
    Name(family='wrn', dirac=True, depth=28, factor=10.0, imagenet=False, blocks=12)
    """
    if not isinstance(name, str):
        raise UsageError(f"the name of a network is a string, such as 'diracnet-28-1', not {name!r}")
    if match := _SPRINT.fullmatch(name):
        dirac = match[1] == "diracnet"
        _check_most(name, "width", match[2] or "1", MOST_FACTOR)
        return Name("sprint", dirac, _SPRINT_BLOCKS, float(match[2] or 1), imagenet=False, blocks=_SPRINT_BLOCKS)
    if match := _REPVGG.fullmatch(name):
        depth = _REPVGG_BLOCKS[match[1]]
        return Name("repvgg", False, depth, None, imagenet=True, blocks=depth - 1)
    match = _WITH_WIDTH.fullmatch(name) or _WITHOUT_WIDTH.fullmatch(name)
    if match is None:
        raise _unknown(name)
    _check_most(name, "depth", match[2], MOST_LAYERS)
    prefix, depth = match[1], int(match[2])
    if match.re is _WITH_WIDTH:
        _check_most(name, "width", match[3], MOST_FACTOR)
    factor = float(match[3]) if match.re is _WITH_WIDTH else None
    dirac = prefix.startswith("dirac")
    family = cast(Family, "plain" if prefix == "diracnet" else prefix.removeprefix("dirac-"))
    imagenet = factor is None and family in ("plain", "resnet") and depth in _IMAGENET_DEPTHS
    if family == "resnet" and depth in _IMAGENET_BOTTLENECKS:
        raise UsageError(f"{name}: of ImageNet's ResNets there are 18 and 34; for CIFAR take resnet-56 or -110")
    if family == "vgg":
        if depth not in _VGG_DEPTHS:
            raise UsageError(f"{name}: the depth of a VGG network is 16 or 19")
        blocks = depth - 4  # convolutions after the first; three of the paper's layers are its classifier
    elif imagenet:
        blocks = depth - 2 if family == "plain" else (depth - 2) // 2
    elif factor is None and family == "plain":
        raise UsageError(f"{name}: without a width the depth is 18 or 34; for CIFAR-size images write {name}-1")
    else:
        blocks = _cifar_blocks(name, family, prefix, depth)
    return Name(family, dirac, depth, factor, imagenet, blocks)


def shallow_kin(name: str) -> tuple[str, str, int]:
    """The two shallowest networks that differ from this one in depth alone, and how many steps it is from the first.

    For those that exist in a few depths only, the network itself, twice, and 0.

    Raises:
        UsageError: no network has this name.

    >>> shallow_kin("wrn-40-4"), shallow_kin("vgg-16")
    (('wrn-10-4', 'wrn-16-4', 5), ('vgg-16', 'vgg-16', 0))
    """
    parsed = parse(name)
    if parsed.imagenet or parsed.family in ("sprint", "vgg"):
        return name, name, 0
    least, layers = _depths(parsed.family, parsed.depth)
    first, second = (name.replace(f"-{parsed.depth}", f"-{depth}", 1) for depth in (least, least + layers))
    return first, second, (parsed.depth - least) // layers


def is_name(name: str) -> bool:
    """Whether some network has this name.

    >>> is_name("wrn-28-10"), is_name("wrn-28"), is_name("pictures")
    (True, False, False)
    """
    try:
        parse(name)
    except UsageError:
        return False
    return True


def _check_most(name: str, what: str, number: str, most: int) -> None:
    if float(number) > most:
        raise UsageError(f"{name[:80]}: the {what} is at most {most:,}")


def _cifar_blocks(name: str, family: Family, prefix: str, depth: int) -> int:
    """The blocks of a network of three groups, whose depth has to be one that such networks have."""
    rest = 2 if family == "resnet" else 4
    least, layers = _depths(family, depth)
    if depth < least or depth % layers != rest:
        nearest = max(least, layers * round((depth - rest) / layers) + rest)
        examples = ", ".join(str(least + index * layers) for index in range(4))
        width = name.removeprefix(f"{prefix}-").partition("-")[2]
        raise UsageError(
            f"{name}: the depth must be {layers}n + {rest} ({examples}, ...); the nearest is {prefix}-{nearest}"
            + (f"-{width}" if width else "")
        )
    n = (depth - rest) // layers
    return 6 * n if family in ("plain", "repvgg") else 3 * n


def _depths(family: Family, depth: int) -> tuple[int, int]:
    """The least depth of the networks of three groups of this kind, and the step to the next."""
    if family != "resnet":
        return 10, 6
    return (8, 6) if depth < _LEAST_BOTTLENECK else (_LEAST_BOTTLENECK, 9)


def _matches(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_WITH_WIDTH, _SPRINT, _REPVGG, _WITHOUT_WIDTH))


def _unknown(name: str) -> UsageError:
    begins = next((name[:end] for end in range(len(name) - 1, 0, -1) if name[end] in "-." and _matches(name[:end])), "")
    if begins:  # diracnet-28-1-cifar10
        return UsageError(
            f"no network is called {name!r}, which looks like the name of trained weights: the network is {begins}, "
            f"and its weights are loaded by pretrained={name!r}, `--from {name}` or diracnets.load"
        )
    hint = did_you_mean(name, PARAMETERS, cutoff=0.5)
    end = f"; {hint}" if hint else "."
    return UsageError(
        f"no network is called {name!r}{end} There are diracnet-N-k, plain-N-k, repvgg-N-k, wrn-N-k (N = 6n + 4, k "
        "any width), diracnet-sprint-k, plain-sprint-k, diracnet-18 and -34, plain-18 and -34, resnet-N (N = 6n + 2, "
        "or 9n + 2 from 164 on), resnet-18 and -34, repvgg-a0 and -b0, vgg-16 and -19, and dirac-resnet-..., "
        "dirac-wrn-..., dirac-vgg-..."
    )
