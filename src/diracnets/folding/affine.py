"""The algebra of `unbranch`: sums of convolutions of the channels that a chain holds at one place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError

Pair = tuple[int, int]  # one number for each axis of an image
ONE: Pair = (1, 1)


@dataclass(eq=False)
class Atom:
    """Some of the channels that a chain holds at one place.

    Attributes:
        channels: how many.
        positive: whether none of their values can be negative, so that a ReLU passes them.
    """

    channels: int
    positive: bool


@dataclass(frozen=True)
class Window:
    """Where a convolution looks: its kernel size, stride, zero padding and dilation.

    >>> Window((3, 3), padding=(1, 1)).excess, Window(stride=(2, 2)).is_point
    ((0, 0), True)
    """

    kernel: Pair = ONE
    stride: Pair = ONE
    padding: Pair = (0, 0)
    dilation: Pair = ONE

    @property
    def is_point(self) -> bool:
        """Whether it looks at one pixel alone, as what carries a value does."""
        return self.kernel == ONE and self.padding == (0, 0)

    @property
    def excess(self) -> Pair:
        """By how many pixels an output of stride 1 is larger than the input."""
        return both(lambda k, p, d: 2 * p - d * (k - 1), self.kernel, self.padding, self.dilation)

    def strided(self, factor: Pair) -> Window:
        """The same with a stride that is larger by a factor: every second output, for instance."""
        return replace(self, stride=both(lambda a, b: a * b, self.stride, factor))


@dataclass(frozen=True)
class Term:
    """A convolution of an atom.

    Attributes:
        atom: its input.
        weight: [out, in, kernel height, kernel width], or [channels] factors of each channel alone.
        window: where it looks.
        name: of the layer that it comes from, for errors.
    """

    atom: Atom
    weight: Tensor
    window: Window
    name: str


@dataclass(frozen=True)
class Affine:
    """A sum of convolutions of atoms, and a constant of each channel, [out]."""

    terms: tuple[Term, ...]
    bias: Tensor

    @property
    def is_point(self) -> bool:
        """Whether each pixel of the sum depends on one pixel of each atom."""
        return all(term.window.is_point for term in self.terms)

    @property
    def is_positive(self) -> bool:
        """Whether no sum can be negative, whatever the atoms hold."""
        return (
            all(term.atom.positive for term in self.terms)
            and bool((self.bias >= 0).all())
            and all(bool((term.weight >= 0).all()) for term in self.terms)
        )

    def scaled(self, scale: Tensor, shift: Tensor) -> Affine:
        """`scale * sum + shift`, both [out]."""
        terms = (replace(term, weight=_along(scale, term.weight) * term.weight) for term in self.terms)
        return Affine(tuple(terms), self.bias * scale + shift)

    def mixed(self, weight: Tensor, name: str) -> Affine:
        """A 1x1 convolution of the sum, whose weight is [new, out, 1, 1]."""
        matrix = weight.flatten(1)

        def after(own: Tensor) -> Tensor:
            return (
                (matrix * own)[..., None, None] if own.ndim == 1 else (matrix @ own.flatten(1)).view(-1, *own.shape[1:])
            )

        terms = (replace(term, weight=after(term.weight), name=name) for term in self.terms)
        return Affine(tuple(terms), matrix @ self.bias)

    def subsampled(self, factor: Pair) -> Affine:
        """Every `factor`-th row and column of the sum."""
        if factor == ONE:
            return self
        return replace(self, terms=tuple(replace(t, window=t.window.strided(factor)) for t in self.terms))

    def convolved(self, weight: Tensor, window: Window, name: str) -> Affine:
        """A convolution of the sum, which must be one of single pixels, of stride 1 and without constants."""

        def before(own: Tensor) -> Tensor:
            return (
                weight * own[:, None, None] if own.ndim == 1 else torch.einsum("omhw,mi->oihw", weight, own[..., 0, 0])
            )

        terms = (Term(term.atom, before(term.weight), window, name) for term in self.terms)
        return Affine(tuple(terms), self.bias.new_zeros(len(weight)))

    def rows(self, chosen: Tensor) -> Affine:
        """Some channels of the sum: those where `chosen`, [out], is true."""

        def cut(weight: Tensor) -> Tensor:
            return (torch.diag(weight)[..., None, None] if weight.ndim == 1 else weight)[chosen]

        return Affine(tuple(replace(term, weight=cut(term.weight)) for term in self.terms), self.bias[chosen])


def of_atom(atom: Atom, like: Tensor) -> Affine:
    """An atom as it is, with numbers of the dtype and on the device of `like`."""
    ones = like.new_ones(atom.channels)
    return Affine((Term(atom, ones, Window(), "what is carried"),), torch.zeros_like(ones))


def added(sums: Sequence[Affine]) -> Affine:
    """The sum of sums of equally many channels."""
    return Affine(tuple(term for each in sums for term in each.terms), torch.stack([each.bias for each in sums]).sum(0))


def layer_of(sums: Sequence[Affine], atoms: Sequence[Atom], flat: bool, size: Pair | None = None) -> nn.Module | None:
    """One layer that computes the sums one below the other from the atoms; None where it would do nothing.

    Args:
        sums: all of the same stride.
        atoms: the input's channels, in order.
        flat: whether the input has no height and width: the layer is then a linear one.
        size: the input's height and width, where sums that are as large as each other at this size alone may be
            computed; None where they must be so at any.

    Raises:
        FoldError: the sums have other sizes than each other.
    """
    windows = {term.window for each in sums for term in each.terms}
    window = _around(windows, [term for each in sums for term in each.terms], size)
    first = dict(zip(map(id, atoms), _starts([atom.channels for atom in atoms]), strict=True))
    width = sum(atom.channels for atom in atoms)
    bias = torch.cat([each.bias for each in sums])
    weight = bias.new_zeros(len(bias), width, *window.kernel)
    for each, row in zip(sums, _starts([len(each.bias) for each in sums]), strict=True):
        for term in each.terms:
            part = weight[row : row + len(each.bias), first[id(term.atom)] :][:, : term.atom.channels]
            _add_to(part, term, window)
    point = window.is_point and window.stride == ONE
    if point and not bias.any() and len(bias) == width and torch.equal(weight[..., 0, 0], torch.eye(width).to(weight)):
        return None
    layer: nn.Conv2d | nn.Linear
    if flat:
        layer = nn.Linear(width, len(bias), bias=bool(bias.any()), device="meta")
        weight = weight[..., 0, 0]
    else:
        layer = nn.Conv2d(
            width,
            len(bias),
            window.kernel,
            window.stride,
            window.padding,
            window.dilation,
            bias=bool(bias.any()),
            device="meta",
        )
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.eval()


def _around(windows: set[Window], terms: Sequence[Term], size: Pair | None) -> Window:
    """The smallest window that holds all, which must give outputs of one size."""
    if len(windows) == 1:
        return next(iter(windows))
    padding = both(max, *(window.padding for window in windows))
    after = both(max, *(both(lambda p, e: p - e, window.padding, window.excess) for window in windows))
    wide = {window.dilation for window in windows if not window.is_point}
    dilation = wide.pop() if len(wide) == 1 else ONE
    if any((p - q) % d for w in windows for p, q, d in zip(padding, w.padding, dilation, strict=True)):
        dilation = ONE
    kernel = both(lambda before, after, d: (before + after) // d + 1, padding, after, dilation)
    found = sorted({(term.window.stride, term.window.excess, term.name) for term in terms})
    stride = found[0][0]
    whole = (stride, both(operator.sub, padding, after), found[0][2])
    for other in (*found[1:], whole):
        if other[0] != stride or _output(size, other) != _output(size, found[0]):
            raise FoldError(
                f"{found[0][2]} and {other[2]} give maps of different sizes ({_pixels(found[0][1])} and "
                f"{_pixels(other[1])}), so that one convolution cannot compute both"
            )
    return Window(kernel, stride, padding, dilation)


def _output(size: Pair | None, window: tuple[Pair, Pair, str]) -> Pair:
    """The size of what a window of this stride and excess gives; the excess itself where the input's is not known."""
    stride, excess, _ = window
    return excess if size is None else both(lambda n, e, s: (n - 1 + e) // s, size, excess, stride)


def _add_to(part: Tensor, term: Term, window: Window) -> None:
    """Add a term's weight to a part of a layer's, [out, in, kernel height, kernel width], where it looks."""
    own = term.window
    places = [
        [(whole - pad + gap * index) // step for index in range(size)]
        for whole, pad, gap, step, size in zip(
            window.padding, own.padding, own.dilation, window.dilation, own.kernel, strict=True
        )
    ]
    for row, top in enumerate(places[0]):
        for column, left in enumerate(places[1]):
            if term.weight.ndim == 1:
                part[:, :, top, left].diagonal().add_(term.weight)
            else:
                part[:, :, top, left] += term.weight[:, :, row, column]


def _pixels(excess: Pair) -> str:
    return " x ".join(f"{each:+d}" for each in excess) + " pixels"


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _along(vector: Tensor, weight: Tensor) -> Tensor:
    return vector if weight.ndim == 1 else vector.view(-1, 1, 1, 1)


def both(function: Callable[..., int], *pairs: Pair) -> Pair:
    """A function of the numbers for each axis."""
    first, second = (function(*numbers) for numbers in zip(*pairs, strict=True))
    return first, second
