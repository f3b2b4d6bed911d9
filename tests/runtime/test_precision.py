from copy import deepcopy

import pytest
import torch

from diracnets.runtime.precision import Precision, choose_precision


@pytest.fixture(autouse=True)
def processor_with_bfloat16(monkeypatch):
    monkeypatch.setattr("diracnets.runtime.precision.has_bfloat16", lambda: True)


class StepClock:
    """A clock by which a step takes as long as its arithmetic is said to."""

    def __init__(self, monkeypatch, **seconds):
        self.now = 0.0
        before = Precision.autocast

        def autocast(precision, device):
            self.now += seconds[precision.name]
            return before(precision, device)

        monkeypatch.setattr(Precision, "autocast", autocast)

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(0.2, 0.1, "bfloat16"), (0.1, 0.2, "float32"), (0.1, 0.099, "float32")]
)
def test_auto_takes_what_is_clearly_faster_and_says_why(monkeypatch, warm_net, float32, bfloat16, chosen):
    measured = StepClock(monkeypatch, float32=float32, bfloat16=bfloat16)
    precision = choose_precision("auto", warm_net, 4, (1, 8, 8), measured)
    assert precision.name == chosen
    assert f"{1000 * float32:.1f} ms in float32" in precision.reason
    assert f"{1000 * bfloat16:.1f} ms in bfloat16" in precision.reason


def test_measuring_leaves_no_trace(warm_net):
    before, random = deepcopy(warm_net.state_dict()), torch.get_rng_state()
    warm_net.train()
    choose_precision("auto", warm_net, 4, (1, 8, 8))
    assert torch.get_rng_state().equal(random)
    assert all(tensor.equal(before[name]) for name, tensor in warm_net.state_dict().items())
    assert all(parameter.grad is None for parameter in warm_net.parameters())


def test_measuring_a_slow_network_ends_early(monkeypatch, warm_net):
    steps = []
    warm_net.register_forward_hook(lambda *_: steps.append(1))
    choose_precision("auto", warm_net, 4, (1, 8, 8), StepClock(monkeypatch, float32=60.0, bfloat16=60.0))
    assert len(steps) == 4


def test_a_processor_that_emulates_bfloat16_measures_nothing(monkeypatch, warm_net):
    monkeypatch.setattr("diracnets.runtime.precision.has_bfloat16", lambda: False)
    said = []
    precision = choose_precision("auto", warm_net, 4, (1, 8, 8), clock=None, say=said.append)
    assert (precision.name, precision.reason) == ("float32", "this processor has no instructions for bfloat16")
    assert not said


def test_what_is_several_times_slower_is_dropped_after_one_small_batch(monkeypatch, warm_net):
    counts, said = [], []
    warm_net.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    clock = StepClock(monkeypatch, float32=0.1, bfloat16=2.0)
    precision = choose_precision("auto", warm_net, 64, (1, 8, 8), clock, said.append)
    assert precision == Precision(
        "float32", "a first step of 8 images takes 2000.0 ms in bfloat16, 100.0 ms in float32"
    )
    assert counts == [8, 8]
    assert said == ["measuring bfloat16 against float32"]


def test_the_batch_measured_grows_while_a_step_is_short(monkeypatch, warm_net):
    counts = []
    warm_net.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    choose_precision("auto", warm_net, 64, (1, 8, 8), StepClock(monkeypatch, float32=0.2, bfloat16=0.1))
    assert set(counts) == {8, 20}  # half a second, at 0.2 s for 8
    counts.clear()
    choose_precision("auto", warm_net, 64, (1, 8, 8), StepClock(monkeypatch, float32=0.02, bfloat16=0.01))
    assert set(counts) == {8, 64}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_precision_is_not_measured(name, warm_net):
    precision = choose_precision(name, warm_net, 4, (1, 8, 8), clock=None)
    assert precision.name == name
    assert precision.scaler(torch.device("cpu")).is_enabled() == (name == "float16")
    with precision.autocast(torch.device("cpu")):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == getattr(torch, name)
