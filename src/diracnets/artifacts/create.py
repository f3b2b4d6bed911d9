"""`create_model`: a network by its name, with fresh weights or with trained ones."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Never

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import attach_card
from diracnets.artifacts.load import load_weights
from diracnets.artifacts.pretrained import choose_weights
from diracnets.artifacts.unfold import unfold
from diracnets.errors import UsageError, did_you_mean
from diracnets.models import names
from diracnets.models.build import build_model, on_meta
from diracnets.models.init import Init, from_arguments
from diracnets.models.names import Pool
from diracnets.models.network import Network

_ELSEWHERE = {  # arguments of timm and torchvision
    "in_chans": "it is called in_channels",
    "img_size": "it is called image_size",
    "input_size": "in_channels and image_size say it",
    "weights": "it is called pretrained",
    "checkpoint_path": "diracnets.load reads files",
    "pretrained_cfg": "the card of a network has its mean, std and classes",
    "global_pool": "num_classes=0 gives pooled features, and the method forward_features their maps",
    "features_only": "the method feature_maps gives the output of each group",
    "drop_rate": "there is no dropout in these networks",
    "drop_path_rate": "there are no paths to drop in a chain",
}


def _elsewhere(argument: str) -> str:
    known = (name for name in inspect.signature(create_model).parameters if name != "others")
    hint = _ELSEWHERE.get(argument) or did_you_mean(argument, known, "see its documentation for those that there are")
    return f"create_model has no argument {argument}: {hint}"


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    width: float = 1.0,
    pool: Pool | None = None,
    init: Init | Mapping[str, Any] | str | float | None = None,
    start: str | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    bias: float | None = None,
    pretrained: bool | str = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **others: Never,
) -> Network:
    """Make a network with fresh weights, or with trained ones.

    What trained weights cannot give is renewed. That is logged as a warning of the logger "diracnets", which prints it
    unless it is told otherwise, and stands in `net.card.provenance["renewed"]`.

    Args:
        name: see `build_model`, which all arguments but `pretrained` are handed to where the weights are fresh.
        num_classes: by default 10 for the CIFAR networks, 1000 for the ImageNet ones, or as many as trained weights
            have; 0 for pooled features. For another number, trained weights get a fresh classifier.
        in_channels: channels of the images, by default 3, or those of trained weights, whose first convolution is
            adapted to others: for one channel its filters are summed over theirs, else these are repeated.
        image_size: height and width, or one number for both; by default 32 or 224, or that of trained weights.
        pool: "max" or "average", see `build_model`; by default "max", or that of trained weights.
        width, init, start, alpha, beta, bias: see `build_model`.
        pretrained: the name of trained weights of this network, see `list_weights`, or True for those with as many
            classes, else the first ones. They decide about what is not given, and leave no initialization to choose.
        device, dtype: of the parameters.
        others: none: an argument of another library is refused, with what is meant by it here.

    Raises:
        FileError: the trained weights are damaged, or cannot be downloaded.
        UsageError: as `build_model`; or there are no such weights.

    >>> net = create_model("diracnet-28-0.5", pretrained=True)
    >>> net.num_classes, net.input_size
    (10, (1, 8, 8))
    """
    if others:
        raise UsageError("; ".join(_elsewhere(argument) for argument in others))
    chosen = from_arguments(init, start, alpha, beta, bias)
    if not pretrained and not isinstance(pretrained, str):
        return build_model(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            width=width,
            pool="max" if pool is None else pool,
            init=chosen,
            device=device,
            dtype=dtype,
        )
    names.parse(name)
    if chosen != Init():
        arguments = {"init": init, "start": start, "alpha": alpha, "beta": beta, "bias": bias}
        given = {key: value for key, value in arguments.items() if value is not None}
        raise UsageError(
            f"{', '.join(f'{key} is {value!r}' for key, value in given.items())}, but trained weights are not "
            f"initialized: leave {' and '.join(given)} out"
        )
    net = trained_network(
        name,
        pretrained,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        width=width,
        pool=pool,
    )
    return net.to(device=device, dtype=dtype)


def trained_network(
    name: str,
    pretrained: str | bool,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    width: float = 1.0,
    pool: Pool | None = None,
) -> Network:
    """A network with trained weights, ready to be trained further; folded weights are unfolded.

    Args:
        name: of the network.
        pretrained: the name of its weights, or True for those with as many classes, else the first ones.
        num_classes: None for that of the weights; 0 for pooled features, without the classifier. For another number
            the classifier is a fresh one.
        in_channels: None for what the weights take; else their first convolution is adapted, as in timm: filters are
            summed over the channels for one, and repeated for more, scaled to keep the size of their output.
        image_size: None for what the weights were trained on.
        width: of the network.
        pool: None for what the weights were trained with.

    Returns:
        The network in training mode, as a fresh one is, with the weights' `card`.

    Raises:
        UsageError: there are no such weights; the message says which there are.
        FileError: their file is damaged, or cannot be downloaded.

    >>> net = trained_network("diracnet-28-0.5", True)
    >>> net.num_classes, net.input_size, net.card.data.name
    (10, (1, 8, 8), 'digits')
    """
    weights = choose_weights(name, pretrained, num_classes or None)
    for what, given, fixed in (
        ("width", width, weights.model.get("width", 1.0)),
        ("pool", pool, weights.model.get("pool", "max")),
    ):
        if given not in (None, fixed):
            raise UsageError(f"the weights {weights.name} have {what} {fixed}, not {given}; leave {what} out")
    loaded = load_weights(weights)
    trained = unfold(loaded) if isinstance(loaded, nn.Sequential) else loaded
    config = dict(weights.model) if image_size is None else {**weights.model, "image_size": image_size}
    net = on_meta(config if in_channels is None else {**config, "in_channels": in_channels})
    state, renewed = trained.state_dict(), []
    means, stds = weights.card.mean, weights.card.std
    if net.input_size[0] != weights.model["in_channels"]:
        channels, had = net.input_size[0], weights.model["in_channels"]
        first = next(name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))
        state[f"{first}.weight"] = _for_channels(state[f"{first}.weight"], channels)
        means, stds = _values(means, channels), _values(stds, channels)
        renewed.append(f"the first convolution is adapted from {had} to {channels} channels")
    net.load_state_dict(state, assign=True)
    card = replace(weights.card, input_size=net.input_size, mean=means, std=stds)
    if num_classes not in (None, net.num_classes):
        net.reset_classifier(num_classes)
        card = replace(card, classes=())
        if num_classes:
            renewed.append(f"the classifier is a new one, for {num_classes} classes")
    if renewed:
        logging.getLogger("diracnets").warning("%s: %s", weights.name, "; ".join(renewed))
        made_of = {key: value for key, value in card.provenance.items() if key != "accuracy"}
        card = replace(card, provenance={**made_of, "start": weights.name, "renewed": renewed})
    attach_card(net, replace(card, architecture=net.config))
    return net


def _for_channels(filters: Tensor, count: int) -> Tensor:
    """Filters [out, channels, kh, kw] for images of `count` channels instead."""
    had = filters.shape[1]
    if count == 1:
        return filters.sum(1, keepdim=True)  # a grey image is one of equal channels
    repeated = filters.repeat(1, -(-count // had), 1, 1)[:, :count]
    return (repeated * (had / count)).contiguous()


def _values(values: Sequence[float], count: int) -> tuple[float, ...]:
    """A number for each channel: the mean of all for one, else repeated."""
    return (sum(values) / len(values),) if count == 1 else tuple(values[index % len(values)] for index in range(count))
