"""Whether a module gives logits for the images of a run, and how much it computes for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diracnets.data.images import ImageData
from diracnets.errors import UsageError, first_line

_PROBES = 3  # images that a teacher answers once, before a run that may take days
# How far two answers to one image may lie apart, relative to the largest: of float32, and of coarser numbers, as of a
# graphics card that multiplies in TF32.
_STEADY, _STEADY_COARSE = 1e-3, 3e-2
_WRAP = "wrap it in a module that returns its logits alone"


def check_answers(
    answers: Callable[[Tensor], object],
    data: ImageData,
    classes: int,
    what: str,
    place: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Refuse what gives no logits for noise of the size of a run's images, or other ones for the same image.

    Args:
        answers: gives something for images [batch, channels, height, width].
        data: the images of the run.
        classes: how many logits there should be for an image.
        what: its name, for errors.
        place: the device to try it on.
        dtype: that it computes in; its answers may have been cast since.

    Raises:
        UsageError: the message says what to do.
    """
    if place.type == "meta":
        raise UsageError(f"{what} has no weights yet: load them first")
    with torch.random.fork_rng(devices=()):  # it may draw random numbers
        coarse = place.type != "cpu" or torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
        _check_answers(answers, data, classes, what, place, _STEADY_COARSE if coarse else _STEADY)


def _check_answers(
    answers: Callable[[Tensor], object],
    data: ImageData,
    classes: int,
    what: str,
    place: torch.device,
    steady: float,
) -> None:
    images = torch.randn(_PROBES, *data.input_size, generator=torch.Generator().manual_seed(0)).to(place)
    size = "x".join(map(str, data.input_size))
    given: list[Tensor] = []
    for count in (_PROBES - 1, _PROBES, _PROBES):
        try:
            logits = answers(images[:count])
        except Exception as error:  # whatever a module of the user's raises
            raise UsageError(
                f"{what} does not take a batch of {count} images of {size}: {first_line(error)} (a program that was "
                "exported for one size of batch has to be exported again with a dynamic batch)"
            ) from error
        wanted = f"logits [{count}, {classes}]"
        if not isinstance(logits, Tensor):
            raise UsageError(f"{what} gives a {type(logits).__name__}, and must give {wanted}: {_WRAP}")
        if logits.shape != (count, classes):
            raise UsageError(
                f"{what} gives {list(logits.shape)} for {count} images, but {data.name} has {len(data.classes)} "
                f"classes: it must give {wanted}"
            )
        if not logits.is_floating_point():
            raise UsageError(f"{what} gives {logits.dtype}, and must give {wanted}, of floating-point numbers: {_WRAP}")
        if not logits.isfinite().all():
            raise UsageError(f"{what} gives infinities or NaN")
        given.append(logits)
    if are_probabilities(given[-1]):
        raise UsageError(f"{what} gives probabilities, and must give logits: leave its softmax out")
    few, one, again = given
    apart = max(float((one - again).abs().max()), float((one[:-1] - few).abs().max()))
    if apart > steady * float(one.abs().max()):
        raise UsageError(
            f"{what} gives other logits for the same images in another batch or at another time, as dropout and batch "
            "norm do in training mode: export it, or write it, in evaluation mode"
        )


def are_probabilities(logits: Tensor) -> bool:
    """Whether [batch, classes] are probabilities, as a softmax gives them.

    >>> are_probabilities(torch.randn(2, 3).softmax(1)), are_probabilities(torch.randn(2, 3))
    (True, False)
    """
    ones = logits.new_ones(len(logits))
    return logits.shape[1] > 1 and bool((logits >= 0).all()) and torch.allclose(logits.sum(1), ones, atol=1e-2)


def multiply_adds(net: nn.Module, size: tuple[int, ...]) -> int:
    """Multiply-adds for one image of a size; 0 where that cannot be counted. Nothing is computed.

    >>> multiply_adds(nn.Conv2d(3, 8, 1), (3, 4, 4))
    384
    """
    with suppress(Exception):  # of modules of other kinds
        shadow = copy.deepcopy(net).to("meta").eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            shadow(torch.zeros(1, *size, device="meta"))
        return int(counter.get_total_flops()) // 2
    return 0
