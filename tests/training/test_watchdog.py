"""When a run is stopped because of its loss."""

import math
from types import SimpleNamespace

import pytest
import torch

from diracnets.training.watchdog import TIMES, LossWatch

GUESSING = math.log(10)


class Pretended(SimpleNamespace):
    """A run's state, of 40 batches of 8 images an epoch, whose losses are given."""

    STEPS = 40

    def __init__(self):
        super().__init__(epoch=1, batch=0, seen=0, loss_sum=torch.tensor(0.0))

    def totals(self):
        return self.loss_sum, None

    def go(self, watch, losses):
        """What the watch says at the looks that a run takes over these losses."""
        for loss in losses:
            if self.batch == self.STEPS:
                self.epoch, self.batch, self.seen, self.loss_sum = self.epoch + 1, 0, 0, torch.tensor(0.0)
            self.batch, self.seen, self.loss_sum = self.batch + 1, self.seen + 8, self.loss_sum + 8 * loss
            if self.batch % 20 == 0 or (self.epoch, self.batch) == (1, 1):
                wrong = watch.look()
                if wrong:
                    return wrong
        return None


def watched(patience=200, recorded=None, state=None):
    state = state or Pretended()
    return state, LossWatch(10, patience, state, Pretended.STEPS, recorded)


def test_a_run_that_diverges_is_stopped_after_its_patience_and_knows_when_all_was_well():
    state, watch = watched()
    assert state.go(watch, [2.3] * 90) is None
    assert watch.good == (2, 0)
    assert state.go(watch, [8 * GUESSING] * 180) is None
    wrong = state.go(watch, [8 * GUESSING] * 30)
    assert "the run diverges: the loss has been above 6.91 for 200 steps, and by epoch 7 it is 18.4" in wrong
    assert watch.good == (2, 0)


@pytest.mark.parametrize(
    "losses",
    [
        [GUESSING] * 1000,  # nothing is learned, as at too high a rate
        [2.0, *[900.0] * 150, *[2.0] * 400],  # a spike
        [*[500 * 0.99**step for step in range(1000)]],  # a bad initialization, mended
        [*[9.0] * 170, *[2.0] * 20] * 5,
    ],
    ids=["guessing", "spike", "bad start", "waves"],
)
def test_what_is_no_divergence_is_left_alone(losses):
    state, watch = watched()
    assert state.go(watch, losses) is None


def test_infinite_and_nan_are_found_at_the_next_look():
    for loss in (math.nan, math.inf):
        state, watch = watched()
        assert "infinite or NaN in epoch 1, by batch 20" in state.go(watch, [2.0] * 10 + [loss] * 10)
        assert watch.good == (0, 1)


def test_patience_0_never_stops():
    state, watch = watched(patience=0)
    assert state.go(watch, [2.3] * 20 + [99.0] * 1000) is None


def test_a_resumed_run_goes_on_counting():
    state, watch = watched()
    assert state.go(watch, [2.3] * 40 + [9 * GUESSING] * 150) is None
    _, resumed = watched(recorded=watch.to_data(), state=state)
    assert resumed.good == watch.good == (1, 0)
    assert "diverges" in state.go(resumed, [9 * GUESSING] * 70)
    assert resumed.limit == TIMES * GUESSING
