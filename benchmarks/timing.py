"""Times of networks side by side: steps of training and passes of inference, interleaved in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from diracnets.nn.dirac import parameter_groups
from diracnets.runtime.device import synchronize

Precision = Literal["float32", "bfloat16"]
WARM_UP = 3  # calls of each before the first round


class Work:
    """A network with images to run it on; `step` does one step of training, `infer` one pass without gradients.

    Args:
        net: moved to the device and to channels_last.
        batch: images at a time, random ones.
        image_size: their height and width.
        classes: of their labels.
        precision: bfloat16 runs under autocast.
        device: where it computes.
        compile: run what torch.compile makes of it.
    """

    def __init__(
        self,
        net: nn.Module,
        batch: int,
        *,
        image_size: int = 32,
        classes: int = 10,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run: Callable[[Tensor], Tensor] = torch.compile(self.net) if compile else self.net
        images = torch.randn(batch, 3, image_size, image_size, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (batch,), device=self.device)
        fused = self.device.type in ("cpu", "cuda")
        groups = parameter_groups(self.net, 5e-4)
        trainable = any(parameter.requires_grad for parameter in self.net.parameters())
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=fused) if trainable else None

    def step(self) -> None:
        """Forward, backward and update."""
        self.net.train()
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            self._loss(self.run).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def infer(self) -> None:
        """Forward in evaluation mode."""
        self.net.eval()
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            self.run(self.images)

    def saved_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, parameters not counted; never compiled."""
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.net.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss(self.net)
        for parameter in self.net.parameters():
            storages.pop(parameter.untyped_storage().data_ptr(), None)
        del loss  # until here, so that no memory was given to two tensors
        return sum(storages.values())

    @property
    def _reduced(self) -> bool:
        return self.precision == "bfloat16"

    def _loss(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._reduced):
            logits = run(self.images)
        return nn.functional.cross_entropy(logits.float(), self.labels)


def interleaved(calls: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call in each round; the order turns, so that what else the machine does falls on all alike.

    Args:
        calls: by name.
        rounds: how often each is called, after some calls that do not count.
        device: that has to finish before a call counts as done.

    >>> times = interleaved({"a": lambda: None, "b": lambda: None}, 3, torch.device("cpu"))
    >>> {name: len(seconds) for name, seconds in times.items()}
    {'a': 3, 'b': 3}
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for index in range(len(names)):
            name = names[(turn + index) % len(names)]
            synchronize(device)
            start = time.perf_counter()
            calls[name]()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times
