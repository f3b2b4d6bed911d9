from dataclasses import replace

import pytest

from diracnets.errors import UsageError
from diracnets.studies.study import Budget, choose_rows, recipe_key
from diracnets.training.recipe import Recipe


@pytest.mark.parametrize(("epochs", "drops"), [(100, (30, 60, 80)), (10, (3, 6, 8)), (4, (2, 3)), (1, ())])
def test_drops_move_with_the_epochs(epochs, drops):
    scaled = Budget(epochs=epochs).scaled(Recipe.load("paper-cifar"))
    assert (scaled.epochs, scaled.drops) == (epochs, drops)


def test_a_budget_leaves_what_it_does_not_name():
    recipe = Recipe.load("paper-cifar")
    assert Budget(seeds=2).scaled(recipe) == recipe
    assert Budget(images=500).scaled(recipe) == replace(recipe, images=500)


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


@pytest.mark.parametrize(
    "changes", [{"lr": 0.2}, {"augment": replace(Recipe().augment, pad=3, crop="pad")}, {"images": 100}, {"epochs": 1}]
)
def test_the_key_tells_recipes_apart_but_not_seeds(changes):
    recipe = Recipe()
    assert recipe_key(replace(recipe, **changes)) != recipe_key(recipe) == recipe_key(replace(recipe, seed=5))
