"""Who else holds a layer's weight, or uses its numbers while the model runs: found from where it lies in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diracnets.errors import UsageError, first_line
from diracnets.nn.bytecode import HARMLESS
from diracnets.nn.dirac import HOOKS


def holders(model: nn.Module, layers: Mapping[str, nn.Module], others: Iterable[tuple[str, Tensor]]) -> dict[int, str]:
    """For the `id` of a layer, what holds another tensor in the memory of its weight.

    Args:
        model: any module.
        layers: the layers in question; they may share a parameter among them.
        others: more tensors that may lie there, with the names of what holds them.
    """
    ours = {id(layer) for layer in layers.values()}
    spans: list[tuple[int, int, Tensor, int | None, str]] = []  # from, to, the tensor, of which layer it is the weight
    for name, module in model.named_modules():
        for key, tensor in contents(module, Tensor):
            owner = id(module) if id(module) in ours and key == "weight" else None
            spans.append((*_span(tensor), tensor, owner, f"{name}.{key}".lstrip(".")))
    spans += [(*_span(tensor), tensor, None, name) for name, tensor in others]
    found: dict[int, str] = {}
    before: list[tuple[int, int, Tensor, int | None, str]] = []
    for span in sorted(spans, key=lambda span: span[:2]):
        before = [other for other in before if other[1] > span[0]]
        for other in before:
            if not (span[2] is other[2] and span[3] and other[3]):  # layers that share one parameter change together
                for one, another in ((span, other), (other, span)):
                    if one[3] is not None:
                        found.setdefault(one[3], f"shares its weight with {another[4]}")
        before.append(span)
    return found


def contents(module: nn.Module, kind: type[Any] | tuple[type[Any], ...]) -> Iterator[tuple[str, Any]]:
    """The parameters, buffers and other attributes of a module, and what is in lists and dictionaries, by name."""
    own = dict(vars(module))
    parameters, buffers = own.pop("_parameters"), own.pop("_buffers")
    for name in ("_modules", *HOOKS):
        own.pop(name)
    for name, value in {**own, **parameters, **buffers}.items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        yield from ((name, each) for each in values if isinstance(each, kind))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The memory of a tensor, from and to; where there is none, a place that is this tensor's alone."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not tensor.data_ptr():
        return -2 * id(tensor) - 2, -2 * id(tensor) - 1
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()


def used_in_a_run(model: nn.Module, layers: Mapping[str, nn.Module], example_input: object) -> dict[str, str]:
    """The layers whose weights something else uses while the model runs, and what uses them."""
    watch = _Watch(layers)
    handles = []
    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(watch.enter))  # after the hooks that are there
        handles.append(layer.register_forward_hook(watch.leave, prepend=True))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), watch:
            model(*arguments)
    except Exception as error:  # whatever a part of the model raises
        raise UsageError(f"the model does not run on example_input: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return {name: f"its weight is used by {what} while the model runs" for name, what in watch.found.items()}


class _Watch(TorchFunctionMode):
    """Notes the layers whose weights are given to torch's functions while none of these layers runs."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.spans = {name: _span(layer._parameters["weight"]) for name, layer in layers.items()}  # type: ignore[arg-type]
        self.found: dict[str, str] = {}
        self.running = 0

    def enter(self, *given: object) -> None:
        self.running += 1

    def leave(self, *given: object) -> None:
        self.running -= 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = (*args, *(kwargs or {}).values())
        what = getattr(func, "__name__", "an operation")
        if not self.running and what not in (*HARMLESS, "__get__"):  # an attribute's tensor is seen where it is used
            flat = [each for value in given for each in (value if isinstance(value, list | tuple) else [value])]
            for start, end in (_span(each) for each in flat if isinstance(each, Tensor)):
                for name, (first, last) in self.spans.items():
                    if start < last and first < end:
                        self.found.setdefault(name, what)
        return func(*args, **(kwargs or {}))
