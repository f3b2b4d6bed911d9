"""What a chain computes of a fixed image: by that a model file is checked, here and on another machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diracnets.artifacts import layers
from diracnets.errors import UsageError, first_line
from diracnets.models.integer import IntegerChain

_CHUNK = 1 << 20
VALUES = 1000  # of the output that are looked at
TOLERANCE = 1e-3  # relative to the largest: float32 on another processor stays far below, a wrong layer does not


def outputs_in_float32(chain: nn.Sequential | IntegerChain, input_size: Sequence[int]) -> list[float]:
    """The first outputs of ordinary layers with the chain's arguments and tensors, whatever dtype these have.

    Those of an integer chain are its own.

    >>> [round(value, 3) for value in outputs_in_float32(nn.Sequential(nn.Flatten(), nn.ReLU()), (1, 2, 1))]
    [0.0, 0.644]
    """
    if isinstance(chain, IntegerChain):
        return _outputs(chain, input_size)
    plain = layers.from_data(layers.to_data(chain)).eval()
    state = {name: t.float() if t.is_floating_point() else t for name, t in chain.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    return _outputs(plain, input_size)


def check_computes(chain: nn.Module, outputs: Sequence[float], input_size: Sequence[int]) -> None:
    """Refuse a chain that computes something else than its layers and tensors say, for whatever reason.

    Args:
        chain: any; it is not changed.
        outputs: what `outputs_in_float32` gives.
        input_size: (channels, height, width) of an image.

    Raises:
        UsageError: it cannot be copied or run, or gives other outputs.
    """
    try:
        found = _outputs(copy.deepcopy(chain).cpu().float().eval(), input_size)
    except Exception as error:  # code in a chain may raise anything
        raise UsageError(f"it cannot be run ({type(error).__name__}: {first_line(error)})") from error
    most = TOLERANCE * max(map(abs, outputs))
    if len(found) != len(outputs) or not all(abs(a - b) <= most for a, b in zip(found, outputs, strict=True)):
        raise UsageError(
            "it computes something else than ordinary layers with its arguments and weights do; build it of such layers"
        )


@torch.inference_mode()
def _outputs(chain: nn.Module, input_size: Sequence[int]) -> list[float]:
    """On an image that no random number generator of any version changes."""
    image = torch.empty(math.prod(input_size))
    for first in range(0, len(image), _CHUNK):  # all of a large image in float64 would take four times its memory
        part = image[first : first + _CHUNK]
        part.copy_(torch.arange(first, first + len(part), dtype=torch.float64).mul(0.7).sin())
    output: Tensor = chain(image.reshape(1, *input_size))
    return output.flatten()[:VALUES].tolist()
