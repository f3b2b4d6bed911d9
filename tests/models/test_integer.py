"""The integer chain against the same arithmetic in plain Python integers, written down a second time."""

import itertools
import random

import numpy as np
import pytest
import torch

from diracnets.errors import UsageError
from diracnets.models.fixed_point import Quantization, multiply, quantize_multiplier
from diracnets.models.integer import IntConv, IntegerChain, IntLinear, IntPool


def truncated(a, b):
    return abs(a) // b * (1 if a >= 0 else -1)


def multiplied(x, q, shift):
    """gemmlowp's SaturatingRoundingDoublingHighMul and RoundingDivideByPOT, statement by statement."""
    x *= 2 ** max(shift, 0)
    product = x * q
    x = truncated(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)
    exponent = max(-shift, 0)
    rest, threshold = x & (2**exponent - 1), ((2**exponent - 1) >> 1) + (x < 0)
    return (x >> exponent) + (rest > threshold)


def test_multiply_is_that_of_the_reference_kernels():
    random.seed(0)
    for multiplier in [1e-11, 2**-20 * 0.9999999999, 0.003, 0.25, 0.49999999999, 0.5, 0.7, 1.0, 3.7, 1000.0]:
        q, shift = quantize_multiplier(multiplier)
        assert q * 2.0 ** (shift - 31) == pytest.approx(multiplier, rel=2**-31) or (q, shift) == (0, 0)
        most = int(min(2**31 - 1, 2**31 / max(multiplier, 1)))
        numbers = [random.randint(-most, most) for _ in range(300)] + list(range(-200, 200)) + [-most, most]
        found = multiply(torch.tensor(numbers), torch.tensor(q), torch.tensor(shift))
        assert found.tolist() == [multiplied(x, q, shift) for x in numbers]


def computed(layer, x):
    """One layer on int8 [channels, height, width], in Python integers."""
    after = np.zeros(layer.after, np.int64)
    if isinstance(layer, IntLinear):
        for out in range(layer.after[0]):
            total = sum(
                int(w) * (int(v) - layer.input.zero_point) for w, v in zip(layer.weight[out], x.ravel(), strict=True)
            )
            after[out, 0, 0] = requantized(layer, out, total)
        return after
    for out, row, column in itertools.product(*map(range, layer.after)):
        window = []
        size = layer.size if isinstance(layer, IntPool) else layer.weight.shape[2:]
        dilation = (1, 1) if isinstance(layer, IntPool) else layer.dilation
        for i, j in itertools.product(*map(range, size)):
            y = row * layer.stride[0] - layer.padding[0] + i * dilation[0]
            z = column * layer.stride[1] - layer.padding[1] + j * dilation[1]
            if 0 <= y < layer.before[1] and 0 <= z < layer.before[2]:
                window.append((i, j, y, z))
        if isinstance(layer, IntPool):
            values = [int(x[out, y, z]) for _, _, y, z in window]
            total, many = sum(values), len(values)
            half = many // 2 if total > 0 else -(many // 2)
            after[out, row, column] = max(values) if layer.kind == "max" else truncated(total + half, many)
        else:
            each = layer.weight.shape[1]
            first = out // (layer.after[0] // layer.groups) * each
            total = sum(
                int(layer.weight[out, c, i, j]) * (int(x[first + c, y, z]) - layer.input.zero_point)
                for c in range(each)
                for i, j, y, z in window
            )
            after[out, row, column] = requantized(layer, out, total)
    return after


def requantized(layer, out, total):
    q, shift = layer.multipliers
    number = multiplied(total + int(layer.bias[out]), int(q[out]), int(shift[out])) + layer.output.zero_point
    return min(127, max(layer.output.zero_point if layer.relu else -128, number))


def random_chain(rng):
    """All kinds of layers: groups, strides, dilation, padding, scales for one or all, multipliers above and below 1."""
    a, b, c, d = (Quantization(scale, zero) for scale, zero in ((0.02, 5), (0.05, -128), (0.003, -20), (0.4, 17)))

    def weights(*shape):
        return rng.integers(-127, 128, shape).astype(np.int8), rng.integers(-2000, 2000, shape[0]).astype(np.int32)

    first, first_bias = weights(6, 2, 3, 2)
    second, second_bias = weights(5, 6, 2, 3)
    third, third_bias = weights(3, 5 * 2 * 1)
    scales = rng.uniform(0.0005, 0.003, 6).astype(np.float32)
    wide = np.array([0.1], np.float32)
    return [
        IntConv("0", first, scales, first_bias, a, b, True, (4, 7, 8), (6, 4, 9), (2, 1), (1, 1), (1, 1), 2),
        IntPool("1", "max", (3, 2), (1, 2), (1, 0), b, (6, 4, 9), (6, 4, 4)),
        IntConv("2", second, wide, second_bias, b, c, False, (6, 4, 4), (5, 5, 2), (1, 1), (1, 1), (1, 2), 1),
        IntPool("3", "average", (3, 2), (2, 1), (0, 0), c, (5, 5, 2), (5, 2, 1)),
        IntLinear("4", third, np.array([0.01], np.float32), third_bias, c, d, False, (5, 2, 1), (3, 1, 1)),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_chain_is_equal_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    layers = random_chain(rng)
    images = rng.integers(-128, 128, (4, 4, 7, 8)).astype(np.int8)
    activations = images
    for count, layer in enumerate(layers, start=1):
        activations = np.stack([computed(layer, x) for x in activations])
        found = IntegerChain(layers[:count]).integers(torch.from_numpy(images))
        assert found.numpy().tolist() == activations.reshape(4, -1).tolist(), layer.name
    chain = IntegerChain(layers)
    real = chain(chain.input.real(torch.from_numpy(images)))
    assert torch.equal(real, chain.output.real(torch.from_numpy(activations).flatten(1)))


def test_sums_that_float32_does_not_hold():
    weight = np.full((1, 20000), 127, np.int8)
    weight[0, -1] = 1
    step, fine = Quantization(1.0, -128), Quantization(20000.0, 0)
    layer = IntLinear(
        "0", weight, np.ones(1, np.float32), np.zeros(1, np.int32), step, fine, False, (20000, 1, 1), (1, 1, 1)
    )
    chain = IntegerChain([layer])
    image = np.full((20000, 1, 1), -20, np.int8)
    assert chain.integers(torch.from_numpy(image)[None]).item() == computed(layer, image).item()


def test_what_does_not_fit_is_refused():
    layers = random_chain(np.random.default_rng(0))
    with pytest.raises(UsageError, match="layer 2 does not take what layer 0 gives"):
        IntegerChain([layers[0], layers[2]])
    with pytest.raises(UsageError, match=r"takes images of 4x7x8, not \[4, 8, 8\]"):
        IntegerChain(layers)(torch.zeros(1, 4, 8, 8))
    with pytest.raises(UsageError, match=r"a scale of 0\.0"):
        Quantization(0.0, 0)
