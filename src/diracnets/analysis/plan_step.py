"""A training step without images or memory: its operations, what it saves, and what the optimizer keeps.

The network runs forward and backward on the meta device, where tensors have shapes and no numbers. So this is the very
step that training takes, the Dirac parameterization included, and not an estimate by layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diracnets.models.network import Network
from diracnets.training.optimizer import filters_of, make_optimizer
from diracnets.training.settings import OptimizationSettings

_MADE = {"empty", "empty_like", "new_empty", "empty_strided"}  # takes memory, and no time
Rows = tuple[int, int]  # of a parameter: how many, and the bytes of one
Counts = tuple[float, float, float]  # of an operation, see `Operation`
BATCHES = 2, 4  # that are traced; everything is a straight line in the number of images


@dataclass(frozen=True)
class Linear:
    """A number that grows with the images of a batch.

    >>> Linear.through(2, 10.0, 4, 16.0)(5)
    19.0
    """

    fixed: float
    per_image: float

    def __call__(self, images: float) -> float:
        """The number for so many images."""
        return self.fixed + self.per_image * images

    @classmethod
    def through(cls, first: int, at_first: float, second: int, at_second: float) -> Linear:
        """The straight line through two points."""
        slope = (at_second - at_first) / (second - first)
        return cls(at_first - slope * first, slope)


@dataclass(frozen=True)
class Operation:
    """One operation of torch: FLOPs (two a MAC), bytes that it reads and writes, and bytes of its largest result."""

    flops: Linear
    moved: Linear
    result: Linear


@dataclass(frozen=True)
class Step:
    """A training step, by the images of its batch on one device.

    Args:
        parameters: how many numbers are trained.
        weight_bytes: of parameters and buffers.
        buffer_bytes: of buffers, which FSDP2 leaves whole.
        gradient_bytes: of the parameters that are trained.
        optimizer_bytes: of its state, after its first step.
        saved: bytes that the forward pass keeps for the backward pass, parameters not counted.
        forward, backward: their operations in order.
        update: those of the optimizer; none depends on the images.
        units: the parameters that FSDP2 gathers at a time: those outside of blocks, and those of each block.
        turned: those whose gradients Muon needs whole.
        norms: channels of each batch norm.
        input_size: (channels, height, width).
    """

    parameters: int
    weight_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved: Linear
    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    update: tuple[Operation, ...]
    units: tuple[tuple[Rows, ...], ...]
    turned: tuple[Rows, ...]
    norms: tuple[int, ...]
    input_size: tuple[int, int, int]

    def kept(self, processes: int) -> float:
        """The part of all parameters that a process keeps, if they are divided among so many."""
        return (
            sum(gathered(unit, processes) for unit in self.units) / processes / (self.weight_bytes - self.buffer_bytes)
        )

    def working(self, images: float) -> float:
        """Bytes of the largest tensor that the backward pass makes, and of the one that it comes from."""
        return 2 * max(operation.result(images) for operation in self.backward)


def gathered(parameters: Iterable[Rows], processes: int) -> int:
    """Bytes of parameters when FSDP2 has gathered them: each process has whole rows, and all have as many.

    >>> gathered([(10, 4)], 1), gathered([(10, 4)], 8)  # two rows each, the last ones empty
    (40, 64)
    """
    return sum(processes * -(-rows // processes) * size for rows, size in parameters)


def traced_step(net: Network, optimization: OptimizationSettings, precision: str) -> Step:
    """Trace a training step of a network.

    Args:
        net: on the meta device, see `on_meta`; its gradients are left there.
        optimization: decides the optimizer and what it trains.
        precision: "float32", or "bfloat16" or "float16" for convolutions and linear layers.

    Raises:
        UsageError: an optimizer that does not suit the network.

    >>> from diracnets.models.build import on_meta
    >>> step = traced_step(on_meta({"name": "diracnet-10-0.25"}), OptimizationSettings(), "float32")
    >>> step.gradient_bytes == step.optimizer_bytes == 4 * step.parameters
    True
    """
    net.train()
    passes = [_Pass(net, images, precision) for images in BATCHES]
    first, second = passes
    optimizer = make_optimizer(optimization, net)
    with _Recorder() as recorded:
        optimizer.step()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    state = [value for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)]
    update = list(_joined(recorded.operations, recorded.operations))
    if optimization.optimizer == "sgd":  # one fused operation, which reads and writes everything once
        kept = 5 if optimization.momentum else 3
        update = [Operation(*(Linear(each, 0.0) for each in (0.0, float(kept * _bytes(trained)), 0.0)))]
    blocks = [list(block.parameters()) for group in net.groups for block in group.children()]
    in_blocks = {id(parameter) for block in blocks for parameter in block}
    units = [[parameter for parameter in net.parameters() if id(parameter) not in in_blocks], *blocks]
    turned = filters_of(net) if optimization.optimizer == "muon" else []
    return Step(
        parameters=sum(parameter.numel() for parameter in trained),
        weight_bytes=_bytes([*net.parameters(), *net.buffers()]),
        buffer_bytes=_bytes(net.buffers()),
        gradient_bytes=_bytes(trained),
        optimizer_bytes=_bytes(state),
        saved=Linear.through(BATCHES[0], first.saved, BATCHES[1], second.saved),
        forward=_joined(first.forward, second.forward),
        backward=_joined(first.backward, second.backward),
        update=tuple(update),
        units=tuple(tuple(map(_rows, unit)) for unit in units),
        turned=tuple(map(_rows, turned)),
        norms=tuple(layer.num_features for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)),
        input_size=net.input_size,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(map(_size, tensors))


def _rows(parameter: Tensor) -> Rows:
    return len(parameter), _size(parameter) // len(parameter)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _joined(first: list[Counts], second: list[Counts]) -> tuple[Operation, ...]:
    """The same operations on two numbers of images, as straight lines."""
    few, many = BATCHES
    pairs = (zip(a, b, strict=True) for a, b in zip(first, second, strict=True))
    return tuple(Operation(*(Linear.through(few, x, many, y) for x, y in pair)) for pair in pairs)


class _Pass:
    """One forward and backward pass of a network on the meta device."""

    def __init__(self, net: Network, images: int, precision: str) -> None:
        x = torch.empty(images, *net.input_size, device="meta")
        labels = torch.empty(images, dtype=torch.long, device="meta")
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # kept, so that no other gets its number
            return tensor

        with _Recorder() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with _Shortened(precision):
                logits = net(x)
            loss = cross_entropy(logits.float(), labels)
        for parameter in net.parameters():
            storages.pop(parameter.untyped_storage()._cdata, None)
        self.saved = float(sum(storage.nbytes() for storage in storages.values()))
        storages.clear()
        net.zero_grad()
        with _Recorder() as backward:
            loss.backward()  # type: ignore[no-untyped-call]
        self.forward, self.backward = forward.operations, backward.operations


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the FLOPs and the bytes of each operation that computes or copies something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Counts] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if func.is_view or packet.__name__ in _MADE:
            return out
        results = list(_tensors(out))
        counter = flop_registry.get(packet)
        flops = counter(*args, **kwargs, out_val=out) if counter is not None else 0
        moved = _bytes(_tensors((args, kwargs))) + _bytes(results)
        self.operations.append((float(flops), float(moved), float(max(map(_size, results), default=0))))
        return out


def _tensors(values: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """All tensors in what an operation takes or gives."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


class _Shortened(TorchFunctionMode):
    """What autocast does, which leaves the meta device alone: convolutions and linear layers in a shorter type."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.dtype: torch.dtype = getattr(torch, precision)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        if func in (conv2d, linear):
            args = tuple(self._cast(value) for value in args)
            kwargs = {name: self._cast(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _cast(self, value: Any) -> Any:  # noqa: ANN401
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
