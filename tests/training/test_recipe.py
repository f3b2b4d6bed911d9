import ast
import inspect
import itertools
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from diracnets.data.augmentation import Augmentation
from diracnets.errors import FileError, UsageError
from diracnets.training.recipe import Recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_survive_a_file(name, tmp_path):
    recipe = Recipe.load(name)
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_every_field_survives_a_file(tmp_path):
    recipe = Recipe(
        model='a "quoted" \\ name\x7f\n\té',
        width=1 / 3,
        start="deep",
        init=0.03,
        alpha=0.0,
        beta=0.5,
        bias=1.0,
        data="folder",
        image_size=96,
        images=1000,
        epochs=7,
        batch_size=33,
        optimizer="muon",
        filter_lr=0.1,
        filter_momentum=0.0,
        lr=1e-07,
        scale_lr=0.0,
        momentum=0.0,
        weight_decay=1e22,
        schedule="cosine",
        warmup=0.1,
        drop_factor=0.3,
        restart_momentum=True,
        label_smoothing=0.2,
        clip=2.0,
        mixup=0.2,
        ema=0.999,
        fresh_statistics=True,
        augment=Augmentation("resized", pad=2, min_scale=0.5, flip="alternating", cutout=3),
        precision="float16",
        channels_last=False,
        compile=True,
        seed=2**62,
        deterministic=True,
        eval_every=3,
    )
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_paper_cifar_is_the_papers():
    recipe = Recipe.load("paper-cifar")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.nesterov) == (
        200,
        128,
        0.1,
        0.9,
        False,
    )
    assert (recipe.weight_decay, recipe.schedule, recipe.drops, recipe.drop_factor) == (
        5e-4,
        "step",
        (60, 120, 160),
        0.2,
    )
    assert recipe.restart_momentum
    assert recipe.augment == Augmentation(crop="pad", pad=4, flip=True)
    extras = (recipe.label_smoothing, recipe.clip, recipe.ema, recipe.average_last, recipe.warmup, recipe.freeze)
    assert not any(extras)


def test_paper_imagenet_is_the_papers():
    recipe = Recipe.load("paper-imagenet")
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.nesterov) == (
        100,
        256,
        0.1,
        0.9,
        False,
    )
    assert (recipe.weight_decay, recipe.schedule, recipe.drops, recipe.drop_factor) == (1e-4, "step", (30, 60, 90), 0.1)
    assert recipe.restart_momentum
    assert recipe.image_size == 224
    assert recipe.augment == Augmentation(crop="resized", min_scale=0.08, flip=True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rat = 0.1", "learning_rat"),
        ("epoch = 3", "did you mean epochs?"),
        ("[augment]\nflipp = true", "did you mean flip?"),
        ("epochs = 1.5", "epochs"),
        ("epochs = true", "epochs"),
        ("nesterov = 1", "nesterov"),
        ('init = "uniform"', "normal, kaiming or a number"),
        ("init = true", "init"),
        ('[augment]\nflip = "sometimes"', "flip"),
        ('lr = "0.1"', "lr"),
        ("model = 28", "model"),
        ("drops = [1.5]", "drops"),
        ("drops = 60", "drops"),
        ("augment = 3", "augment"),
        ('schedule = "steps"', "schedule"),
        ('[augment]\ncrop = "corner"', "crop"),
        ("lr = nan", "lr"),
    ],
)
def test_a_wrong_key_or_type_is_named(text, named, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Recipe.load(path)
    assert named in str(error.value)
    assert "mine.toml" in str(error.value) or named in ("lr", "crop")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", float("inf")),
        ("width", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("warmup", 1.0),
        ("drops", (0, 3)),
        ("drops", (60, 30)),
        ("drop_factor", 0.0),
        ("label_smoothing", 1.0),
        ("mixup", -0.1),
        ("images", 1),
        ("init", 0.0),
        ("init", float("nan")),
        ("beta", float("inf")),
        ("filter_lr", 0.0),
        ("filter_momentum", 1.0),
        ("scale_lr", -0.1),
        ("clip", -1.0),
        ("ema", 1.0),
        ("average_last", 1.5),
        ("image_size", 0),
        ("seed", -1),
        ("eval_every", 0),
        ("schedule", "linear"),
        ("precision", "float64"),
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("epochs", 2.0),
        ("nesterov", 1),
        ("model", 28),
        ("schedule", 3),
        ("drops", 60),
        ("drops", (1.5,)),
        ("augment", "flip"),
    ],
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        replace(Recipe(), **{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"drops": (3,), "schedule": "cosine"},
        {"nesterov": True, "momentum": 0.0},
        {"ema": 0.9, "average_last": 0.1},
        {"filter_lr": 0.1},
        {"filter_momentum": 0.9},
        {"freeze": True, "optimizer": "muon"},
        {"freeze": True, "scale_lr": 0.1},
        {"freeze": True, "fresh_statistics": True},
    ],
)
def test_settings_that_exclude_each_other_are_refused(values):
    with pytest.raises(UsageError):
        Recipe(**values)


@pytest.mark.parametrize(
    ("name", "hint"), [("fast-cifr", "did you mean fast-cifar"), ("nope", "there are best-cifar,")]
)
def test_an_unknown_recipe_names_a_similar_one_if_there_is_one(name, hint):
    with pytest.raises(UsageError, match=hint) as error:
        Recipe.load(name)
    assert ("did you mean" in str(error.value)) == (name != "nope")


def test_whole_numbers_and_lists_are_taken_for_what_they_mean():
    recipe = Recipe(lr=1, init=2, drops=[3, 5])
    assert recipe == Recipe(lr=1.0, init=2.0, drops=(3, 5))
    assert (type(recipe.lr), type(recipe.init), type(recipe.drops)) == (float, float, tuple)


def test_recipes_of_earlier_versions_can_be_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('init = "normal"\n[augment]\ncrop = "pad"\nflip = true\n')
    assert Recipe.load(path) == Recipe(init="normal", augment=Augmentation(crop="pad", flip="random"))


@pytest.mark.parametrize("content", [None, b"epochs = ", b"\xff\xfe"])
def test_unreadable_files_are_file_errors(content, tmp_path):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"recipe\.toml"):
        Recipe.load(path)


def test_differences_name_the_fields():
    assert Recipe().differences(Recipe(lr=0.3)) == ["lr: 0.1, not 0.3"]
    assert Recipe().differences(Recipe()) == []


def test_every_field_has_its_docstring():
    body = ast.parse(inspect.getsource(Recipe)).body[0].body
    documented = {
        before.target.id
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    assert documented == {field.name for field in fields(Recipe)}


def test_recipes_need_no_torch():
    code = (
        "import sys; from diracnets.training.recipe import Recipe; Recipe.load('demo'); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
