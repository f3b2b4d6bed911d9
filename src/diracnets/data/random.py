"""Random numbers that are addressed, not consumed: a hash of (seed, epoch, sample, stream).

What is drawn for a sample does not depend on what was drawn before it, on the batch it is in, or on the device, so a
resumed run, or one with another number of workers, sees the same images. The hash is the finalizer of SplitMix64
(Steele, Lea & Flood 2014) chained over the four numbers, in torch's int64 arithmetic, which wraps.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor


class Stream(enum.IntEnum):
    """What a draw is for: no two uses share their numbers. The steps leave room for several numbers each."""

    ORDER = 0
    GROUPS = 8
    BATCH = 16
    FLIP = 32
    RESIZED = 64


def draw(seed: int, epoch: int, samples: Tensor, stream: Stream, count: int = 1) -> Tensor:
    """Random bits for each of `samples`.

    Args:
        seed: any integer.
        epoch: the epoch, from 0.
        samples: int64 [B], numbers of the samples.
        stream: what the bits are for.
        count: how many independent rows, up to the next stream's number.

    Returns:
        int64 [count, B] on `samples`' device, 62 random bits each: from 0 to 2**62 - 1.

    >>> draw(0, 3, torch.tensor([7, 8]), Stream.BATCH).equal(draw(0, 3, torch.tensor([8, 7]), Stream.BATCH).flip(1))
    True
    """
    key = _mix(samples + _signed(_mix_number(_mix_number(seed) + epoch)))
    # Made on the device: a copy from here would wait until the device has done all that it was given.
    streams = torch.arange(int(stream), int(stream) + count, device=samples.device) * _signed(_GOLDEN)
    return _shift(_mix(key + streams[:, None]), 2)  # [count, B]


def below(bits: Tensor, limit: int) -> Tensor:
    """Uniform integers from 0 to `limit` - 1 (of at most 2**31) out of the bits that `draw` gives.

    >>> int(below(torch.tensor(2**62 - 1), 10))
    9
    """
    return (bits >> 31) * limit >> 31


def fraction(bits: Tensor) -> Tensor:
    """Uniform float32 in [0, 1) out of the bits that `draw` gives: multiples of 2**-24, exact on every device.

    >>> float(fraction(torch.tensor(2**61)))
    0.5
    """
    return (bits >> 38).float() * 2.0**-24


def order(seed: int, epoch: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which an epoch visits its samples: a permutation, int64 [length], the same on every device.

    >>> order(0, 0, 1000).sort().values.equal(torch.arange(1000))
    True
    """
    return draw(seed, epoch, torch.arange(length, device=device), Stream.ORDER)[0].argsort(stable=True)


def order_by_groups(seed: int, epoch: int, groups: Tensor, together: int) -> Tensor:
    """An order in which an epoch visits samples that lie in several files: a permutation, int64 [N].

    The files are put in random order and divided into windows of at most `together` of them. An epoch visits all
    samples of one window, in random order, then those of the next one. With one window it is `order`.

    Args:
        seed: any integer.
        epoch: the epoch, from 0.
        groups: int64 [N], the file of each sample, from 0.
        together: files in a window, at most.

    >>> groups = torch.arange(100) // 10
    >>> visited = order_by_groups(0, 0, groups, 5)
    >>> visited.sort().values.equal(torch.arange(100)), len(groups[visited[:50]].unique())
    (True, 5)
    """
    count = int(groups.max()) + 1 if len(groups) else 1
    windows = -(-count // together)
    place = draw(seed, epoch, torch.arange(count), Stream.GROUPS)[0].argsort(stable=True).argsort()
    visited = order(seed, epoch, len(groups))
    return visited[(place * windows // count)[groups[visited]].argsort(stable=True)]


_WRAP = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix_number(value: int) -> int:
    value = (value + _GOLDEN) & _WRAP
    value = ((value ^ (value >> 30)) * _FIRST) & _WRAP
    value = ((value ^ (value >> 27)) * _SECOND) & _WRAP
    return value ^ (value >> 31)


def _mix(bits: Tensor) -> Tensor:
    """`_mix_number` of each, in signed numbers of the same bits."""
    bits = bits + _signed(_GOLDEN)
    bits = (bits ^ _shift(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shift(bits, 27)) * _signed(_SECOND)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """A right shift that brings in zeros: torch's brings in the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
