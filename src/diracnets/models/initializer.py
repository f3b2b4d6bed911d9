"""The layers of a network's blocks, initialized: filters, Dirac scales, and BatchNorm weights and biases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from diracnets.errors import UsageError
from diracnets.models.init import Filters, Init
from diracnets.nn.dirac import DiracConv2d, draw_filters
from diracnets.nn.diracify import undiracify

MOST_BETA = 0.5  # of "deep", where the network is shallow
BETA_BY_DEPTH = 20.0  # c_b: beta = c_b / blocks
DEEP_BIAS = 1.0  # of "deep", at any depth
CARRIER_BETA, CARRIER_BIAS = 0.2, 1.5  # of "carriers", for the channels that carry
WORKER_ALPHA, WORKER_BETA, WORKER_BIAS = 0.1, 1.0, 0.0  # and for the others
MOST_BEFORE_CLASSIFIER = 4.0  # the most that a bias may add to the length of the mean of the classifier's input


@dataclass(frozen=True)
class Initializer:
    """An `Init` resolved for a network: it makes the layers of the network's blocks.

    Args:
        filters: how filters are drawn, see `Init`.
        alpha, beta: the scales of Dirac convolutions. Ordinary convolutions are initialized to what a Dirac one of
            these scales computes, or as drawn where both are None.
        bias: of every batch norm that a ReLU follows, but for the last one where this is too much for the classifier,
            see `before_classifier`. What is added to another branch before its ReLU has 0.
        scale: of every batch norm, a number or "uniform" for U(0, 1).
        dirac: whether the blocks have Dirac convolutions.
        workers: whether every other channel, the second one first, has the scales and the bias of a worker instead, see
            `carriers`.

    >>> paper(dirac=True).conv(8, 16)
    DiracConv2d(8, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    filters: Filters
    alpha: float | None
    beta: float | None
    bias: float
    scale: Literal["uniform"] | float
    dirac: bool
    workers: bool = False

    def conv(self, channels_in: int, channels_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
        """A convolution of `size` x `size` without bias, padded to keep the size of its input where `stride` is 1."""
        sizes = (channels_in, channels_out, size, stride, size // 2)
        if self.alpha is None or self.beta is None:
            conv = nn.Conv2d(*sizes, bias=False)
            draw_filters(conv.weight, self.filters)
            return conv
        alpha = self._by_channel(self.alpha, WORKER_ALPHA, channels_out)
        beta = self._by_channel(self.beta, WORKER_BETA, channels_out)
        conv = DiracConv2d(*sizes, bias=False, alpha=alpha, beta=beta, init=self.filters)
        return conv if self.dirac else undiracify(conv, inplace=True)  # type: ignore[return-value]

    def before_classifier(self, channels: int) -> Initializer:
        """The same for the last block, whose ReLU only the pooling and the classifier follow.

        After a bias m the classifier's n inputs have a mean that all images share, about m where m is large and 0.4
        where it is 0. The curvature of the loss along it is a tenth of its squared length for ten even classes, and the
        largest rate with which steps are stable falls with it. So a bias above 4 / sqrt(n), which could add as much as
        4 to that length, is 0 here, and others stay: 64 features of bias 0.5 stand rates up to 0.44, with Nesterov's
        momentum of 0.9.

        Args:
            channels: n, the network's features.

        >>> deep(996).before_classifier(64).bias, replace(deep(24), bias=0.5).before_classifier(64).bias
        (0.0, 0.5)
        """
        stands = abs(self.bias) <= MOST_BEFORE_CLASSIFIER / math.sqrt(channels)
        return self if stands else replace(self, bias=0.0)

    def norm(self, channels: int, shifted: bool = True) -> nn.BatchNorm2d:
        """A batch norm with the bias if it is to be shifted, and else with 0."""
        norm = nn.BatchNorm2d(channels)
        if self.scale == "uniform":
            nn.init.uniform_(norm.weight)
        else:
            nn.init.constant_(norm.weight, self.scale)
        nn.init.constant_(norm.bias, self.bias if shifted else 0.0)
        if self.workers and shifted:
            nn.init.constant_(norm.bias.detach()[1::2], WORKER_BIAS)
        return norm

    def _by_channel(self, value: float, of_workers: float, channels: int) -> float | list[float]:
        """A scale of all channels, or of every other one with that of workers between."""
        return [of_workers if place % 2 else value for place in range(channels)] if self.workers else value


def paper(dirac: bool, scale: Literal["uniform"] | float = "uniform") -> Initializer:
    """The paper's: W from N(0, 1), alpha 1, beta 0.1, bias 0; ordinary convolutions are drawn Kaiming normal.

    Args:
        dirac: whether the blocks have Dirac convolutions.
        scale: of the batch norms; U(0, 1) in the paper's networks.

    >>> paper(dirac=False)
    Initializer(filters='kaiming', alpha=None, beta=None, bias=0.0, scale='uniform', dirac=False, workers=False)
    """
    if dirac:
        return Initializer("normal", alpha=1.0, beta=0.1, bias=0.0, scale=scale, dirac=True)
    return Initializer("kaiming", alpha=None, beta=None, bias=0.0, scale=scale, dirac=False)


def deep(blocks: int, dirac: bool = True) -> Initializer:
    """An initialization with which the signal survives any number of blocks `ReLU -> Dirac convolution -> batch norm`.

    Two things take signal, the correlation of a block's output with its input, from block to block. The random filters
    add noise, the part beta^2 / (alpha^2 + beta^2) of a block's output, so that the correlation shrinks by the factor
    (1 + (beta / alpha)^2)^(-1/2), and over L blocks by about exp(-L beta^2 / 2) where alpha is 1. That would stay the
    same with beta = c_b / sqrt(L). beta = c_b / L keeps what training adds the same too, as blocks change alike, not at
    random; 1,000 layers trained best with it, at a higher rate. And a ReLU throws away what is negative, half of the
    signal after batch norms of bias 0, again and again. After a bias of 1 it is a part in 13 at first; and as the
    next batch norm puts what is left of a channel to the same mean and deviation, the next ReLU cuts off far less of
    it, where the filters in between are near to identities. A larger bias keeps more, but leaves the ReLUs too little
    to do. Filters are drawn Kaiming normal, so that a step turns them as far as those of a plain network.

    Args:
        blocks: L, at least 1.
        dirac: whether the blocks have Dirac convolutions; the bias is the same without.

    Raises:
        UsageError: no blocks.

    >>> init = deep(996)
    >>> round(init.beta, 3), init.bias, init.filters, init.scale
    (0.02, 1.0, 'kaiming', 1.0)
    """
    if blocks < 1:
        raise UsageError(f"blocks is {blocks}; it must be at least 1")
    beta = min(MOST_BETA, BETA_BY_DEPTH / blocks)
    return Initializer(
        "kaiming", alpha=1.0 if dirac else None, beta=beta if dirac else None, bias=DEEP_BIAS, scale=1.0, dirac=dirac
    )


def carriers(blocks: int) -> Initializer:
    """An initialization that tells channels which are to carry the signal from those that are to work with it.

    In trained chains some channels pass on what comes in, and others compute something new from all of them: the
    division of labour of a residual network, whose skip-connection is the carrier. Here it is there from the beginning.
    Every other channel carries: alpha 1, a small beta, and a bias that lets most of the signal through the ReLU. The
    channels between them work: filters at full scale, hardly any identity, and no bias, so that the ReLU cuts off half.
    Beta falls with the depth as in `deep`.

    Args:
        blocks: L, at least 1.

    Raises:
        UsageError: no blocks.

    >>> carriers(24).conv(4, 4).alpha.tolist(), carriers(24).norm(4).bias.tolist()
    ([1.0, 0.10000000149011612, 1.0, 0.10000000149011612], [1.5, 0.0, 1.5, 0.0])
    """
    own = deep(blocks)
    beta = min(CARRIER_BETA, BETA_BY_DEPTH / blocks)
    return replace(own, beta=beta, bias=CARRIER_BIAS, workers=True)


def resolved(init: Init, blocks: int, dirac: bool, scale: Literal["uniform"] | float) -> Initializer:
    """What an initialization means for a network: its scheme's values, and instead of them what it gives itself.

    Args:
        init: how the network is to be initialized.
        blocks: of the network.
        dirac: whether it has Dirac convolutions.
        scale: of its batch norms in the paper's scheme.

    Raises:
        UsageError: only one of alpha and beta for a network without Dirac convolutions, or carriers without identities.

    >>> resolved(Init("deep", bias=0.5), blocks=24, dirac=True, scale="uniform").bias
    0.5
    """
    if not dirac and (init.alpha is None) != (init.beta is None):
        given = f"alpha is {init.alpha}" if init.beta is None else f"beta is {init.beta}"
        raise UsageError(
            f"{given}, but this network has no Dirac convolutions: give alpha and beta, and its filters are "
            "initialized to what Dirac convolutions of these scales compute, or give neither"
        )
    if init.scheme == "carriers" and not dirac and init.alpha is None:
        raise UsageError(
            "init carriers starts from the identities of Dirac convolutions, and this network has none: give alpha and "
            "beta, and its filters are initialized to what Dirac convolutions of these scales compute, or take deep"
        )
    if init.scheme == "carriers":
        own = replace(carriers(blocks), dirac=dirac)
    else:
        own = deep(blocks, dirac) if init.scheme == "deep" else paper(dirac, scale)
    if init.scheme == "kaiming":
        own = replace(own, filters="kaiming")
    given_values = {name: getattr(init, name) for name in ("filters", "alpha", "beta", "bias")}
    return replace(own, **{name: value for name, value in given_values.items() if value is not None})
