import pytest

from diracnets.training.recipe import Recipe
from diracnets.training.schedule import factor, learning_rate, momentum_restarts
from diracnets.training.settings import OptimizationSettings

STEPS = 10  # an epoch


def rates(optimization):
    return [learning_rate(optimization, step, STEPS) for step in range(optimization.epochs * STEPS)]


@pytest.mark.parametrize(
    ("name", "first_epochs", "expected"),
    [
        ("paper-cifar", (1, 60, 120, 160, 201), (0.1, 0.02, 0.004, 0.0008)),
        ("paper-imagenet", (1, 30, 60, 90, 101), (0.1, 0.01, 0.001, 0.0001)),
    ],
)
def test_the_papers_rate_falls_at_the_papers_epochs(name, first_epochs, expected):
    optimization = Recipe.load(name).optimization
    by_step = rates(optimization)
    for first, after, value in zip(first_epochs[:-1], first_epochs[1:], expected, strict=True):
        assert by_step[(first - 1) * STEPS : (after - 1) * STEPS] == pytest.approx([value] * (after - first) * STEPS)


def test_momentum_restarts_at_the_drops_alone():
    optimization = Recipe.load("paper-cifar").optimization
    restarts = [step for step in range(optimization.epochs * STEPS) if momentum_restarts(optimization, step, STEPS)]
    assert restarts == [59 * STEPS, 119 * STEPS, 159 * STEPS]
    kept = OptimizationSettings(milestones=(2,), restart_momentum=False)
    assert not any(momentum_restarts(kept, step, STEPS) for step in range(50))


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_falling_schedules_rise_to_the_rate_and_end_just_above_zero(schedule, warmup):
    optimization = OptimizationSettings(schedule=schedule, warmup=warmup, epochs=4, lr=0.4)
    by_step = rates(optimization)
    top = by_step.index(max(by_step))
    assert max(by_step) == pytest.approx(0.4)
    assert top == max(0, round(warmup * 40) - 1)
    assert by_step[: top + 1] == sorted(by_step[: top + 1])
    assert by_step[top:] == sorted(by_step[top:], reverse=True)
    assert 0 < by_step[-1] <= 0.4 / 30 + 1e-12


def test_one_cycle_is_two_straight_lines():
    by_step = rates(OptimizationSettings(schedule="one-cycle", warmup=0.5, epochs=2, lr=1.0))
    assert by_step == pytest.approx([(step + 1) / 10 for step in range(10)] + [1 - step / 10 for step in range(10)])


def test_cosine_is_half_way_down_in_the_middle():
    assert learning_rate(OptimizationSettings(schedule="cosine", epochs=2, lr=1.0), STEPS, STEPS) == pytest.approx(0.5)


def test_constant_stays():
    assert set(rates(OptimizationSettings(schedule="constant", epochs=3, lr=0.3))) == {0.3}


def test_all_rates_follow_one_factor():
    optimization = OptimizationSettings(schedule="cosine", warmup=0.1, epochs=3, lr=0.4)
    for step in range(3 * STEPS):
        assert learning_rate(optimization, step, STEPS) == 0.4 * factor(optimization, step, STEPS)
