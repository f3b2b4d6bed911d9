"""Averages of the weights along a run, which are often better than the last weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diracnets.models.network import Network
from diracnets.training.settings import OptimizationSettings


class Average:
    """The average of a network's weights that a recipe asks for: exponential, or even over the last steps.

    BatchNorm statistics belong to the weights that they were taken with, so those of the average are recalibrated, by
    `estimate_statistics`, whenever the average is evaluated. `ready` says whether that was done after the last step.

    Args:
        optimization: decides which average, and from which step on.
        net: the network in training.
        steps: steps in the whole run.
    """

    def __init__(self, optimization: OptimizationSettings, net: nn.Module, steps: int) -> None:
        moving = get_ema_multi_avg_fn(optimization.ema_decay) if optimization.ema_decay else None  # type: ignore[no-untyped-call]
        self.model = AveragedModel(net, multi_avg_fn=moving)
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


def estimate_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of all BatchNorms to their mean over some batches of images.

    Args:
        net: stays in the mode it was in.
        batches: images, [batch, channels, height, width], on the network's device.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = net.training
    net.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for images in batches:
            net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(was_training)
