"""What is said of a network in C: what it takes, how much memory it needs, and how that is laid out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diracnets._version import __version__
from diracnets.artifacts.card import ModelCard
from diracnets.deploy.c.network import CNetwork
from diracnets.deploy.c.plan import Plan, Segment, two_buffers
from diracnets.deploy.c.write import static_bytes


def describe(network: CNetwork, card: ModelCard, plan: Plan, others: Mapping[str, Plan], name: str) -> str:
    """A few lines, with the memory of every plan.

    Args:
        network: to write.
        card: of it.
        plan: that was taken.
        others: all that there are, by name.
        name: of the network.
    """
    memory = static_bytes(network, plan)
    weights = sum(array.nbytes for array in (network.weights, network.biases, network.multipliers, network.shifts))
    size = " x ".join(map(str, card.input_size))
    outputs = int(np.prod(network.steps[-1].after))
    kind = "int8" if network.integers else "float"
    rest = [f"{key} {other.size:,}" for key, other in others.items() if other is not plan]
    lines = [
        f"{name}, a chain of {len(network.steps)} layers in {kind}: images of {size}, {outputs} outputs.",
        f"Written by diracnets {__version__}.",
        "",
        f"Static memory: {sum(memory.values()):,} bytes ({', '.join(f'{key} {n:,}' for key, n in memory.items())}).",
        f"Weights: {weights:,} bytes.",
        f"Plan of the activations: {plan.name}",
        *(f"  {_layers(network, segment)}: {segment.size:,} bytes" for segment in plan.segments),
        f"Other plans: {', '.join(rest)}; two whole maps {two_buffers(network.steps):,} bytes.",
    ]
    return "\n".join(lines)


def _layers(network: CNetwork, segment: Segment) -> str:
    first, last = network.steps[segment.first], network.steps[segment.last]
    after = " x ".join(map(str, last.after))
    if segment.first == segment.last:
        return f"layer {first.name} in place, to {after}"
    return f"layers {first.name} to {last.name} row by row, to {after}"
