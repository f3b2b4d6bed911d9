import pytest

from diracnets.errors import UsageError
from diracnets.studies.grid import Budget, at_rates, choose_rows
from diracnets.training.recipe import Recipe


@pytest.mark.parametrize(("epochs", "milestones"), [(100, (30, 60, 80)), (10, (3, 6, 8)), (4, (2, 3)), (1, ())])
def test_milestones_move_with_the_epochs(epochs, milestones):
    scaled = Budget(epochs=epochs).scaled(Recipe.load("paper-cifar")).settings()
    assert (scaled["epochs"], scaled["milestones"]) == (epochs, milestones)


def test_a_budget_leaves_what_it_does_not_name():
    recipe = Recipe.load("paper-cifar")
    assert Budget(seeds=2).scaled(recipe) == recipe
    assert Budget(images=500).scaled(recipe) == recipe.replaced(num_train=500)


@pytest.mark.parametrize("name", ["epochs", "seeds", "images"])
def test_a_budget_of_nothing_is_refused(name):
    with pytest.raises(UsageError, match=rf"budget.{name} is 0"):
        Budget(**{name: 0})


@pytest.mark.parametrize(
    ("patterns", "count"), [(["*"], 2), (["*wrn*"], 1), (["*wrn*", "digits-*"], 2), (["digits-diracnet-10-0.25"], 1)]
)
def test_rows_are_chosen_by_patterns(small_study, patterns, count):
    assert len(choose_rows(small_study, patterns)) == count


def test_a_pattern_without_a_row_is_refused(small_study):
    with pytest.raises(UsageError, match=r"'vgg\*'; there are digits-diracnet"):
        choose_rows(small_study, ["*", "vgg*"])


@pytest.mark.parametrize(("optimizer", "name"), [("sgd", "lr"), ("muon", "muon_lr")])
def test_each_optimizer_has_a_learning_rate_of_its_own(small_study, optimizer, name):
    row = small_study.rows[0]
    changed = type(row)(row.name, row.axes, row.recipe.replaced(optimizer=optimizer))
    for rate, each in zip((0.05, 0.2), at_rates(changed, (0.05, 0.2)), strict=True):
        assert each.recipe == changed.recipe.replaced(**{name: rate})
    assert at_rates(changed, ()) == [changed]


@pytest.mark.parametrize(("rates", "words"), [((0.1, 0.1), "give each of them once"), ((0.1, 0.0), "lr is 0.0, but")])
def test_rates_that_make_no_sense_are_refused(small_study, rates, words):
    with pytest.raises(UsageError, match=words):
        at_rates(small_study.rows[0], rates)
