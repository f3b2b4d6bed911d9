from dataclasses import replace

import pytest
import torch

from diracnets import create_model
from diracnets.cli import parse
from diracnets.errors import UsageError
from diracnets.models.init import from_old
from diracnets.studies.published import ERRORS
from diracnets.training.recipe import Recipe


def study(*words):
    return parse(["study", *words]).study.study()


@pytest.mark.parametrize(
    "words",
    [
        ["cifar"],
        ["depth", "--depths", "16", "52"],
        ["depth", "--data", "digits", "--depths", "10"],
        ["init"],
        ["init", "--data", "digits", "--depth", "16", "--width", "0.25"],
    ],
    ids=" ".join,
)
def test_rows_have_names_of_their_own_and_networks_that_exist(words):
    made = study(*words)
    assert len({row.name for row in made.rows}) == len(made.rows)
    assert len({tuple(row.place.items()) for row in made.rows}) == len(made.rows)
    for row in {row.recipe.model: row for row in made.rows}.values():
        recipe = row.recipe
        with torch.device("meta"):
            create_model(recipe.model, init=from_old(recipe.start, recipe.init, recipe.alpha, recipe.beta))
        assert Recipe.from_table(recipe.table()) == recipe
    if made.picture is not None:
        names = (made.picture.x, made.picture.series, *made.picture.panels)
        assert all(set(row.place) >= set(names) for row in made.rows)


def test_every_published_number_has_its_row():
    rows = study("cifar").rows
    assert {(row.place["data"], row.place["network"]) for row in rows if row.published} == set(ERRORS)
    paper = next(row for row in rows if row.name == "cifar100-diracnet-28-10-paper-cifar")
    assert paper.published.error == 21.54
    assert paper.recipe.drops == (60, 120, 160)


def test_plain_networks_have_every_advantage_in_depth():
    rows = [row for row in study("depth", "--depths", "28").rows if row.recipe.model == "plain-28-0.5"]
    assert {(row.recipe.start, row.recipe.bias, row.recipe.alpha) for row in rows} == {
        ("paper", None, None),
        ("deep", 0.0, None),
        ("deep", None, None),
        ("deep", None, 1.0),
    }
    assert all(row.recipe.clip and row.recipe.fresh_statistics for row in rows)


def test_plain_networks_have_starts_of_their_own_where_the_recipe_is_ours():
    rows = [row for row in study("cifar", "--recipe", "fast-cifar").rows if row.recipe.model == "plain-28-1"]
    own, usual, identity = (row.recipe for row in rows[:3])
    assert own.start == "deep"
    assert replace(usual, start="deep", bias=own.bias, init=own.init) == own
    assert replace(identity, alpha=None, beta=None) == own
    dirac = create_model("diracnet-28-1", init=from_old(own.start, bias=own.bias)).groups[0][0]
    assert identity.beta == pytest.approx(dirac.conv.beta[0].item())
    assert [row.place.get("start") for row in rows] == [None, "the usual", "the Dirac network's filters"] * 2


@pytest.mark.parametrize("arguments", [("depth", "--depths", "28"), ("init",), ("cifar", "--recipe", "deep-cifar")])
def test_a_rate_of_the_scales_is_for_networks_that_have_them(arguments):
    """`deep-cifar` has one, and training refuses it where there is no alpha and no beta."""
    rows = study(*arguments).rows
    assert {row.recipe.model.startswith("dirac"): row.recipe.scale_lr for row in rows} == {True: 0.02, False: None}


def test_starts_are_varied_one_at_a_time():
    rows = study("init").rows
    assert {row.recipe.init for row in rows if row.place["varied"] == "standard deviation of W"} == {
        *(1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    }
    for name in ("alpha", "beta"):
        varied = [row.recipe for row in rows if row.place["varied"] == name]
        assert len({getattr(recipe, name) for recipe in varied}) == 6
        assert {recipe.model.split("-28")[0] for recipe in varied} == {"plain", "wrn", "diracnet", "dirac-wrn"}
        assert all(recipe.init == "kaiming" for recipe in varied)
    assert all(row.recipe.clip == 0 for row in rows)  # which would hide what diverges


def test_other_recipes_are_rows_of_their_own():
    rows = study("cifar", "--recipe", "best-cifar", "fast-cifar").rows
    assert {row.place["recipe"] for row in rows} == {"best-cifar", "fast-cifar"}
    assert len({row.name for row in rows}) == len(rows) == 44


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no recipe 'nonsense'"):
        study("cifar", "--recipe", "nonsense")
