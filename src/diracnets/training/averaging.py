"""Averages of the weights along a run, which are often better than the last weights."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diracnets.models.network import Network
from diracnets.training.settings import OptimizationSettings


class Average:
    """The average of a network's weights that a recipe asks for: exponential, or even over the last steps.

    BatchNorm statistics belong to the weights that they were taken with, so those of the average are recalibrated
    whenever it is evaluated. `ready` says whether that was done after the last step.

    Args:
        optimization: decides which average, and from which step on.
        net: the network in training.
        steps: steps in the whole run.
        twin: a copy of the network, where it is one that cannot be copied by `deepcopy`.
    """

    def __init__(
        self, optimization: OptimizationSettings, net: nn.Module, steps: int, twin: nn.Module | None = None
    ) -> None:
        moving = get_ema_multi_avg_fn(optimization.ema_decay) if optimization.ema_decay else None  # type: ignore[no-untyped-call]
        self.model = AveragedModel(net if twin is None else nn.Identity(), multi_avg_fn=moving)
        if twin is not None:
            self.model.module = twin
        self.frozen = optimization.freeze
        self.ready = optimization.freeze  # frozen features keep their statistics
        self.first_step = (
            0 if optimization.ema_decay else min(round((1 - optimization.swa_fraction) * steps), steps - 1)
        )

    @property
    def net(self) -> Network:
        """The network with the averaged weights."""
        return cast(Network, self.model.module)

    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights that `net` has after step `step`, counted from 0 in the whole run."""
        if step >= self.first_step:
            self.model.update_parameters(net)
            self.ready = self.frozen

    def started(self) -> bool:
        """Whether the average holds any step's weights yet."""
        return bool(self.model.n_averaged)
