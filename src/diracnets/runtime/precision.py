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

Name = Literal["float32", "bfloat16", "float16"]

WORTH = 1.05  # a shorter type must be this much faster to be chosen
ROUNDS = 3
SECONDS = 5.0  # no further round is begun after so many


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
) -> Precision:
    """The precision that was asked for, or with "auto" the one in which a training step of this network is fastest.

    The measurement runs a few steps on noise with a copy of the network, so that the network, its statistics and the
    random state stay as they are.

    Args:
        wanted: "auto", "float32", "bfloat16" or "float16".
        net: the network, on its device, in its memory format.
        batch_size: images a step.
        input_size: (channels, height, width) of an image.
        clock: seconds from any start.
    """
    if wanted != "auto":
        return Precision(wanted, "as the recipe says")
    device = next(net.parameters()).device
    if device.type == "mps":
        return Precision("float32", "auto measures on CPU and CUDA only")
    candidate: Name = "bfloat16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        candidate = "float16"
    copy = deepcopy(net).train()
    times: dict[Name, list[float]] = {"float32": [], candidate: []}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        images = torch.randn(batch_size, *input_size, device=device).to(memory_format=torch.channels_last)
        begun = clock()
        for attempt in range(ROUNDS + 1):
            for name, seconds in times.items():
                taken = _step_time(copy, images, Precision(name, ""), clock)
                if attempt > 0:  # the first one warms up
                    seconds.append(taken)
            if attempt > 0 and clock() - begun > SECONDS:
                break
    full, short = (min(seconds) for seconds in times.values())  # the least disturbed by what else the machine does
    measured = f"a step takes {1000 * short:.1f} ms in {candidate}, {1000 * full:.1f} ms in float32"
    return Precision(candidate if short * WORTH < full else "float32", measured)


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
