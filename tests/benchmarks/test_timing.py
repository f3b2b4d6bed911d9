import pytest
import torch
from timing import WARM_UP, Work, interleaved

from diracnets import create_model, fold


def test_the_order_turns_with_every_round():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 3, torch.device("cpu"))
    assert "".join(calls[3 * WARM_UP :]) == "abcbcacab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(second >= 0 for seconds in times.values() for second in seconds)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_trains_and_inference_does_not(precision):
    torch.manual_seed(0)
    work = Work(create_model("diracnet-10-0.25"), 4, precision=precision)
    before = [parameter.clone() for parameter in work.net.parameters()]
    work.infer()
    assert all(torch.equal(a, b) for a, b in zip(before, work.net.parameters(), strict=True))
    work.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, work.net.parameters(), strict=True) if b.ndim == 4)
    assert work.net.training


def test_what_is_kept_for_backward_grows_with_the_batch():
    kept = [Work(create_model("plain-10-0.25"), batch).saved_bytes() for batch in (4, 8)]
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.1)
    # at least the input of each convolution and batch norm: 4 channels of 32x32, and so on, 4 bytes each
    assert kept[0] > 4 * 4 * 2 * 2 * (4 * 32 * 32 + 8 * 16 * 16 + 16 * 8 * 8)


def test_a_chain_has_no_step_but_inference():
    work = Work(fold(create_model("diracnet-10-0.25").eval()), 4)
    work.infer()
    assert work.optimizer is None
