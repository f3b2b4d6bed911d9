"""The arithmetic of training: float32, or a shorter type under autocast; which one is fast here is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diracnets.runtime.device import synchronize
from diracnets.runtime.processor import has_bfloat16

Name = Literal["float32", "bfloat16", "float16"]

WORTH = 1.05  # a shorter type must be this much faster to be chosen
ROUNDS = 3
SECONDS = 5.0  # no further round is begun after so many
FEW = 8  # images of the first steps
SEVERAL = 4.0  # where a first step in the shorter type is so many times slower, it is not measured further
STEP_SECONDS = 0.5  # of a step that is measured


@dataclass(frozen=True)
class Precision:
    """A chosen arithmetic and why it was chosen."""

    name: Name
    """The type of convolutions and linear layers; weights, norms and losses stay float32."""
    reason: str
    """For the log, with the measured times if there are any."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.name))

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """The loss scaler: float16 needs one, for the others it does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.name == "float16")


def choose_precision(
    wanted: Literal["auto"] | Name,
    net: nn.Module,
    batch_size: int,
    input_size: tuple[int, int, int],
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] | None = None,
) -> Precision:
    """The precision that was asked for, or with "auto" the one in which a training step of this network is fastest.

    A processor without instructions for bfloat16 trains in float32, and nothing is measured. Else a few steps on noise
    are, with a copy of the network, so that the network, its statistics and the random state stay as they are: first of
    a few images, which end it where the shorter type is several times slower, then of as many as take half a second.

    Args:
        wanted: "auto", "float32", "bfloat16" or "float16".
        net: the network, on its device, in its memory format.
        batch_size: images a step.
        input_size: (channels, height, width) of an image.
        clock: seconds from any start.
        say: is told what is measured, before it is.
    """
    if wanted != "auto":
        return Precision(wanted, "as the recipe says")
    device = next(net.parameters()).device
    if device.type == "mps":
        return Precision("float32", "auto measures on CPU and CUDA only")
    if device.type == "cpu" and not has_bfloat16():
        return Precision("float32", "this processor has no instructions for bfloat16")
    candidate: Name = "bfloat16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        candidate = "float16"
    if say is not None:
        say(f"measuring {candidate} against float32")
    copy = deepcopy(net).train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _faster(candidate, copy, batch_size, input_size, clock)


def _faster(
    candidate: Name, net: nn.Module, batch_size: int, input_size: tuple[int, int, int], clock: Callable[[], float]
) -> Precision:
    """The faster one of float32 and the candidate."""
    device = next(net.parameters()).device

    def round_of(count: int) -> tuple[float, float]:
        images = torch.randn(count, *input_size, device=device).to(memory_format=torch.channels_last)
        return (
            _step_time(net, images, Precision("float32", ""), clock),
            _step_time(net, images, Precision(candidate, ""), clock),
        )

    begun, count = clock(), min(batch_size, FEW)
    full, short = round_of(count)  # what is done once is in both
    if short > SEVERAL * full:
        return Precision("float32", _words(candidate, short, full, f"a first step of {count} images"))
    rounds = [round_of(count)]
    fitting = int(count * STEP_SECONDS / max(*rounds[0], 1e-9))
    if fitting > count < batch_size:
        count = min(batch_size, fitting)
        round_of(count)  # warms up
        rounds = []
    while len(rounds) < ROUNDS and not (rounds and clock() - begun > SECONDS):
        rounds.append(round_of(count))
    full, short = (min(times) for times in zip(*rounds, strict=True))  # the least disturbed by what else is done
    what = "a step" if count == batch_size else f"a step of {count} images"
    return Precision(candidate if short * WORTH < full else "float32", _words(candidate, short, full, what))


def _words(candidate: Name, short: float, full: float, what: str) -> str:
    return f"{what} takes {1000 * short:.1f} ms in {candidate}, {1000 * full:.1f} ms in float32"


def usual_precision(device: torch.device) -> Precision:
    """The precision in which networks train fastest on most devices of a kind, where it cannot be measured."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bfloat16", "not measured, as no device has the whole network")
    return Precision("float32", "not measured, as no device has the whole network")


def _step_time(net: nn.Module, images: Tensor, precision: Precision, clock: Callable[[], float]) -> float:
    """Seconds for one forward and backward pass."""
    synchronize(images.device)
    begun = clock()
    with precision.autocast(images.device):
        loss = net(images).float().logsumexp(1).mean()
    loss.backward()
    synchronize(images.device)
    taken = clock() - begun
    net.zero_grad()
    return taken
