"""What a fold did, and how exact it is, in words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diracnets.folding.rules import Folded
from diracnets.folding.tree import leaves


@dataclass(frozen=True)
class FoldReport:
    """What a fold did, and how exact it is. `dataclasses.asdict` makes plain JSON values of it.

    Attributes:
        folded: what went into which layer, in order.
        left: what was left as it is, by name, with the reason.
        chain: whether the result is one flat chain.
        dtype: the dtype that the model computes in, such as "float32".
        probe: the shapes of the tensors that both networks were run on.
        max_abs_float64: the largest absolute difference of the outputs, with both networks in float64; None if the
            model does not run in float64.
        max_rel_float64: the same divided by the largest absolute output. It is at most 1e-9, except for models that
            amplify rounding errors (see `notes`).
        max_abs, max_rel: the same in the model's dtype, with the result as it is returned. If all outputs are integers,
            these are differences of the last floating-point outputs of layers.
        parameters_before, parameters_after: numbers of parameters.
        other_probe: the shapes of the tensors of another size and range that both networks were also run on; empty if
            the model accepts no others.
        notes: sentences on how exact the fold is, and on why the result is not a flat chain.
    """

    folded: tuple[Folded, ...]
    left: dict[str, str]
    chain: bool
    dtype: str
    probe: tuple[tuple[int, ...], ...]
    max_abs_float64: float | None
    max_rel_float64: float | None
    max_abs: float
    max_rel: float
    parameters_before: int
    parameters_after: int
    other_probe: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = str(self).split("\n")
        return f"<{' '.join(lines[0].split())}; largest difference {self.max_abs:.1e} in {self.dtype}>"

    def __str__(self) -> str:
        counts = {kind: sum(entry.kind == kind for entry in self.folded) for kind in ("dirac", "batch norm")}
        lines = [
            f"folded      {counts['dirac']} Dirac parameterizations and {counts['batch norm']} batch norms"
            + (" into one flat chain" if self.chain else ""),
            f"parameters  {self.parameters_before:,} -> {self.parameters_after:,}",
            f"checked on  {sizes(self.probe)}"
            + (f", and on {sizes(self.other_probe)} of another range" if self.other_probe else ""),
        ]
        if self.max_abs_float64 is not None:
            lines.append(
                f"  float64   largest difference {self.max_abs_float64:.1e}, relative {self.max_rel_float64:.1e}"
            )
        lines.append(f"  {self.dtype:<9} largest difference {self.max_abs:.1e}, relative {self.max_rel:.1e}")
        lines += [f"note        {note}" for note in self.notes]
        lines += [f"left        {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def sizes(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Shapes of tensors, in words.

    >>> sizes(((2, 3, 8, 8), (5,)))
    '2x3x8x8 and 5'
    """
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes)


def shapes_of(inputs: object) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors in arguments."""
    return tuple(tuple(leaf.shape) for leaf in leaves(inputs) if isinstance(leaf, Tensor))
