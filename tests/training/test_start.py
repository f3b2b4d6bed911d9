import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.create import create_model
from diracnets.artifacts.model_file import save
from diracnets.cli import parse
from diracnets.data.images import ImageData
from diracnets.data.memory import MemoryImages
from diracnets.errors import FileError, UsageError
from diracnets.evaluation.metrics import evaluate
from diracnets.folding.fold import fold
from diracnets.models.init import Init
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.start import following, starting_network

pytestmark = pytest.mark.usefixtures("bare_runs")

RECIPE = Recipe().replaced(
    model="diracnet-10-0.25", init="kaiming", epochs=1, batch_size=16, lr=0.01, precision="float32"
)
CARD = ModelCard((1, 8, 8), mean=(0.3,), std=(0.2,), classes=("low", "middle", "high"))


def outputs(net, data):
    images, _, _ = next(data.val.batches(30))
    with torch.inference_mode():
        return net.eval()(images)


def test_fresh_networks_fit_the_images(stripes):
    net = starting_network(RECIPE, stripes)
    assert (net.num_classes, net.input_size) == (3, (1, 8, 8))
    assert net.config["init"] == {"scheme": "kaiming"}


@pytest.mark.parametrize(
    ("given", "alpha", "beta", "bias", "norm"),
    [
        ({"filters": 0.01, "alpha": 0.5, "beta": 0.25, "bias": 1.5}, 0.5, 0.25, 1.5, 0.01 * 6),
        ({}, 1.0, 0.1, 0.0, 6.0),
    ],
)
def test_fresh_networks_start_as_the_recipe_says(given, alpha, beta, bias, norm, stripes):
    block = starting_network(RECIPE.replaced(init=Init(**given)), stripes).groups[0][1]
    assert {*block.conv.alpha.tolist()} == {alpha}
    assert block.conv.beta.tolist() == pytest.approx([beta] * 4)
    assert {*block.bn.bias.tolist()} == {bias}
    assert float(block.conv.weight.detach().flatten(1).norm(dim=1).mean()) == pytest.approx(norm, rel=0.3)


def test_a_deep_initialization_has_biases_of_its_own_unless_given(stripes):
    deep = starting_network(RECIPE.replaced(init="deep"), stripes)
    assert deep.config["init"] == {"scheme": "deep"}
    assert (deep.groups[0][0].bn.bias > 0).all()
    assert (starting_network(RECIPE.replaced(init=Init("deep", bias=0.0)), stripes).groups[0][0].bn.bias == 0).all()


def test_a_network_with_branches_is_gone_on_from(stripes):
    trained = create_model("wrn-10-0.25", num_classes=3, in_channels=1, image_size=8)
    net = starting_network(RECIPE.replaced(model="wrn-10-0.25"), stripes, trained)
    assert outputs(net, stripes).equal(outputs(trained, stripes))


def test_a_network_is_copied(stripes, warm_net):
    net = starting_network(RECIPE, stripes, warm_net)
    assert outputs(net, stripes).equal(outputs(warm_net, stripes))
    with torch.no_grad():
        net.fc.bias.add_(1)
    assert not outputs(net, stripes).equal(outputs(warm_net, stripes))


@pytest.mark.parametrize("from_file", [False, True])
def test_a_chain_becomes_a_dirac_network_that_computes_the_same(from_file, stripes, warm_net, tmp_path):
    start = fold(warm_net)
    if from_file:
        save(start, tmp_path / "model.safetensors", card=CARD)
        start = tmp_path / "model.safetensors"
    net = starting_network(RECIPE, stripes, start)
    torch.testing.assert_close(outputs(net, stripes), outputs(warm_net, stripes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["diracnet-sprint-0.1", "plain-sprint-0.1", "vgg-16", "dirac-vgg-16", "plain-18"])
def test_a_run_starts_from_the_model_file_of_any_chain(name, tmp_path):
    size = {"width": 0.05, "image_size": 32} if "-1" in name else {"image_size": 16}
    net = create_model(name, num_classes=3, in_channels=1, **size).eval()
    pixels = torch.randint(0, 255, (9, *net.input_size[1:], 1), dtype=torch.uint8)
    memory = MemoryImages(pixels, torch.arange(9) % 3, name="noise", mean=(0.3,), std=(0.2,))
    images = ImageData("noise", ("a", "b", "c"), net.input_size, (0.3,), (0.2,), memory, memory)
    card = replace(CARD, input_size=net.input_size, classes=images.classes, architecture=net.config)
    save(fold(net), tmp_path / "model.safetensors", card=card)
    recipe = RECIPE.replaced(model=name, width=net.config["width"])
    again = starting_network(recipe, images, tmp_path / "model.safetensors")
    assert type(again) is type(net)
    x = torch.randn(4, *net.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(x), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["plain-10-0.25", "diracnet-10-0.25"])
def test_the_recipe_decides_whether_a_chain_becomes_a_plain_or_a_dirac_network(name, stripes, warm_net):
    net = starting_network(RECIPE.replaced(model=name), stripes, fold(warm_net))
    assert net.config["name"] == name
    torch.testing.assert_close(outputs(net, stripes), outputs(warm_net, stripes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_weights_go_on_only_under_the_pooling_that_they_were_trained_with(folded, stripes):
    averaging = RECIPE.replaced(pool="average")
    net = starting_network(averaging, stripes).eval()
    trained = fold(net) if folded else net
    assert starting_network(averaging, stripes, trained).config["pool"] == "average"
    with pytest.raises(UsageError, match="max pooling, but the weights are those of one with average pooling"):
        starting_network(RECIPE, stripes, trained)


def test_a_checkpoint_is_gone_on_from(stripes, tmp_path):
    first = train(RECIPE, run=tmp_path / "first", data=stripes, device="cpu", quiet=True)
    net = starting_network(RECIPE, stripes, tmp_path / "first" / "last.pt")
    torch.testing.assert_close(outputs(net, stripes), outputs(first.net, stripes))  # laid out otherwise
    other = RECIPE.replaced(lr=1e-9, weight_decay=0.0)
    second = train(other, run=tmp_path / "second", data=stripes, device="cpu", quiet=True, start=first.net)
    torch.testing.assert_close(second.net.fc.weight, first.net.fc.weight)


def test_the_file_that_a_run_started_from_is_told_also_once_resumed(stripes, tmp_path):
    first = train(RECIPE, run=tmp_path / "first", data=stripes, device="cpu", quiet=True)
    assert first.net.card.provenance["start"] is None
    for resume in (False, True):
        start = None if resume else tmp_path / "first" / "best.pt"
        run = train(RECIPE, run=tmp_path / "run", data=stripes, device="cpu", quiet=True, start=start, resume=resume)
        assert (run.net.card.provenance["start"], run.net.card.provenance["precision"]) == ("best.pt", "float32")
        environment = json.loads((run.run / "environment.json").read_text())[-1]
        assert (environment["start"], environment["precision"]) == ("best.pt", "float32")


@pytest.mark.parametrize("name", ["diracnet-10-0.250", "diracnet-10-0.252"])
def test_one_network_may_have_many_names(name, stripes, warm_net):
    net = starting_network(RECIPE.replaced(model=name), stripes, warm_net)
    assert net.config["name"] == name
    assert outputs(net, stripes).equal(outputs(warm_net, stripes))


@pytest.mark.parametrize("known", ["count", "names"])
def test_other_classes_get_a_new_classifier(known, stripes, warm_net):
    if known == "count":
        warm_net.reset_classifier(5)
    else:
        attach_card(warm_net, replace(CARD, classes=("a", "b", "c")))
    net = starting_network(RECIPE, stripes, warm_net)
    assert net.num_classes == 3
    if known == "names":
        assert not net.fc.weight.equal(warm_net.fc.weight)
    state = warm_net.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in net.state_dict().items() if not name.startswith("fc."))


def test_freezing_trains_the_classifier_alone(stripes, warm_net, tmp_path):
    recipe = RECIPE.replaced(freeze=True, lr=0.1, epochs=2, swa_fraction=0.5)
    trained = train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True, start=warm_net).net
    before = warm_net.state_dict()
    for name, tensor in trained.state_dict().items():
        assert tensor.equal(before[name]) != name.startswith("fc."), name


def test_frozen_runs_resume(stripes, warm_net, tmp_path):
    recipe = RECIPE.replaced(freeze=True, epochs=2)
    whole = train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True, start=warm_net)
    again = train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True, resume=True)
    assert again.net.fc.weight.equal(whole.net.fc.weight)
    assert again.net.groups[0][0].conv.weight.equal(warm_net.groups[0][0].conv.weight)


@pytest.mark.parametrize(
    ("recipe", "start", "message"),
    [
        (RECIPE, lambda: create_model("diracnet-16-0.25", in_channels=1), "diracnet-16-0.25"),
        (RECIPE, lambda: create_model("diracnet-10-0.5", in_channels=1), "diracnet-10-0.5"),
        (RECIPE, lambda: create_model("plain-10-0.25", in_channels=1), "plain-10-0.25"),
        (
            RECIPE,
            lambda: create_model("diracnet-10-0.25"),
            "have 1: choose others, or in Python start from create_model",
        ),
        (RECIPE, lambda: nn.Linear(2, 2), "Linear"),
        (RECIPE.replaced(freeze=True), lambda: None, "freeze"),
    ],
)
def test_what_cannot_be_started_from(recipe, start, message, stripes):
    with pytest.raises(UsageError, match=re.escape(message)):
        starting_network(recipe, stripes, start())


def test_a_file_that_is_not_there(stripes, tmp_path):
    with pytest.raises(FileError, match=r"none\.pt"):
        starting_network(RECIPE, stripes, tmp_path / "none.pt")


def test_resuming_takes_no_other_weights(stripes, warm_net, tmp_path):
    with pytest.raises(UsageError, match="its own weights"):
        train(RECIPE, run=tmp_path, data=stripes, resume=True, start=warm_net)


def test_images_are_normalized_as_the_weights_were_trained_and_a_resumed_run_keeps_it(stripes, tmp_path):
    net = create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8)
    attach_card(net, CARD)
    trained = train(RECIPE, run=tmp_path / "run", data=stripes, device="cpu", start=net, quiet=True)
    assert (trained.net.card.mean, trained.net.card.std) == (CARD.mean, CARD.std)
    own = stripes.normalized(CARD.mean, CARD.std)
    assert evaluate(trained.net, own.val).top1 == trained.accuracy
    again = train(RECIPE, run=tmp_path / "run", data=stripes, device="cpu", resume=True, quiet=True)
    assert again.net.card.mean == CARD.mean


def test_network_and_image_size_follow_the_weights_unless_asked_otherwise():
    recipe = Recipe.load("fast-imagenet")
    followed = following(recipe, "diracnet-28-1-cifar10")
    assert (followed.model.name, followed.data.image_size) == ("diracnet-28-1", 32)
    assert followed.optimization == recipe.optimization
    asked = following(recipe, "diracnet-28-1-cifar10", ["image_size"])
    assert (asked.model.name, asked.data.image_size) == ("diracnet-28-1", 128)
    flags = ["--data", "folder", "--from", "diracnet-28-1-cifar10"]
    assert parse(["train", *flags]).settings.data.image_size == 32
    finetune = Recipe.load("finetune")
    assert parse(["train", *flags]).settings.optimization == finetune.optimization
    assert parse(["train", *flags, "--lr", "0.5"]).settings.optimization == finetune.replaced(lr=0.5).optimization
    assert parse(["train", *flags, "--recipe", "fast-imagenet"]).settings.optimization == recipe.optimization
    assert parse(["train", "--data", "cifar10", *flags[2:]]).settings == parse(["train", "--data", "cifar10"]).settings
    with pytest.raises(UsageError, match="the recipe finetune starts from trained weights: give --from"):
        parse(["train", *flags[:2], "--recipe", "finetune"])
    assert parse(["train", *flags, "--image-size", "64"]).settings.data.image_size == 64
    assert parse(["train", *flags, "--image-size", "64"]).settings.model.name == "diracnet-28-1"


def test_integers_cannot_be_gone_on_from(stripes):
    with pytest.raises(UsageError, match="are in int8, which cannot be trained: give the float model file"):
        starting_network(RECIPE, stripes, "diracnet-28-1-cifar10-int8")


def test_a_recipe_by_its_name_follows_a_network_as_it_does_a_file(stripes, tmp_path, monkeypatch):
    def told(recipe, *_):
        raise UsageError(f"{recipe.model.name}, {recipe.model.pool}")

    monkeypatch.setattr("diracnets.training.loop.starting_network", told)
    net = create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8, pool="average").eval()
    with pytest.raises(UsageError, match=r"^diracnet-10-0\.25, average$"):
        train("finetune", data=stripes, start=net, run=tmp_path / "run", device="cpu", quiet=True)
