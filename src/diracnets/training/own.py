"""A module of the user's own in the place of a network by name: what a run needs to know of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diracnets.data.images import ImageData
from diracnets.errors import UsageError, first_line
from diracnets.models.network import Network
from diracnets.training.logits import are_probabilities
from diracnets.training.recipe import Recipe

OWN = "own"  # the key that says so in the architecture of a checkpoint's card


class OwnNetwork(Network):
    """A module that gives logits [B, classes] for images [B, C, H, W], so that a run can train it.

    Args:
        net: the module, which is trained itself, not a copy.
        input_size: (channels, height, width) of its images.

    >>> own = OwnNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8))
    >>> own(torch.zeros(3, 1, 8, 8)).shape, own.config["name"]
    (torch.Size([3, 2]), 'Sequential')
    """

    def __init__(self, net: nn.Module, input_size: tuple[int, int, int]) -> None:
        nn.Module.__init__(self)  # of a Network, it has neither the parts nor their names
        self.net = net
        self.input_size = input_size
        self.min_image_size = 1
        self.config: dict[str, Any] = {"name": type(net).__name__, OWN: True}

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] normalized images -> [B, classes] logits."""
        return self.net(x)  # type: ignore[no-any-return]


def own_network(net: nn.Module, recipe: Recipe, data: ImageData) -> OwnNetwork:
    """The module for a run, after a look at whether it can be trained on these images.

    Raises:
        UsageError: it cannot run on two of the images, gives something else than logits of the classes, in training
            mode too, or has nothing to train; or the recipe trains the classifier alone, which only networks by name
            have.
    """
    name = type(net).__name__
    if recipe.optimization.freeze:
        raise UsageError("freeze trains the classifier of a network by name: of your own, set requires_grad instead")
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError(f"{name} has no parameter that requires a gradient: there is nothing to train")
    images, _, _ = next(data.val.batches(2))
    if any(map(is_lazy, net.parameters())):
        shape = list(images[:1].shape)
        raise UsageError(f"{name} has lazy layers, without sizes yet: run it once on images {shape}, then train it")
    for training in (False, True):  # some networks give more than logits in training mode
        _check_logits(net, images, data, training)
    return OwnNetwork(net, data.input_size)


def _check_logits(net: nn.Module, images: Tensor, data: ImageData, training: bool) -> None:
    """Refuse a module that gives something else than logits; a copy of it is run."""
    name, mode = type(net).__name__, " in training mode" if training else ""
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=()):
            logits = deepcopy(net).train(training)(images.to(next(net.parameters()).device))
    except Exception as error:
        raise UsageError(
            f"{name} does not run on images {list(images.shape)} of {data.name}{mode}: {first_line(error)}"
        ) from error
    wanted = [len(images), len(data.classes)]
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"{name} gives a {type(logits).__name__}{mode} for {len(images)} images of {data.name}, and should give "
            f"logits {wanted}: train a module around it that returns these alone"
        )
    if list(logits.shape) != wanted:
        raise UsageError(
            f"{name} gives {list(logits.shape)}{mode} for {len(images)} images of {data.name}, and should give logits "
            f"{wanted}"
        )
    if are_probabilities(logits):
        raise UsageError(f"{name} gives probabilities, and should give logits: leave its softmax out")


def kept_weights(net: Network) -> dict[str, Any]:
    """The state dict of a checkpoint: by the names that a module has for its user."""
    return net.net.state_dict() if isinstance(net, OwnNetwork) else net.state_dict()
