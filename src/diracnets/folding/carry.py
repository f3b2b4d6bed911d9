"""A part of a network with branches, computed by a chain in which extra channels carry what its skip-connections do.

The idea of "reserving and merging" in Meng et al., "RMNet: Equivalently Removing Residual Connection from Networks",
arXiv 2111.00687, for any graph of convolutions, batch norms, sums and ReLUs.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from diracnets.errors import FoldError
from diracnets.folding.affine import ONE, Affine, Atom, Pair, Term, Window, added, both, layer_of, of_atom

STEEPEST = 8.0  # how much larger a batch norm's bias than its weight may be where its input is computed back


@dataclass(eq=False)
class Value:
    """One step of a part of a network.

    Attributes:
        kind: what it is: the part's input, or what it does to its sources.
        name: for errors.
        sources: what it is computed from.
        channels: of its output.
        step: how many pixels of the part's input lie between two of its own, for each axis.
        weight: of a convolution, [out, in, kernel height, kernel width]; None for subsampling alone.
        bias: of a convolution, [out], or None.
        window: of a convolution.
        norm: scale and shift of a batch norm, [channels], and where its input can be computed back from its output.
    """

    kind: Literal["start", "relu", "sum", "scale", "conv"]
    name: str
    sources: tuple[Value, ...]
    channels: int
    step: Pair = ONE
    weight: Tensor | None = None
    bias: Tensor | None = None
    window: Window = field(default_factory=Window)
    norm: tuple[Tensor, ...] = ()


class Carrier:
    """Writes the layers of a chain for one part of a network, layer by layer.

    A state is what the chain holds between two layers: atoms of channels. A layer computes every ReLU whose input is a
    sum of convolutions of the state, and whatever signed values must be kept for later. The rest of the state passes
    through identities. What is signed takes two channels, `relu(x)` and `relu(-x)`. If a batch norm and a ReLU of x
    are computed too, one more is enough: `relu(s x + t) - relu(-(s x + t)) = s x + t`.

    Args:
        start: the input.
        positive: whether the input cannot be negative.
        values: the steps, each after its sources.
        like: a tensor of the dtype and device to compute with.
        size: height and width of the input; None where values have none.
    """

    def __init__(
        self, start: Value, positive: bool, values: Sequence[Value], like: Tensor, size: tuple[int, int] | None
    ) -> None:
        self.values, self.like, self.size = values, like, size
        self.uneven = False  # whether a layer computes values that are as large as each other at this size alone
        atom = Atom(start.channels, positive)
        self.state = [atom]
        self.held: dict[Value, Affine] = {start: of_atom(atom, like)}
        self.step = ONE
        self.known: dict[Value, tuple[Affine, Pair]] = {}
        self.blocked: set[Value] = set()
        self.layers: list[nn.Module] = []

    def compute(self, target: Value) -> bool:
        """Write layers until the state is `target` alone; gives whether it cannot be negative."""
        while not self._is_state(target):
            self._advance(target)
        return self.state[0].positive

    def _is_state(self, target: Value) -> bool:
        if target not in self.held or len(self.state) > 1 or self.step != target.step:
            return False
        held = self.held[target]
        only = len(held.terms) == 1 and held.terms[0].weight.ndim == 1
        return only and bool((held.terms[0].weight == 1).all()) and not held.bias.any()

    def _advance(self, target: Value) -> None:
        """Write one layer."""
        wanted = self._wanted([target], self.held)
        self._find_known(wanted)
        relus = [v for v in self.values if v.kind == "relu" and v in wanted and v not in self.known]
        relus_ready = [v for v in relus if self._is_known(v.sources[0])]
        others = [v for v in self.values if v in self.blocked and self._is_known(v)]
        if not relus and not others and self._is_known(target):
            others = [target]
        if not relus_ready and not others:
            raise FoldError(f"{(relus or [target])[0].name} cannot be computed next to what is carried past it")
        stride = min((_over(v.step, self.step) for v in (*relus_ready, *others)), key=lambda each: each[0] * each[1])
        now = {v for v in (*relus_ready, *others) if _over(v.step, self.step) == stride}
        future = [v.sources[0] for v in relus if v not in now] + ([] if target in now else [target])
        left = self._wanted(future, {*self.known, *now})
        needed = [v for v in self.values if v in left and v in self.known and v not in now]
        layer = _Layer(self, stride, [v for v in relus_ready if v in now])
        for value in others:
            if value in now:
                layer.hold(value, plain=True)
        for value in sorted(needed, key=lambda value: value not in self.held):
            layer.keep_or_hold(value)
        layer.write()

    def _wanted(self, targets: Sequence[Value], given: Container[Value]) -> set[Value]:
        """The values that targets are computed from, down to those given."""
        wanted = set(targets)
        for value in reversed(self.values):
            if value in wanted and value not in given:
                wanted.update(value.sources)
        return wanted

    def _is_known(self, value: Value) -> bool:
        """Whether a value is a sum of convolutions of the state, at its own size."""
        return value in self.known and self.known[value][1] == value.step

    def _find_known(self, wanted: set[Value]) -> None:
        """Find the values that are sums of convolutions of the state, and those that a padded convolution waits for."""
        self.known, self.blocked = {}, set()
        for value in self.values:
            if value in self.held:
                self.known[value] = self.held[value], self.step
            elif value in wanted and value.sources and all(source in self.known for source in value.sources):
                found = self._apply(value)
                if found is not None:
                    self.known[value] = found

    def _apply(self, value: Value) -> tuple[Affine, Pair] | None:
        """A value as a sum of convolutions of the state, with its step; None where it is none."""
        sources = [self.known[source] for source in value.sources]
        one, step = sources[0]
        if value.kind == "relu":
            return (one, step) if one.is_positive else None
        if value.kind == "scale":
            return one.scaled(*value.norm[:2]), step
        if value.kind == "sum":
            step = both(max, *(each for _, each in sources))
            if any(not _divides(own, step) for _, own in sources):
                return None
            return added([each.subsampled(_over(step, own)) for each, own in sources]), step
        if value.weight is None or value.window.is_point:
            if value.weight is not None:
                one = one.mixed(value.weight, value.name)
            target = both(max, step, value.step)
            if not _divides(step, target):
                return None
            one = one.subsampled(_over(target, step))
            return (one if value.bias is None else one.scaled(torch.ones_like(value.bias), value.bias)), target
        if step != value.sources[0].step:
            return None
        pads = value.window.padding != (0, 0)
        straight = one.is_point and all(term.window.stride == ONE for term in one.terms)
        if not straight or (pads and bool(one.bias.any())):
            self.blocked.add(value.sources[0])
            return None
        constant = one.bias
        one = one.convolved(value.weight, value.window, value.name)
        shift = value.weight.sum((2, 3)) @ constant
        shift = shift if value.bias is None else shift + value.bias
        return one.scaled(torch.ones_like(shift), shift), value.step


class _Layer:
    """One layer that is being written: what it makes, and what of the state it keeps.

    Args:
        carrier: writes the chain.
        stride: of the layer.
        relus: the ReLUs that it computes.
    """

    def __init__(self, carrier: Carrier, stride: Pair, relus: Sequence[Value]) -> None:
        self.carrier, self.stride, self.relus = carrier, stride, relus
        self.made: list[tuple[Affine, Atom]] = []
        self.kept: dict[Atom, None] = {}
        self.new: dict[Value, Affine] = {}
        for value in relus:
            self.new[value] = of_atom(self._make(carrier.known[value.sources[0]][0], positive=True), carrier.like)

    def _make(self, rows: Affine, positive: bool) -> Atom:
        atom = Atom(len(rows.bias), positive)
        self.made.append((rows, atom))
        return atom

    def hold(self, value: Value, plain: bool = False) -> None:
        """Make a value itself a part of the next state; `plain` says without a constant in what it is computed from."""
        found, step = self.carrier.known[value]
        found = found.subsampled(_over(self.stride, _over(step, self.carrier.step)))
        like = self.carrier.like
        if not self.relus or found.is_positive:
            self.new[value] = of_atom(self._make(found, found.is_positive), like)
            return
        companion = self._companion(value, plain)
        if companion is None:
            signs = [(self._make(found.scaled(like * sign, like * 0), True), sign) for sign in (1.0, -1.0)]
            self.new[value] = added([of_atom(atom, like).scaled(like * sign, like * 0) for atom, sign in signs])
            return
        relu, (scale, shift, steady) = companion
        scale, shift = torch.where(steady, scale, 1.0), torch.where(steady, shift, 0.0)
        above = self.new[relu]
        below = of_atom(self._make(found.scaled(-scale, -shift), True), like)
        parts = [above.scaled(steady / scale, -shift / scale), below.scaled(-1 / scale, like * 0)]
        if not steady.all():
            rest = self._make(found.rows(~steady), True)
            into = torch.diag(torch.ones_like(scale))[:, ~steady, None, None]
            parts.append(Affine((Term(rest, into, Window(), value.name),), torch.zeros_like(scale)))
        self.new[value] = added(parts)

    def _companion(self, value: Value, plain: bool) -> tuple[Value, tuple[Tensor, ...]] | None:
        """A ReLU of the same value, scaled and shifted, that this layer computes, with the `norm` of its input."""
        ones = self.carrier.like.new_ones(value.channels)
        for relu in self.relus:
            source = relu.sources[0]
            if source is value:
                return relu, (ones, 0 * ones, ones.bool())
            if source.kind == "scale" and source.sources[0] is value and not (plain and source.norm[1].any()):
                return relu, source.norm
        return None

    def _cost(self, value: Value) -> int:
        """How many channels `hold` would take."""
        found, _ = self.carrier.known[value]
        if not self.relus or found.is_positive:
            return value.channels
        companion = self._companion(value, plain=False)
        return 2 * value.channels - (0 if companion is None else int(companion[1][2].sum()))

    def keep_or_hold(self, value: Value) -> None:
        """Keep the atoms that a value is a sum of, or hold the value itself: whichever takes fewer channels.

        Where neither can be done, as for a signed value that is subsampled later, the same for what it is made of.
        """
        if value in self.new:
            return
        found, step = self.carrier.known[value]
        stride = _over(step, self.carrier.step)
        atoms = {term.atom for term in found.terms}
        cost = sum(atom.channels for atom in atoms if atom not in self.kept)
        can_hold, can_keep = _divides(stride, self.stride), _divides(self.stride, stride)
        can_keep &= all(atom.positive for atom in atoms) or not self.relus
        can_keep &= found.is_point or self.stride == ONE
        if can_keep and (not can_hold or (cost <= self._cost(value) and self._is_small(value, found))):
            self.kept.update(dict.fromkeys(term.atom for term in found.terms))
        elif can_hold:
            self.hold(value)
        else:
            for source in value.sources:
                self.keep_or_hold(source)

    def _is_small(self, value: Value, found: Affine) -> bool:
        """Whether computing a value later, as a part of a sum, makes no filter larger than it is there anyway."""
        if found.is_point:
            return True
        size = max(max(term.window.kernel) for term in found.terms)
        sums = [user for user in self.carrier.values if user.kind == "sum" and value in user.sources]
        others = [other for user in sums for other in user.sources if other is not value]
        while others:
            other = others.pop()
            if other.kind == "conv" and min(other.window.kernel) >= size:
                return True
            others += other.sources if other.kind in ("scale", "sum") else ()
        return False

    def write(self) -> None:
        """Add the layer to the chain, with its ReLU, and make what it gives the state."""
        carrier = self.carrier
        kept = [(of_atom(atom, carrier.like).subsampled(self.stride), atom) for atom in self.kept]
        rows, atoms = zip(*self.made, *kept, strict=True)
        layer = layer_of(rows, carrier.state, carrier.size is None, carrier.size)
        carrier.layers += [] if layer is None else [layer]
        if carrier.size is not None and isinstance(layer, nn.Conv2d):
            carrier.uneven |= len({term.window.excess for each in rows for term in each.terms}) > 1
            window = Window(
                *(cast(Pair, getattr(layer, each)) for each in ("kernel_size", "stride", "padding", "dilation"))
            )
            carrier.size = both(lambda n, e, s: (n - 1 + e) // s + 1, carrier.size, window.excess, window.stride)
        carrier.layers += [nn.ReLU().eval()] if self.relus else []
        held = {v: a for v, a in carrier.held.items() if all(term.atom in self.kept for term in a.terms)}
        carrier.held, carrier.state = {**held, **self.new}, list(atoms)
        carrier.step = both(operator.mul, carrier.step, self.stride)


def _over(whole: Pair, part: Pair) -> Pair:
    """How many times `part` goes into `whole`, for each axis."""
    return both(operator.floordiv, whole, part)


def _divides(part: Pair, whole: Pair) -> bool:
    return both(operator.mod, whole, part) == (0, 0)
