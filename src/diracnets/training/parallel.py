"""Training by several processes: the network in DistributedDataParallel or divided, and what they keep the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diracnets.errors import UsageError
from diracnets.runtime.ranks import Ranks
from diracnets.training.sync_bn import synchronized

# Buffers are kept the same by `statistics_shared`, or are by synchronized batch norms. Named so from torch 2.13 on:
_NEW = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
_LEAVE_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


class Trainee:
    """A network as a run trains it: to be called for its outputs; gradients become those of all processes.

    Args:
        net: the network, on its device. It keeps its layers and their names, and is the one to save and evaluate.
        ranks: the processes.
        sync_bn: whether batch norms take their statistics over all processes.
        shard: whether the network is divided among the processes, and has its synchronized batch norms already.
        compiled: whether `torch.compile` compiles it.

    Attributes:
        in_step: whether all processes have to call it as often.

    Raises:
        UsageError: several processes, synchronized batch norms and compilation together.
    """

    def __init__(
        self, net: nn.Module, ranks: Ranks, *, sync_bn: bool = False, shard: bool = False, compiled: bool = False
    ) -> None:
        self.ranks = ranks
        self.sync_bn = sync_bn and not ranks.alone
        self.in_step = self.sync_bn or shard
        if self.sync_bn and compiled:
            raise UsageError(
                "compile and sync_bn do not go together with several processes: each batch norm talks to the other "
                "processes, and torch.compile would compile what lies between them bit by bit; leave one out"
            )
        trained = synchronized(net) if self.sync_bn and not shard else net
        self._parallel: DistributedDataParallel | None = None
        if not ranks.alone and not shard:
            place = [ranks.device] if ranks.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(
                trained, device_ids=place, gradient_as_bucket_view=True, **_LEAVE_BUFFERS
            )
            for buffer in trained.buffers():
                distributed.broadcast(buffer, 0)
        self.module: nn.Module = self._parallel or trained
        self._forward = torch.compile(self.module) if compiled else self.module
        self._net = net
        self._norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]

    def __call__(self, images: Tensor) -> Tensor:
        """The network's outputs for images [B, C, H, W].

        For none of them there are none, which depend on all parameters, with gradients of zero.
        """
        training = self.module.training
        if len(images) or self.sync_bn:  # synchronized batch norms talk to each other in any case
            return cast(Tensor, self._forward(images))
        self.module.train(False)  # the others refuse to take statistics of nothing
        try:
            return cast(Tensor, self.module(images))
        finally:
            self.module.train(training)

    def train(self, mode: bool) -> None:
        """Set training or evaluation mode, of the network and of what wraps it."""
        self._net.train(mode)
        self.module.train(mode)

    def release(self) -> None:
        """Let go of what holds the process group, before the processes leave it.

        Else DDP's reducer may be the last to hold it, and then waits, with Python's lock, for a thread of gloo that may
        wait for this lock (torch 2.13): the process never ends.
        """
        self._parallel = None
        self.module = self._forward = self._net

    def gradients_kept(self) -> AbstractContextManager[None]:
        """Within the block, backward passes add to this process's gradients and send nothing; the next one after it
        sends the sum. A divided network's are sent at once: no process has room for all of them."""
        return nullcontext() if self._parallel is None else self._parallel.no_sync()

    @contextmanager
    def statistics_shared(self, part: float) -> Iterator[None]:
        """While the block computes gradients, make the BatchNorm statistics of all processes their mean.

        Args:
            part: how much this process's statistics count: its part of the images, 0 to 1.
        """
        if self.ranks.alone or self.sync_bn or not self.module.training:
            yield
            return
        statistics = [cast(Tensor, each) for norm in self._norms for each in (norm.running_mean, norm.running_var)]
        flat = torch.cat(statistics).mul_(part)
        work = distributed.all_reduce(flat, async_op=True)
        yield
        work.wait()
        for mine, mean in zip(statistics, torch.split(flat, [len(each) for each in statistics]), strict=True):
            mine.copy_(mean)
