"""`unfold`: a chain turned back into the Dirac network that computes the same, to train it further."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import attach_facts, facts_of, input_size_of
from diracnets.artifacts.layers import to_data
from diracnets.artifacts.recognize import chain_layers, recognize
from diracnets.errors import UsageError
from diracnets.models.build import build_model, on_meta
from diracnets.models.diracnet import DiracNet
from diracnets.nn.dirac import DiracConv2d
from diracnets.nn.effective_weight import identity_diagonal

_BATCH = 64


@torch.no_grad()
def unfold(chain: nn.Module, images: Tensor | None = None) -> DiracNet:
    """The Dirac network that folds to `chain`, up to rounding, in evaluation mode.

    Folding loses how each convolution was split into filter and batch norm. Here alpha takes the diagonal of each
    filter, beta the norm of the rest, and W the direction of the rest with the norm of a fresh W, on which the size of
    its steps in training depends. What the batch norms subtract and divide by is measured on `images`; their scales and
    shifts undo it.

    With images, training goes on from about the same function, since the statistics of its batches are near those
    measured. Without, the batch norms are the identity in evaluation, and in training mode normalize by statistics that
    they do not undo: the network is then another one, and training has to recover.

    Args:
        chain: what `fold` makes of a DiracNet or a plain one, as a module or loaded from a model file.
        images: [N, channels, height, width] normalized as for the chain, a few hundred of what it will be trained on.

    Returns:
        The network in float32 on the chain's device; with the chain's `facts`, where it has some.

    Raises:
        UsageError: not the chain of a DiracNet, or images of another number of channels.

    >>> from diracnets.folding.fold import fold
    >>> chain = fold(build_model("diracnet-10-0.25").eval())
    >>> images = torch.randn(8, 3, 32, 32)
    >>> torch.allclose(unfold(chain, images)(images), chain(images), atol=1e-4)
    True
    """
    if not isinstance(chain, nn.Sequential):
        raise UsageError(f"a {type(chain).__name__} cannot be turned back into a Dirac network: it is not a chain")
    net = _network(chain)
    convs = [layer for layer in chain if isinstance(layer, nn.Conv2d)]
    norms = [norm for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    ours = [conv for conv in net.modules() if isinstance(conv, nn.Conv2d)]
    for folded, conv, norm in zip(convs, ours, norms, strict=True):
        _split(folded.weight, conv)
        identity = {
            "running_var": torch.full((norm.num_features,), 1 - norm.eps),
            "weight": torch.ones_like(norm.weight),
        }
        norm.load_state_dict(identity | {"bias": folded.bias}, strict=False)
    classifier = next(layer for layer in chain if isinstance(layer, nn.Linear))
    net.fc.load_state_dict(classifier.state_dict())
    net.to(next(chain.parameters()).device).eval()
    if images is not None:
        _take_statistics(net, norms, images)
    facts = facts_of(chain)
    if facts is not None:
        attach_facts(net, facts)
    return net


def _network(chain: nn.Sequential) -> DiracNet:
    layers = list(chain)
    groups: list[list[nn.Conv2d]] = [[]]
    for layer in layers[1:]:
        if isinstance(layer, nn.MaxPool2d) and groups[-1]:
            groups.append([])
        elif isinstance(layer, nn.Conv2d):
            groups[-1].append(layer)
    try:
        if (
            not all(groups)
            or not isinstance(first := layers[0], nn.Conv2d)
            or not isinstance(last := layers[-1], nn.Linear)
        ):
            raise ValueError("it does not consist of groups of convolutions with a linear layer behind them")
        widths, depths = [group[0].out_channels for group in groups], list(map(len, groups))
        arguments = recognize(first.weight.shape, widths, depths, last.out_features)
        size = input_size_of(chain)
        arguments |= {"image_size": size[1:]} if size is not None else {}
        if _without_names(chain) != _without_names(chain_layers(on_meta(arguments))):
            raise ValueError(f"its layers are not those of {arguments['name']}")
    except ValueError as error:
        raise UsageError(f"this chain cannot be turned back into a Dirac network: {error}") from error
    return cast(DiracNet, build_model(**arguments))


def _without_names(chain: nn.Module) -> list[dict[str, object]]:
    return [{key: value for key, value in layer.items() if key not in ("name", "inplace")} for layer in to_data(chain)]


def _split(weight: Tensor, conv: nn.Conv2d) -> None:
    """Give `conv` alpha, beta and W that make `weight`; an ordinary convolution gets it as it is."""
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


def _take_statistics(net: DiracNet, norms: list[nn.BatchNorm2d], images: Tensor) -> None:
    """Measure what each batch norm, so far an identity but for its bias, gets of `images`; make it normalize that."""
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
        norm.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)
