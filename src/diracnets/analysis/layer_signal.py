"""What becomes of a signal on its way through a network: activations, correlations and gradients layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from diracnets.errors import TrainingError, UsageError
from diracnets.folding.surgery import is_finite
from diracnets.models.diracnet import Block
from diracnets.models.network import Network
from diracnets.nn.dirac import DiracConv2d
from diracnets.training.scales import identity_share

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LayerSignal:
    """One layer of a chain, from the input of its ReLU to the input of the next one, or one block with branches.

    Correlations are of channel o with channel o, over all images and pixels, and the mean over the channels that both
    sides have. A channel that never changes has correlation 0.
    """

    layer: str
    """The name of its convolution or block."""
    mean: float
    """Mean of the output."""
    std: float
    """Root mean square, over channels, of the output's standard deviations."""
    kept: float | None
    """Correlation of output and input; None where they have different sizes."""
    arrived: float
    """How alike the images' differences still are to those in the first layer's input, 1 for the same, about 0 for
    nothing left; see `likeness`."""
    dimensions: float
    """In how many directions the images differ, counted evenly: (trace of their covariance)^2 / its squared norm."""
    passed: float | None
    """Part of the input that is above 0, so that the ReLU lets it through; None for a block with branches."""
    relu_keeps: float | None
    """Correlation of the input with its own ReLU: what the layer would keep if its convolution were the identity."""
    identity: float | None
    """Mean part of the filters' squared norm that is their identity, 0 to 1; None for a block with branches."""
    gradient: float | None = None
    """Norm of the gradient of an image's loss on the output, mean over the images; None without labels."""
    filter_gradient: float | None = None
    """Norm of the gradient of the mean loss on the filters; None without labels, or where the filters take none."""


def signal(net: nn.Module, images: Tensor, labels: Tensor | None = None) -> list[LayerSignal]:
    """Send images through a network, forward and with labels also backward, and see what each layer makes of them.

    The network is taken in the mode in which it is: after `net.train()` its batch norms use the batch's own statistics,
    as in a step of training. It is left as it was, running statistics and gradients included.

    Args:
        net: a network of `create_model`, or a chain, as `fold` makes it.
        images: normalized, [batch, channels, height, width], a batch of at least 4.
        labels: int64 [batch], for the gradients of the cross-entropy; they need the memory of a step of training.

    Returns:
        One entry a layer, in their order; the stem and the classifier are none of them.

    Raises:
        UsageError: a network whose layers are not known, neither of `create_model` nor a chain; less than 4 images.
        TrainingError: activations that are infinite or NaN. Gradients may be: those of deep plain networks overflow.

    >>> from diracnets import create_model
    >>> layers = signal(create_model("diracnet-16-0.25").train(), torch.randn(8, 3, 32, 32))
    >>> len(layers), layers[1].layer, layers[1].kept > 0.5
    (12, 'groups.0.1', True)
    """
    if len(images) < 4:
        raise UsageError(f"{len(images)} images are too few to measure the signal; use 64")
    with _Watch(net) as watch, torch.set_grad_enabled(labels is not None):
        inputs = images.detach().requires_grad_(labels is not None)  # a chain's weights may take no gradients
        logits = net(inputs)
        if labels is None:
            return watch.layers
        filters = [weight for weight in watch.filters if weight is not None]
        _, *gradients = torch.autograd.grad(F.cross_entropy(logits.float(), labels), [inputs, *filters])
    of_filters = iter(gradients)
    return [
        replace(
            layer,
            gradient=len(images) * watch.gradients[index],
            filter_gradient=None
            if weight is None
            else float(torch.linalg.vector_norm(next(of_filters), dtype=torch.float64)),
        )
        for index, (layer, weight) in enumerate(zip(watch.layers, watch.filters, strict=True))
    ]


class _Watch:
    """Measures the layers of a network whenever images go through it, as long as the block lasts."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.layers: list[LayerSignal] = []
        self.filters: list[Tensor | None] = []
        self.gradients: dict[int, float] = {}
        self.first: Tensor | None = None  # the first layer's input, as products of images

    def __enter__(self) -> _Watch:
        """Begin to watch."""
        self.buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self.hooks = [hook for name, module in _layers(self.net) for hook in self._hooks(name, module)]
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the network as it was."""
        for hook in self.hooks:
            hook.remove()
        for name, buffer in self.net.named_buffers():
            buffer.copy_(self.buffers[name])

    def _hooks(self, name: str, layer: nn.Module | tuple[nn.ReLU, nn.Conv2d]) -> Iterator[RemovableHandle]:
        if isinstance(layer, nn.Module):
            conv = layer.conv if isinstance(layer, Block) else None
            yield layer.register_forward_hook(lambda _, given, y: self._see(name, conv, given[0], y))
        else:
            before: list[Tensor] = []
            relu, conv = layer
            yield relu.register_forward_pre_hook(lambda _, given: before.append(given[0].clone()))
            yield conv.register_forward_hook(lambda _, given, y: self._see(name, conv, before.pop(), y))

    @torch.no_grad()
    def _see(self, name: str, conv: nn.Conv2d | None, x: Tensor, y: Tensor) -> None:
        x, out = x.detach().float(), y.detach().float()
        if not is_finite(out):
            raise TrainingError(f"the activations are infinite or NaN from {name} on")
        self.first = products(x) if self.first is None else self.first
        of_out = products(out)
        dimensions = of_out.trace().square() / of_out.square().sum().clamp(min=TINY)
        layer = LayerSignal(
            layer=name,
            mean=float(out.mean()),
            std=float(out.std((0, 2, 3), correction=0).square().mean().sqrt()),
            kept=_correlation(x, out),
            arrived=float(likeness(self.first, of_out)),
            dimensions=float(dimensions),
            passed=None,
            relu_keeps=None,
            identity=None,
        )
        if conv is not None:
            weight = conv.effective_weight() if isinstance(conv, DiracConv2d) else conv.weight
            identity = float(identity_share(weight.float(), conv.groups).mean())
            passed, relu_keeps = float((x > 0).float().mean()), _correlation(x, x.relu())
            layer = replace(layer, passed=passed, relu_keeps=relu_keeps, identity=identity)
        index = len(self.layers)
        self.layers.append(layer)
        self.filters.append(conv.weight if conv is not None and conv.weight.requires_grad else None)
        if y.requires_grad:
            y.register_hook(lambda gradient: self._see_gradient(index, gradient))  # type: ignore[no-untyped-call]

    def _see_gradient(self, index: int, gradient: Tensor) -> None:
        self.gradients[index] = float(torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64).mean())


def products(features: Tensor) -> Tensor:
    """The inner products [batch, batch] of images' features [batch, ...], after the images' mean is taken off."""
    centred = (features - features.mean(0)).flatten(1)
    return centred @ centred.T


def likeness(first: Tensor, second: Tensor) -> Tensor:
    """How alike two kinds of features describe the same images: the centred kernel alignment of their inner products.

    Estimated without the bias that few images with many features have (Song et al. 2012; Kornblith et al. 2019). It
    does not change when features are rotated, or all multiplied by one number.

    Args:
        first, second: inner products of images, [batch, batch] each; see `products`.

    Returns:
        A scalar: 1 for features that differ by a rotation and a scale, about 0 for unrelated ones.

    >>> x, turn = torch.randn(8, 5), torch.linalg.qr(torch.randn(5, 5)).Q
    >>> round(float(likeness(products(x), products(3 * x @ turn))), 4)
    1.0
    """
    together, alone, other = _covered(first, second), _covered(first, first), _covered(second, second)
    return together / (alone * other).clamp(min=TINY).sqrt()


def _covered(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion, up to a factor (Song et al. 2012, eq. 5)."""
    first, second = (side.double() - side.diagonal().double().diag() for side in (first, second))
    count = len(first)
    sums = first.sum() * second.sum() / ((count - 1) * (count - 2))
    return (first * second).sum() + sums - 2 / (count - 2) * (first.sum(0) @ second.sum(0))


def _layers(net: nn.Module) -> list[tuple[str, nn.Module | tuple[nn.ReLU, nn.Conv2d]]]:
    """The blocks of a network of `create_model`; the pairs of ReLU and convolution of a chain."""
    if isinstance(net, Network):
        named = [(f"groups.{index}", group) for index, group in enumerate(net.groups)]
        return [(f"{group}.{name}", block) for group, blocks in named for name, block in blocks.named_children()]
    if isinstance(net, nn.Sequential):
        return [
            (name, (relu, conv))
            for (_, relu), (name, conv) in itertools.pairwise(net.named_children())
            if isinstance(relu, nn.ReLU) and isinstance(conv, nn.Conv2d)
        ]
    raise UsageError(
        f"the layers of a {type(net).__name__} are not known; take a network of create_model, or what fold makes of it"
    )


def _correlation(x: Tensor, y: Tensor) -> float | None:
    """Of channels with channels, over images and pixels: [batch, channels, height, width] each."""
    if x.shape[2:] != y.shape[2:]:
        return None
    channels = min(x.shape[1], y.shape[1])
    x, y = (side[:, :channels].transpose(0, 1).flatten(1) for side in (x, y))  # [channels, values]
    x, y = (side - side.mean(1, keepdim=True) for side in (x, y))
    scale = x.norm(dim=1) * y.norm(dim=1)
    return float(((x * y).sum(1) / scale.clamp(min=TINY)).mean())
