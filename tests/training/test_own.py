"""`train(net=...)`: any module can be trained."""

import pytest
import torch
from torch import nn

from diracnets import diracify, train
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.load import load
from diracnets.errors import FileError, UsageError
from diracnets.evaluation.metrics import evaluate
from diracnets.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("bare_runs")

RECIPE = Recipe().replaced(epochs=3, batch_size=16, lr=0.05, precision="float32", swa_fraction=0.5)


class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.config = "a module may have any attribute"
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head((self.conv(x).relu() + x).mean((2, 3)))


class WithAuxiliary(Branched):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


def straight():
    torch.manual_seed(1)
    conv = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    more = (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return diracify(nn.Sequential(*conv, *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))[0]


def trained(net, folder, data, **options):
    return train(RECIPE, net=net, run=folder, data=data, device="cpu", quiet=True, **options)


def same(one, other):
    return all(tensor.equal(other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_straight_module_is_trained_folded_and_kept_with_a_card(stripes, tmp_path):
    net = straight()
    found = trained(net, tmp_path / "run", stripes)
    assert type(found.net) is nn.Sequential
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.accuracy == evaluate(found.net, stripes.val).top1
    chain = load(found.model_file)
    assert (chain.card.classes, chain.card.input_size) == (stripes.classes, (1, 8, 8))
    images = next(stripes.val.batches(30))[0]
    torch.testing.assert_close(chain(images), found.net(images), rtol=1e-4, atol=1e-4)
    kept = straight()
    kept.load_state_dict(torch.load(found.run / "best.pt", weights_only=True)["state"])
    assert same(kept, found.net)
    with pytest.raises(FileError, match="weights of Sequential, a module of its user's own"):
        load(found.run)


def test_a_module_with_branches_has_no_model_file_and_is_resumed_with_its_like(stripes, tmp_path, capsys):
    torch.manual_seed(0)
    net = Branched()
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    whole = train(RECIPE, net=net, run=tmp_path / "whole", data=stripes, device="cpu")
    assert "its weights are in" in capsys.readouterr().out
    assert (type(whole.net), whole.model_file, whole.chain) == (Branched, None, None)

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    net = Branched()
    net.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        trained(net, tmp_path / "run", stripes, on_epoch=stop)
    resumed = trained(Branched(), tmp_path / "run", stripes, resume=True)
    assert same(resumed.net, whole.net)
    recipe = Recipe.load(tmp_path / "run" / "recipe.toml")
    with pytest.raises(UsageError, match="resume it in Python"):
        train(recipe, run=tmp_path / "run", data=stripes, resume=True, device="cpu", quiet=True)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), r"gives \[2, 5\] for 2 images of stripes, .* logits \[2, 3\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), r"does not run on images \[2, 1, 8, 8\]"),
        ((nn.Flatten(), None), "not a tuple of 2: .* diracify gives"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), r"lazy layers, .* run it once on images \[1, 1, 8, 8\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1)), "gives probabilities, .* leave its softmax out"),
        (WithAuxiliary(), "gives a tuple in training mode .* a module around it that returns these alone"),
        (nn.Flatten(), "no parameter that requires a gradient"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(net, said, stripes, tmp_path):
    with pytest.raises(UsageError, match=said):
        trained(net, tmp_path / "run", stripes)
    assert not (tmp_path / "run").exists()


def test_images_are_normalized_as_the_card_of_a_trained_module_says(stripes, tmp_path):
    net = straight()
    net.card = ModelCard((1, 8, 8), (0.25,), (0.5,))
    assert tuple(stripes.mean) != (0.25,)
    assert trained(net, tmp_path / "run", stripes).net.card.mean == (0.25,)


def test_a_recipe_is_taken_by_its_name(tmp_path):
    with pytest.raises(UsageError, match="there is no recipe 'dem'"):
        train("dem", run=tmp_path / "run")
    with pytest.raises(UsageError, match="not a Branched; a module of your own goes to net="):
        train(Branched(), run=tmp_path / "run")
