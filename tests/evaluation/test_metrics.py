import math

import pytest
import torch
from torch import nn

from diracnets.errors import DataError, TrainingError, UsageError
from diracnets.evaluation.metrics import evaluate, outputs


class Numbered:
    """Images that are nothing but their number, for a model that knows the logits of each number."""

    def __init__(self, labels):
        self.labels = torch.tensor(labels)

    def __len__(self):
        return len(self.labels)

    def name(self, index):
        return f"image {index}"

    def batches(self, batch_size, **_):
        for indices in torch.arange(len(self)).split(batch_size):
            yield indices[:, None, None, None].float(), self.labels[indices], indices


class Table(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        assert not self.training
        return self.logits[images[:, 0, 0, 0].long()]


LOGITS = [
    [3.0, 0.0, 0.0],  # right
    [0.0, 2.0, 0.0],  # right
    [0.0, 5.0, 0.0],  # 0 taken for 1, quite sure
    [1.0, 0.0, 0.5],  # 2 taken for 0, not so sure
]
LABELS = [0, 1, 0, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_hand_computation(batch_size):
    model = Table(LOGITS).train()
    found = evaluate(model, Numbered(LABELS), batch_size=batch_size)
    assert model.training
    assert (found.count, found.top1, found.top5) == (4, 0.5, 1.0)
    expected = (
        sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(LOGITS, LABELS, strict=True)) / 4
    )
    assert found.loss == pytest.approx(expected, rel=1e-7)
    assert found.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert [(item.label, item.count, item.correct) for item in found.per_class] == [(0, 2, 1), (1, 1, 1), (2, 1, 0)]
    assert [item.recall for item in found.per_class] == [0.5, 1.0, 0.0]
    answered = [(found.at_threshold(0.0)), found.at_threshold(0.75), found.at_threshold(0.95)]
    assert answered == [(1.0, 0.5), (0.75, pytest.approx(2 / 3)), (0.25, 0.0)]  # 0.91, 0.79, 0.99 and 0.51
    assert found.at_threshold(1.0) == (0.0, pytest.approx(math.nan, nan_ok=True))
    assert [item.precision for item in found.per_class] == [0.5, 0.5, pytest.approx(math.nan, nan_ok=True)]
    assert [item.f1 for item in found.per_class] == [0.5, pytest.approx(2 / 3), 0.0]
    assert [(item.name, item.index, item.true, item.predicted) for item in found.worst] == [
        ("image 2", 2, 0, 1),
        ("image 3", 3, 2, 0),
    ]
    assert found.worst[0].probability == pytest.approx(math.exp(5) / (math.exp(5) + 2))
    assert found.predictions.tolist() == [0, 1, 1, 0]


def test_views_are_averaged(stripes, warm_net):
    images = torch.cat([images for images, _, _ in stripes.val.batches(30)])
    logits = (warm_net(images) + warm_net(images.flip(3))).detach() / 2
    found = evaluate(warm_net, stripes.val, batch_size=11, views="mirror")
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, stripes.val.labels)), rel=1e-5)
    assert found.loss != pytest.approx(evaluate(warm_net, stripes.val).loss, rel=1e-5)
    with pytest.raises(UsageError, match="one, mirror, mirror-shift"):
        evaluate(warm_net, stripes.val, views="all")


def test_top5_counts_the_first_five():
    logits = [[float(-abs(place - label)) - 0.01 * place for place in range(8)] for label in range(8)]
    labels = [0, 1, 2, 3, 4, 5, 0, 7]  # image 6 has class 0 in the seventh place
    found = evaluate(Table(logits), Numbered(labels))
    assert (found.top1, found.top5) == (7 / 8, 7 / 8)


def test_only_as_many_mistakes_as_asked_for():
    assert [item.index for item in evaluate(Table(LOGITS), Numbered(LABELS), worst=1).worst] == [2]


def test_a_class_without_images_and_predictions_has_no_scores():
    last = evaluate(Table(LOGITS[:2]), Numbered([0, 1])).per_class[2]
    assert all(map(math.isnan, (last.precision, last.recall, last.f1)))


def test_progress_is_told():
    done = []
    evaluate(Table(LOGITS), Numbered(LABELS), batch_size=3, on_batch=done.append)
    assert done == [3, 4]


def test_outputs_are_the_models(stripes, warm_net):
    logits, labels, _ = map(torch.cat, zip(*outputs(warm_net, stripes.val, batch_size=7), strict=True))
    images = torch.cat([images for images, _, _ in stripes.val.batches(30)])
    torch.testing.assert_close(logits, warm_net(images).detach())
    assert labels.equal(stripes.val.labels)


def test_the_same_on_a_network_as_by_hand(stripes, warm_net):
    found = evaluate(warm_net, stripes.val, batch_size=11)
    logits = torch.cat([logits for logits, *_ in outputs(warm_net, stripes.val)])
    assert found.top1 == pytest.approx(float((logits.argmax(1) == stripes.val.labels).double().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, stripes.val.labels)), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "labels", "error"),
    [
        (Table(LOGITS), [], DataError),
        (Table(LOGITS), [0, 7], UsageError),
        (nn.Conv2d(3, 4, 1), [0, 1], UsageError),
        (Table([[0.0, float("nan")]]), [0], TrainingError),
        (Table([[0.0, float("inf")]]), [0], TrainingError),
        (Table([[0.0, float("-inf")]]), [1], TrainingError),
    ],
)
def test_what_cannot_be_evaluated(model, labels, error):
    with pytest.raises(error):
        evaluate(model, Numbered(labels))


def test_bfloat16_is_near(stripes, warm_net):
    exact, near = (evaluate(warm_net, stripes.val, precision=name) for name in ("float32", "bfloat16"))
    assert near.loss != exact.loss
    assert near.loss == pytest.approx(exact.loss, rel=0.05)
