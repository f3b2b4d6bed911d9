import pytest
import torch

from diracnets import create_model
from diracnets.errors import UsageError
from diracnets.studies.cifar import PUBLISHED, cifar_study
from diracnets.studies.depth import depth_study
from diracnets.studies.init import init_study
from diracnets.training.recipe import Recipe


def plain_rows(study):
    return [row for row in study.rows if row.recipe.model.name.startswith("plain")]


@pytest.mark.parametrize(
    "study",
    [
        cifar_study(),
        depth_study((16, 52)),
        depth_study((10,), data="digits"),
        init_study(),
        init_study(16, 0.25, "digits"),
    ],
    ids=lambda study: study.name,
)
def test_rows_have_names_of_their_own_and_networks_that_exist(study):
    assert len({row.name for row in study.rows}) == len(study.rows)
    assert len({tuple(row.axes.items()) for row in study.rows}) == len(study.rows)
    for row in {row.recipe.model.name: row for row in study.rows}.values():
        recipe = row.recipe
        with torch.device("meta"):
            create_model(recipe.model.name, init=recipe.model.init)
        assert Recipe.from_table(recipe.table()) == recipe
    if study.figure is not None:
        names = (study.figure.x, study.figure.series, *study.figure.panels)
        assert all(set(row.axes) >= set(names) for row in study.rows)


def test_the_table_has_parameters_and_published_errors():
    study = cifar_study()
    assert {(row.axes["data"], row.axes["network"]) for row in study.rows} >= set(PUBLISHED)
    row = next(row for row in study.rows if row.name == "cifar100-diracnet-28-10-paper-cifar")
    assert row.recipe == Recipe.load("paper-cifar").replaced(model="diracnet-28-10", data="cifar100")
    assert [column(row.recipe.settings()) for column in study.columns.values()] == [
        "36,507,780",
        "21.54 (quoted from the paper by another)",
    ]


def test_plain_networks_have_every_advantage_in_depth():
    study = depth_study((28,))
    assert {
        (row.recipe.model.init.scheme, row.recipe.model.init.bias, row.recipe.model.init.alpha)
        for row in plain_rows(study)
    } == {
        ("kaiming", None, None),
        ("deep", 0.0, None),
        ("deep", None, None),
        ("deep", None, 1.0),
    }
    assert all(row.recipe.optimization.clip_grad and row.recipe.optimization.recalibrate_bn for row in study.rows)


def test_plain_networks_have_initializations_of_their_own_if_the_recipe_is_ours():
    rows = plain_rows(cifar_study(["fast-cifar"]))
    own, usual, identity = (row.recipe for row in rows[:3])
    assert own.model.init.scheme == "deep"
    assert (usual.model.init.filters, usual.model.init.bias) == ("kaiming", 0.0)
    assert usual.replaced(init=own.model.init) == own
    assert identity.replaced(alpha=None, beta=None) == own
    dirac = create_model("diracnet-28-1", init=own.model.init).groups[0][0]
    assert identity.model.init.beta == pytest.approx(dirac.conv.beta[0].item())
    assert [row.axes.get("initialization") for row in rows] == [None, "usual", "as the Dirac network"] * 2


@pytest.mark.parametrize("study", [depth_study((28,)), init_study(), cifar_study(["deep-cifar"])], ids=lambda s: s.name)
def test_a_learning_rate_of_the_scales_is_for_networks_that_have_them(study):
    """`deep-cifar` has one, and training refuses it where there is no alpha and no beta."""
    rates = {row.recipe.model.name.startswith("dirac"): row.recipe.optimization.scale_lr for row in study.rows}
    assert rates == {True: 0.02, False: None}


def test_initializations_are_varied_one_at_a_time():
    rows = init_study().rows
    assert {row.recipe.model.init.filters for row in rows if row.axes["varied"] == "standard deviation of W"} == {
        *(1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    }
    for name in ("alpha", "beta"):
        varied = [row.recipe for row in rows if row.axes["varied"] == name]
        assert len({getattr(recipe.model.init, name) for recipe in varied}) == 6
        assert {recipe.model.name.split("-28")[0] for recipe in varied} == {"plain", "wrn", "diracnet", "dirac-wrn"}
        assert all(recipe.model.init.scheme == "kaiming" for recipe in varied)
    assert all(row.recipe.optimization.clip_grad == 0 for row in rows)  # which would hide what diverges


def test_other_recipes_are_rows_of_their_own():
    rows = cifar_study(["best-cifar", "fast-cifar"]).rows
    assert {row.axes["recipe"] for row in rows} == {"best-cifar", "fast-cifar"}
    assert len({row.name for row in rows}) == len(rows) == 44


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="no recipe 'nonsense'"):
        cifar_study(["nonsense"])
