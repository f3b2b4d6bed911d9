import ast
import inspect
import itertools
import subprocess
import sys
from dataclasses import fields

import pytest

from diracnets.artifacts.run_record import RunRecord
from diracnets.data.augmentation import Augmentation
from diracnets.errors import FileError, UsageError
from diracnets.models.init import Init
from diracnets.training.recipe import Recipe, recipe_names
from diracnets.training.settings import DataSettings, ModelSettings, OptimizationSettings, RuntimeSettings


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_survive_a_file(name, tmp_path):
    recipe = Recipe.load(name)
    recipe.save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_every_field_survives_a_file(tmp_path):
    recipe = Recipe().replaced(
        model='a "quoted" \\ name\x7f\n\té',
        width=1 / 3,
        pool="average",
        init=Init("deep", filters=0.03, alpha=0.0, beta=0.5, bias=1.0),
        data="folder",
        image_size=96,
        num_train=1000,
        select_on=500,
        progressive_size=32,
        progressive_fraction=0.25,
        epochs=7,
        batch_size=33,
        optimizer="muon",
        muon_lr=0.1,
        muon_momentum=0.0,
        lr=1e-07,
        scale_lr=0.0,
        momentum=0.0,
        weight_decay=1e22,
        schedule="cosine",
        warmup=0.1,
        gamma=0.3,
        restart_momentum=True,
        label_smoothing=0.2,
        clip_grad=2.0,
        mixup=0.2,
        ema_decay=0.999,
        recalibrate_bn=True,
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
    recipe = Recipe.load("paper-cifar").optimization
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.nesterov) == (
        200,
        128,
        0.1,
        0.9,
        False,
    )
    assert (recipe.weight_decay, recipe.schedule, recipe.milestones, recipe.gamma) == (
        5e-4,
        "step",
        (60, 120, 160),
        0.2,
    )
    assert recipe.restart_momentum
    assert Recipe.load("paper-cifar").data.augment == Augmentation(crop="pad", pad=4, flip=True)
    extras = (
        recipe.label_smoothing,
        recipe.clip_grad,
        recipe.ema_decay,
        recipe.swa_fraction,
        recipe.warmup,
        recipe.freeze,
    )
    assert not any(extras)


def test_paper_imagenet_is_the_papers():
    whole = Recipe.load("paper-imagenet")
    recipe = whole.optimization
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.nesterov) == (
        100,
        256,
        0.1,
        0.9,
        False,
    )
    assert (recipe.weight_decay, recipe.schedule, recipe.milestones, recipe.gamma) == (1e-4, "step", (30, 60, 90), 0.1)
    assert recipe.restart_momentum
    assert whole.data.image_size == 224
    assert whole.data.augment == Augmentation(crop="resized", min_scale=0.08, flip=True)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[optimization]\nlearning_rat = 0.1", "learning_rat"),
        ("[optimization]\nepoch = 3", "did you mean epochs?"),
        ("[optimisation]\nepochs = 3", "did you mean"),
        ("epoch = 3", "did you mean epochs?"),
        ("[data.augment]\nflipp = true", "did you mean flip?"),
        ("[augment]\nflipp = true", "did you mean flip?"),
        ("[optimization]\nepochs = 1.5", "epochs"),
        ("[optimization]\nepochs = true", "epochs"),
        ("[optimization]\nnesterov = 1", "nesterov"),
        ('[model]\ninit = "uniform"', "choose one of paper, deep, kaiming"),
        ("[model]\ninit = true", "init"),
        ("[model]\ninit = 0.1", "init"),
        ('[model.init]\nfilters = "uniform"', "filters"),
        ('[data.augment]\nflip = "sometimes"', "flip"),
        ('[optimization]\nlr = "0.1"', "lr"),
        ("[model]\nname = 28", "name"),
        ("model = 28", "model"),
        ("[optimization]\nmilestones = [1.5]", "milestones"),
        ("[optimization]\nmilestones = 60", "milestones"),
        ("[data]\naugment = 3", "augment"),
        ('[optimization]\nschedule = "steps"', "schedule"),
        ('[data.augment]\ncrop = "corner"', "crop"),
        ("[optimization]\nlr = nan", "lr"),
        ("lr = 0.1\n[optimization]\nlr = true", "lr"),
        ("clip = 1.0\nclip_grad = 2.0", "given twice"),
    ],
)
def test_a_wrong_key_or_type_is_named(text, named, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Recipe.load(path)
    assert named in str(error.value)
    assert "mine.toml" in str(error.value) or named in ("lr", "crop", "choose one of paper, deep, kaiming")


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
        ("milestones", (0, 3)),
        ("milestones", (60, 30)),
        ("gamma", 0.0),
        ("label_smoothing", 1.0),
        ("mixup", -0.1),
        ("num_train", 1),
        ("select_on", 0),
        ("progressive_size", 0),
        ("progressive_fraction", 0.0),
        ("filters", 0.0),
        ("filters", float("nan")),
        ("beta", float("inf")),
        ("muon_lr", 0.0),
        ("muon_momentum", 1.0),
        ("scale_lr", -0.1),
        ("clip_grad", -1.0),
        ("ema_decay", 1.0),
        ("swa_fraction", 1.5),
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
        ("milestones", 60),
        ("milestones", (1.5,)),
        ("augment", "flip"),
    ],
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(UsageError, match=name):
        Recipe().replaced(**{name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"milestones": (3,), "schedule": "cosine"},
        {"nesterov": True, "momentum": 0.0},
        {"ema_decay": 0.9, "swa_fraction": 0.1},
        {"muon_lr": 0.1},
        {"muon_momentum": 0.9},
        {"freeze": True, "optimizer": "muon"},
        {"freeze": True, "scale_lr": 0.1},
        {"freeze": True, "recalibrate_bn": True},
        {"progressive_fraction": 0.25},
    ],
)
def test_settings_that_exclude_each_other_are_refused(values):
    with pytest.raises(UsageError):
        Recipe().replaced(**values)


@pytest.mark.parametrize(
    ("name", "hint"), [("fast-cifr", "did you mean fast-cifar"), ("nope", "there are best-cifar,")]
)
def test_an_unknown_recipe_names_a_similar_one_if_there_is_one(name, hint):
    with pytest.raises(UsageError, match=hint) as error:
        Recipe.load(name)
    assert ("did you mean" in str(error.value)) == (name != "nope")


def test_whole_numbers_and_lists_are_taken_for_what_they_mean():
    recipe = Recipe().replaced(lr=1, filters=2, alpha=1, milestones=[3, 5])
    assert recipe == Recipe().replaced(lr=1.0, filters=2.0, alpha=1.0, milestones=(3, 5))
    init, optimization = recipe.model.init, recipe.optimization
    types = [type(value) for value in (optimization.lr, init.filters, init.alpha, optimization.milestones)]
    assert types == [float, float, float, tuple]


def test_settings_and_replaced_are_each_others_inverse():
    recipe = Recipe.load("sprint-cifar")
    assert Recipe().replaced(**recipe.settings()) == recipe
    assert Recipe().replaced(init=recipe.model.init, augment=recipe.data.augment).data.augment == recipe.data.augment
    assert len(recipe.settings()) == sum(len(fields(kind)) - 1 for kind in (ModelSettings, DataSettings)) + sum(
        len(fields(kind)) for kind in (Init, Augmentation, OptimizationSettings, RuntimeSettings)
    )


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="no setting 'epoch'; did you mean epochs"):
        Recipe().replaced(epoch=3)


EARLIER = """model = "diracnet-28-1"
start = "deep"
bias = 0.5
data = "cifar10"
first_size = 24
first_part = 0.25
images = 1000
epochs = 7
optimizer = "muon"
filter_lr = 0.02
filter_momentum = 0.9
schedule = "step"
drops = [3, 5]
drop_factor = 0.1
clip = 5.0
average_last = 0.1
fresh_statistics = true
precision = "float32"

[augment]
crop = "pad"
flip = true
"""


def test_recipes_of_earlier_versions_can_be_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(EARLIER)
    with pytest.warns(FutureWarning, match=r"recipe\.toml is of an earlier version.*drops is now milestones") as warned:
        recipe = Recipe.load(path)
    assert len(warned) == 1
    assert recipe == Recipe().replaced(
        model="diracnet-28-1",
        init=Init("deep", bias=0.5),
        progressive_size=24,
        progressive_fraction=0.25,
        num_train=1000,
        epochs=7,
        optimizer="muon",
        muon_lr=0.02,
        muon_momentum=0.9,
        schedule="step",
        milestones=(3, 5),
        gamma=0.1,
        clip_grad=5.0,
        swa_fraction=0.1,
        recalibrate_bn=True,
        precision="float32",
        augment=Augmentation(crop="pad", flip="random"),
    )
    recipe.save(path)
    assert Recipe.load(path) == recipe


def test_a_run_of_the_earliest_version_is_resumed_without_recalibration():
    """There was none: by the default of today it would begin in the middle of the run."""
    assert Recipe.from_table({"model": "diracnet-28-1"}, warn=False).optimization.recalibrate_bn is False


@pytest.mark.parametrize(
    ("old", "init"),
    [
        ({"init": "kaiming"}, Init("kaiming")),
        ({"init": "normal"}, Init(filters="normal")),
        ({"init": 0.1}, Init(filters=0.1)),
        ({"start": "paper", "init": "kaiming"}, Init("kaiming")),
        ({"start": "deep", "init": "kaiming", "alpha": 1.0}, Init("deep", filters="kaiming", alpha=1.0)),
        ({"start": "deep"}, Init("deep")),
        ({"beta": 0.5}, Init(beta=0.5)),
    ],
)
def test_initializations_of_earlier_versions_can_be_read(old, init):
    with pytest.warns(FutureWarning, match="earlier version"):
        assert Recipe.from_table(old).model.init == init


def test_settings_by_their_earlier_names_are_taken_with_one_warning():
    with pytest.warns(FutureWarning, match="drops is now milestones, clip is now clip_grad") as warned:
        recipe = Recipe().replaced(drops=(3,), clip=1.0, epochs=4)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert recipe == Recipe().replaced(milestones=(3,), clip_grad=1.0, epochs=4)
    with pytest.warns(FutureWarning, match="start is now init"):
        assert Recipe().replaced(start="deep", init=None).model.init == Init("deep")


def test_a_scheme_alone_may_be_given_by_its_name(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('\ufeff[model]\ninit = "deep"\n', encoding="utf-8")  # with a byte order mark
    assert Recipe.load(path) == Recipe(model=ModelSettings(init="deep")) == Recipe().replaced(init="deep")


@pytest.mark.parametrize("content", [None, b"epochs = ", b"\xff\xfe"])
def test_unreadable_files_are_file_errors(content, tmp_path):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"recipe\.toml"):
        Recipe.load(path)


def test_differences_name_the_fields():
    assert Recipe().differences(Recipe().replaced(lr=0.3)) == ["lr: 0.1, not 0.3"]
    assert Recipe().differences(Recipe()) == []


@pytest.mark.parametrize("kind", [ModelSettings, DataSettings, OptimizationSettings, RuntimeSettings, Init])
def test_every_field_has_its_docstring(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    documented = {
        before.target.id
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    assert documented == {field.name for field in fields(kind)}


def test_recipes_need_no_torch():
    code = (
        "import sys; from diracnets.training.recipe import Recipe; Recipe.load('demo'); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{a=" * 2000,
        ".".join("a" * 20_000) + " = 1",  # which tomllib takes 17 seconds for
        "[optimization]\nepochs = " + "9" * 5000,
        "[optimization]\nepochs = 0x" + "f" * 5000,
        "[optimization]\nlr = " + "9" * 400,
        "[optimization]\nmilestones = [0x" + "f" * 5000 + "]",
    ],
)
def test_a_recipe_that_asks_for_too_much_is_refused(text, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises((UsageError, FileError), match=r"r\.toml"):
        Recipe.load(tmp_path / "r.toml")


def test_a_record_of_a_run_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match=r"run\.json is damaged"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("value", ["[[0x" + "f" * 5000 + "]]", "{a = 0x" + "f" * 5000 + "}", "0x" + "f" * 5000])
def test_numbers_that_python_does_not_print_are_refused(tmp_path, value):
    path = tmp_path / "a.toml"
    path.write_text(f"[optimization]\nepochs = {value}\n")
    with pytest.raises(UsageError, match="is a number of 20000 bits"):
        Recipe.load(path)


@pytest.mark.parametrize(
    "setting", ["start = [[BIG]]", "start = {a = BIG}", "cutout = BIG", "crop = [BIG]", "init = BIG"]
)
def test_old_recipes_with_such_numbers_are_refused(tmp_path, setting):
    path = tmp_path / "a.toml"
    path.write_text(setting.replace("BIG", "0x" + "f" * 5000))
    with pytest.raises(UsageError):
        Recipe.load(path)
