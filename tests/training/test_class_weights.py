from dataclasses import replace

import pytest
import torch

from diracnets.evaluation.metrics import ClassScore
from diracnets.training import epoch
from diracnets.training.class_weights import unequal_classes
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("bare_runs")

ONE_STEP = Recipe().replaced(
    model="diracnet-10-0.25", epochs=1, batch_size=64, lr=0.5, precision="float32", freeze=True, label_smoothing=0.1
)


def some(data, numbers):
    """Some of the images of `data`, whose classes follow one another; numbers may be repeated."""
    return replace(data, train=data.train.select(numbers), val=data.train)


def test_balanced_classes_train_as_if_images_of_the_small_ones_were_repeated(stripes, warm_net, tmp_path):
    few, repeated = some(stripes, [0, 3, 6, 1, 2]), some(stripes, [0, 3, 6, *[1] * 3, *[2] * 3])

    def classifier(data, **settings):
        run = tmp_path / str(len([*tmp_path.iterdir()]))
        return train(ONE_STEP.replaced(**settings), run=run, data=data, start=warm_net, quiet=True).net.fc.weight

    expected = classifier(repeated)
    torch.testing.assert_close(classifier(few, class_weights="balanced"), expected)
    torch.testing.assert_close(classifier(few, class_weights="balanced", accumulate=2), expected)
    assert not torch.allclose(classifier(few), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("numbers", "weights"), [([0, 3, 6, 9, 1, 2], "none"), ([0, 3, 6, 1, 2], "none"), ([0, 3, 6, 9, 1, 2], "balanced")]
)
def test_very_unequal_classes_are_told_with_what_to_do_unless_it_is_done(
    numbers, weights, stripes, warm_net, tmp_path, capsys
):
    train(ONE_STEP.replaced(class_weights=weights), run=tmp_path / "run", data=some(stripes, numbers), start=warm_net)
    line = "very unequal (4 images of low, 1 of middle): --class-weights balanced"
    assert (line in capsys.readouterr().out) == (len(numbers) == 6 and weights == "none")


def test_a_class_without_images_is_not_one_of_the_unequal():
    assert unequal_classes(torch.tensor([0, 0, 3, 3, 3]), "abcd") is None


@pytest.mark.parametrize(
    ("weights", "best", "said"),
    [
        ("none", 1, "validation accuracy 80.00% on 72 images: epoch 1 of 2"),
        ("balanced", 2, "balanced validation accuracy 90.00% (and 76.00% of all images) on 72 images: epoch 2 of 2"),
    ],
)
def test_a_network_that_only_knows_the_largest_class_is_not_the_best_where_classes_are_balanced(
    weights, best, said, stripes, warm_net, tmp_path, capsys, monkeypatch
):
    """The first epoch's answers are all of the largest class, as they often are."""
    plain, right = epoch.evaluated, iter([(80, 0, 0), (56, 10, 10)])

    def evaluated(run, images):
        evaluation = plain(run, images)
        found = [
            ClassScore(label, count, 0, correct)
            for label, count, correct in zip(range(3), (80, 10, 10), next(right), strict=True)
        ]
        object.__setattr__(evaluation, "per_class", found)
        object.__setattr__(evaluation, "top1", sum(each.correct for each in found) / 100)
        return evaluation

    monkeypatch.setattr(epoch, "evaluated", evaluated)
    recipe = ONE_STEP.replaced(class_weights=weights, epochs=2)
    trained = train(recipe, run=tmp_path / "run", data=some(stripes, [0, 3, 1, 2]), start=warm_net)
    assert trained.epoch == best
    told = capsys.readouterr().out
    assert f"{chr(10)}{said}, the best; " in told
    assert ("bal acc" in told) == (weights == "balanced")
