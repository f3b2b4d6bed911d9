"""`unfold`: turn a chain back into the network that it was folded from, to train it further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts.authors import recognize_chain
from diracnets.artifacts.card import attach_card, card_of, input_size_of
from diracnets.artifacts.checkpoint import skeleton
from diracnets.artifacts.layers import refuse_changed, to_data
from diracnets.errors import UsageError
from diracnets.folding.structure import folded_structure
from diracnets.models.build import build_model
from diracnets.models.network import Network
from diracnets.nn.dirac import DiracConv2d
from diracnets.nn.effective_weight import identity_diagonal

_BATCH = 64


@torch.no_grad()
def unfold(chain: nn.Module, images: Tensor | None = None, *, architecture: Mapping[str, Any] | None = None) -> Network:
    """The network that folds to `chain`, up to rounding, in evaluation mode.

    A fold does not keep how each convolution was split into filter and batch norm. Here the alpha of a Dirac
    convolution becomes the diagonal of each filter, and beta the norm of the rest. W gets the direction of the rest,
    and the norm of a fresh W, because that norm decides the size of training steps. The BatchNorm statistics are
    measured on `images`; the BatchNorm weights and biases undo them.

    With images, training continues from nearly the same function, because the statistics of its batches are close to
    those measured. Without images, the batch norms are the identity in evaluation mode. In training mode they normalize
    by statistics that they do not undo: the network is then a different one, and training has to recover.

    Args:
        chain: what `fold` makes of a network without branches, as a module or loaded from a model file.
        images: [N, channels, height, width] normalized as for the chain, a few hundred of what it will be trained on.
        architecture: arguments of `build_model` for the network; by default those in the chain's card. Another network
            must fold to the same layers, as "diracnet-28-1" does for a chain of "plain-28-1".

    Returns:
        The network in float32 on the chain's device, with the chain's `card` if it has one.

    Raises:
        UsageError: it is not the chain of one of our networks, it has hooks, or the images have another number of
            channels.

    >>> from diracnets.folding.fold import fold
    >>> chain = fold(build_model("diracnet-10-0.25").eval())
    >>> images = torch.randn(8, 3, 32, 32)
    >>> torch.allclose(unfold(chain, images)(images), chain(images), atol=1e-4)
    True
    """
    if not isinstance(chain, nn.Sequential):
        raise UsageError(f"a {type(chain).__name__} cannot be turned back into a network: it is not a chain")
    try:
        refuse_changed(chain)
        given = _architecture(chain) if architecture is None else architecture
        net = _matching_network(chain, given)
        pairs = _pairs(chain, net)
    except ValueError as error:
        raise UsageError(f"this chain cannot be turned back into a network: {error}") from error
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for (folded, norm_left), conv, norm in zip(pairs, convs, norms, strict=True):
        _split(folded.weight, conv)
        _make_affine(norm, folded.bias, norm_left)
    if isinstance(net.fc, nn.Linear):
        net.fc.load_state_dict(chain[-1].state_dict())
    net.to(next(chain.parameters()).device).eval()
    if images is not None:
        _take_statistics(net, norms, images)
    card = card_of(chain)
    if card is not None:
        attach_card(net, card if architecture is None else replace(card, architecture=net.config))
    return net


def _architecture(chain: nn.Sequential) -> Mapping[str, Any]:
    """From the card, or as `fold` copied it from the network; otherwise recognized by the layers."""
    card, config = card_of(chain), chain.__dict__.get("config")
    if card is not None and card.architecture is not None:
        return card.architecture
    if isinstance(config, Mapping):
        return config
    return recognize_chain(chain, input_size_of(chain))


def _matching_network(chain: nn.Sequential, architecture: Mapping[str, Any]) -> Network:
    """A fresh network of the architecture; ValueError unless it folds to the layers of the chain."""
    net = skeleton(architecture, len(chain.state_dict()))
    if not net.is_chain:
        raise ValueError(
            f"a {net.config['name']} has branches, and a chain that unbranch made of it has other layers; start from "
            "the network itself, such as best.pt of its run"
        )
    if _kinds(chain) != _kinds(folded_structure(net)):
        raise ValueError(f"its layers are not those that {net.config['name']} folds to")
    return build_model(**architecture)


def _kinds(chain: nn.Module) -> list[dict[str, object]]:
    """The layers, without batch norms, which stay where a negative scale cannot pass the pooling before it."""
    kept = [layer for layer in to_data(chain) if layer["type"] != "BatchNorm2d"]
    left_out = ("name", "inplace")
    kinds = [{key: value for key, value in layer.items() if key not in left_out} for layer in kept]
    return [{**kind, "bias": None} if kind["type"] == "Conv2d" else kind for kind in kinds]


def _pairs(chain: nn.Sequential, net: Network) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Each convolution, and the batch norm that `fold` has left after it and a pooling, which the network has there."""
    blocks = [block for group in net.groups for block in group.children()]
    pools_first = [False, *(getattr(block, "pool", None) is not None for block in blocks)]
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for before, layer in zip([None, None, *list(chain)[:-2]], chain, strict=True):
        if isinstance(layer, nn.Conv2d):
            pairs.append((layer, None))
        elif isinstance(layer, nn.BatchNorm2d):
            if before is not pairs[-1][0] or not pools_first[len(pairs) - 1] or not layer.affine:
                raise ValueError(f"{net.config['name']} has no batch norm after these layers")
            pairs[-1] = (pairs[-1][0], layer)
    return pairs


def _make_affine(norm: nn.BatchNorm2d, bias: Tensor | None, left: nn.BatchNorm2d | None) -> None:
    """Make `norm` the batch norm that was left, or without one the identity, after adding the convolution's bias."""
    shift = torch.zeros_like(norm.bias) if bias is None else bias
    if left is None:
        ones = torch.ones_like(norm.weight)
        norm.load_state_dict({"running_var": ones - norm.eps, "weight": ones, "bias": shift}, strict=False)
    else:
        state = left.state_dict()
        norm.load_state_dict({**state, "running_mean": state["running_mean"] - shift})
        norm.eps = left.eps


def _split(weight: Tensor, conv: nn.Conv2d) -> None:
    """Give `conv` the alpha, beta and W that make `weight`; an ordinary convolution gets `weight` itself."""
    conv.weight.copy_(weight)
    if not isinstance(conv, DiracConv2d):
        return
    diagonal = identity_diagonal(conv.weight)
    conv.alpha[: diagonal.numel()] = diagonal.flatten()
    diagonal.zero_()
    norm = conv.weight.flatten(1).norm(dim=1)
    conv.beta.copy_(norm)
    fresh = conv.weight[0].numel() ** 0.5  # of a filter from N(0, 1)
    conv.weight.mul_((fresh / norm.clamp(min=torch.finfo(norm.dtype).tiny)).reshape(-1, 1, 1, 1))


def _take_statistics(net: Network, norms: Sequence[nn.BatchNorm2d], images: Tensor) -> None:
    """Measure the input of each batch norm on `images`, normalize by it, and undo that by its weight and bias."""
    if images.ndim != 4 or len(images) == 0 or images.shape[1] != net.input_size[0]:
        raise UsageError(f"images are {list(images.shape)}; this network takes [N, {net.input_size[0]}, height, width]")
    totals = [torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms]

    def add_to(total: Tensor, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1).double()  # [channels, N * height * width]
        total += torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)]).cpu()

    device = next(net.parameters()).device
    hooks = [norm.register_forward_pre_hook(partial(add_to, total)) for norm, total in zip(norms, totals, strict=True)]
    try:
        for start in range(0, len(images), _BATCH):
            net(images[start : start + _BATCH].to(device, torch.float32))
    finally:
        for hook in hooks:
            hook.remove()
    for norm, (count, total, squares) in zip(norms, totals, strict=True):
        mean = (total / count).float().to(norm.bias.device)
        variance = (squares / count - (total / count).square()).clamp(min=0).float().to(norm.bias.device)
        state = norm.state_dict()
        scale = norm.weight / (state["running_var"] + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - state["running_mean"]))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)
