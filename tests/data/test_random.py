import random

import pytest
import torch

from diracnets.data.random import Stream, _mix, _mix_number, _signed, below, draw, fraction, order


def test_the_hash_is_splitmix64():
    first = [_mix_number(state) for state in (0, 0x9E3779B97F4A7C15)]  # a published sequence, from state 0
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_tensors_and_numbers_hash_alike():
    numbers = [random.Random(0).getrandbits(64) for _ in range(200)]
    hashed = _mix(torch.tensor([_signed(number) for number in numbers]))
    assert hashed.tolist() == [_signed(_mix_number(number)) for number in numbers]


def test_a_sample_draws_the_same_in_any_company():
    samples = torch.arange(100)
    together = draw(5, 2, samples, Stream.BATCH, 3)
    alone = torch.cat([draw(5, 2, samples[n : n + 1], Stream.BATCH, 3) for n in range(100)], 1)
    assert together.equal(alone)
    assert together[1:].equal(draw(5, 2, samples, Stream(Stream.BATCH), 3)[1:])


@pytest.mark.parametrize(
    "other", [(6, 2, Stream.BATCH), (5, 3, Stream.BATCH), (5, 2, Stream.ORDER), (-5, 2, Stream.BATCH)]
)
def test_seed_epoch_and_stream_all_matter(other):
    samples = torch.arange(1000)
    assert not (draw(5, 2, samples, Stream.BATCH) == draw(*other[:2], samples, other[2])).any()


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**80 + 3])
def test_any_integer_is_a_seed(seed):
    bits = draw(seed, 0, torch.arange(1000), Stream.BATCH)
    assert bits.min() >= 0
    assert bits.max() < 2**62
    assert len(bits.unique()) == 1000


@pytest.mark.parametrize("limit", [1, 2, 9, 1000])
def test_below_is_uniform(limit):
    values = below(draw(1, 1, torch.arange(100_000), Stream.BATCH)[0], limit)
    counts = torch.bincount(values, minlength=limit).double()
    expected = 100_000 / limit
    assert len(counts) == limit
    assert ((counts - expected) ** 2 / expected).sum() < limit + 6 * (2 * limit) ** 0.5


def test_below_reaches_both_ends_at_its_largest_limit():
    assert below(torch.tensor([0, 2**62 - 1]), 2**31).tolist() == [0, 2**31 - 1]


def test_fractions_are_uniform_and_rows_independent():
    values = fraction(draw(1, 1, torch.arange(100_000), Stream.RESIZED, 4)).double()
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.allclose(values.mean(1), torch.tensor(0.5, dtype=torch.float64), atol=5e-3)
    assert (torch.corrcoef(values) - torch.eye(4)).abs().max() < 0.015


def test_epochs_visit_every_sample_in_an_order_of_their_own():
    first, second = order(0, 0, 500), order(0, 1, 500)
    assert first.sort().values.equal(torch.arange(500))
    assert second.sort().values.equal(torch.arange(500))
    assert (first == second).sum() < 10
    assert first.equal(order(0, 0, 500, torch.device("cpu")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_draws_the_same():
    samples = torch.arange(1000)
    here, there = draw(3, 4, samples, Stream.BATCH, 5), draw(3, 4, samples.cuda(), Stream.BATCH, 5).cpu()
    assert here.equal(there)
    assert fraction(here).equal(fraction(here.cuda()).cpu())
