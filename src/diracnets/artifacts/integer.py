"""An integer chain as what a model file holds: the ordinary layers that it stands for, and how each is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntConv, IntegerChain, IntLayer, IntLinear, IntPool, Pair, Shape

_TYPES = {"weight": torch.int8, "bias": torch.int32, "scales": torch.float32}


def as_float(chain: IntegerChain) -> nn.Sequential:
    """Ordinary layers with the real weights and biases that the integers stand for, in evaluation mode.

    What they compute differs from the integer chain by the rounding of activations alone.

    >>> import numpy as np
    >>> step, weight = Quantization(0.5, 0), np.array([[2, -1]], np.int8)
    >>> scales, bias = np.array([0.5], np.float32), np.array([4], np.int32)
    >>> chain = IntegerChain([IntLinear("fc", weight, scales, bias, step, step, True, (2, 1, 1), (1, 1, 1))])
    >>> [name for name, _ in as_float(chain).named_children()], as_float(chain).fc.weight.tolist()
    (['fc_flatten', 'fc', 'fc_relu'], [[1.0, -0.5]])
    """
    plain = nn.Sequential()
    for layer in chain.layers:
        if isinstance(layer, IntPool):
            if layer.kind == "max":
                plain.add_module(layer.name, nn.MaxPool2d(layer.size, layer.stride, layer.padding))
            else:
                plain.add_module(layer.name, nn.AvgPool2d(layer.size, layer.stride))
            continue
        if isinstance(layer, IntConv):
            shape = (layer.before[0], layer.after[0], layer.weight.shape[2:], layer.stride, layer.padding)
            module: nn.Conv2d | nn.Linear = nn.Conv2d(*shape, layer.dilation, layer.groups)
        else:
            if not any(isinstance(each, nn.Flatten) for each in plain):
                plain.add_module(f"{layer.name}_flatten", nn.Flatten())
            module = nn.Linear(*reversed(layer.weight.shape))
        scales = torch.from_numpy(layer.scales)
        weight = torch.from_numpy(layer.weight) * scales.view(-1, *[1] * (layer.weight.ndim - 1))
        bias = torch.from_numpy(layer.bias) * (layer.input.scale * scales.double())
        module.load_state_dict({"weight": weight, "bias": bias})
        plain.add_module(layer.name, module)
        if layer.relu:
            plain.add_module(f"{layer.name}_relu", nn.ReLU())
    if not any(isinstance(each, nn.Flatten) for each in plain):
        plain.add_module("flatten", nn.Flatten())
    return plain.requires_grad_(False).eval()


def to_data(chain: IntegerChain) -> list[dict[str, Any]]:
    """The quantization of the images and of what each layer with weights gives, plain JSON values."""
    weighted = [layer for layer in chain.layers if not isinstance(layer, IntPool)]
    return [
        vars(chain.input) | {"name": None, "scales": 0},
        *(vars(layer.output) | {"name": layer.name, "scales": len(layer.scales)} for layer in weighted),
    ]


def tensors_of(chain: IntegerChain) -> dict[str, Tensor]:
    """The integers and the weights' scales, by the names of `as_float`'s tensors."""
    weighted = [layer for layer in chain.layers if not isinstance(layer, IntPool)]
    return {f"{layer.name}.{what}": torch.tensor(getattr(layer, what)) for layer in weighted for what in _TYPES}


def tensor_shapes(plain: nn.Sequential, data: Sequence[Any]) -> dict[str, torch.Size]:
    """The shape of each tensor that belongs to a description.

    Args:
        plain: layers as `as_float` makes them, on the meta device.
        data: what `to_data` gave.

    Raises:
        ValueError: they do not fit each other.
    """
    weighted = [name for name, layer in plain.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if [None, *weighted] != [each.get("name") if isinstance(each, Mapping) else each for each in data]:
        raise ValueError("its quantizations are not those of its layers")
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    for each in data[1:]:
        if each.keys() != {"name", "scales", "scale", "zero_point"}:
            raise ValueError(f"the quantization of {each['name']} is incomplete")
        shapes[f"{each['name']}.scales"] = torch.Size(
            [1 if each["scales"] == 1 else shapes[f"{each['name']}.bias"].numel()]
        )
    return shapes


def from_data(
    plain: nn.Sequential,
    shapes: Sequence[tuple[int, ...]],
    data: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
) -> IntegerChain:
    """The integer chain that `to_data` and `tensors_of` described.

    Args:
        plain: layers as `as_float` makes them, on the meta device.
        shapes: (1, channels, height, width) or (1, numbers) of an image, and of what each layer makes of it.
        data: one for each that `tensor_shapes` takes.
        tensors: of the shapes that it gives.

    Raises:
        ValueError: something that an integer chain cannot have.
    """
    steps = [_quantization(each) for each in data]
    current, rest = steps[0], iter(steps[1:])
    layers: list[IntLayer] = []
    names = list(plain._modules)
    for index, (name, module) in enumerate(plain.named_children()):
        before, after = layers[-1].after if layers else _three(shapes[0]), _three(shapes[index + 1])
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
            padding = _pair(module.padding)
            size, stride = _pair(module.kernel_size), _pair(module.stride)
            if (
                module.ceil_mode
                or _pair(getattr(module, "dilation", 1)) != (1, 1)
                or (kind == "average" and any(padding))
            ):
                raise ValueError(f"layer {name} pools in a way that integers do not know")
            layers.append(IntPool(name, kind, size, stride, padding, current, before, after))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            arrays = [_array(tensors[f"{name}.{what}"], kind) for what, kind in _TYPES.items()]
            weight, bias, scales = arrays
            output = next(rest)
            relu = index + 1 < len(names) and isinstance(plain[index + 1], nn.ReLU)
            common = (name, weight, scales, bias, current, output, relu, before, after)
            if isinstance(module, nn.Linear):
                layers.append(IntLinear(*common))
            elif module.padding_mode != "zeros" or isinstance(module.padding, str):
                raise ValueError(f"layer {name} pads in a way that integers do not know")
            else:
                stride, padding, dilation = map(_pair, (module.stride, module.padding, module.dilation))
                layers.append(IntConv(*common, stride, padding, dilation, module.groups))
            current = output
        elif not isinstance(module, nn.ReLU | nn.Flatten):
            raise ValueError(f"layer {name}, a {type(module).__name__}, is none that integers know")
    return IntegerChain(layers)


def _quantization(data: Mapping[str, Any]) -> Quantization:
    scale, zero_point = data.get("scale"), data.get("zero_point")
    if type(scale) is not float:
        raise ValueError(f"a scale of {scale!r}")
    return Quantization(scale, zero_point)  # type: ignore[arg-type]  # which checks it


def _array(tensor: Tensor, kind: torch.dtype) -> Any:  # noqa: ANN401
    if tensor.dtype != kind:
        raise ValueError(f"a tensor of {tensor.dtype} where it is {kind} for whole numbers")
    return tensor.numpy()


def _three(shape: tuple[int, ...]) -> Shape:
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    if len(shape) == 2:
        return shape[1], 1, 1
    raise ValueError(f"an activation of {list(shape)} where there should be an image or its features")


def _pair(value: int | tuple[int, ...]) -> Pair:
    values = (value,) if isinstance(value, int) else value
    if len(values) not in (1, 2):
        raise ValueError(f"{len(values)} numbers where there is one for each axis of an image")
    return values[0], values[-1]
