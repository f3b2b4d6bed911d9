"""How good a network is on a set of images: accuracy, loss, classes, confusion matrix, most confident errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from diracnets.data.images import Images
from diracnets.data.share import Share
from diracnets.errors import DataError, TrainingError, UsageError
from diracnets.evaluation.views import Views, averaged_logits
from diracnets.nn.module import check_module
from diracnets.runtime.precision import Name, Precision
from diracnets.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True)
class ClassScore:
    """How well one class was recognized; all scores are from 0 to 1."""

    label: int
    count: int
    """Images of the class."""
    predicted: int
    """Images whose prediction is the class."""
    correct: int
    """Those that are both."""

    @property
    def precision(self) -> float:
        """Part of the images taken for the class that are of it; NaN where none was taken for it."""
        return self.correct / self.predicted if self.predicted else float("nan")

    @property
    def recall(self) -> float:
        """Part of the images of the class that were taken for it; NaN for a class without images."""
        return self.correct / self.count if self.count else float("nan")

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; NaN for a class without images and predictions."""
        either = self.count + self.predicted
        return 2 * self.correct / either if either else float("nan")


@dataclass(frozen=True)
class Mistake:
    """One image whose prediction is wrong."""

    name: str
    """File or place in the set."""
    index: int
    true: int
    predicted: int
    probability: float
    """The probability that the network gives to its wrong answer."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` finds; accuracies are from 0 to 1, K is the number of the network's classes."""

    count: int
    """Images evaluated."""
    top1: float
    """Part of the images whose class comes first."""
    top5: float
    """Part of the images whose class is among the first five; 1 where there are no more than five."""
    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    per_class: list[ClassScore]
    confusion: Tensor
    """int64 [K, K]: images of the row's class that were predicted as the column's."""
    worst: list[Mistake]
    """The most confident errors, the most confident first."""
    predictions: Tensor
    """int64 [count]: the class that comes first for each image, in the order of the set."""
    probabilities: Tensor
    """float64 [count]: what the network gives to that class."""
    right: Tensor
    """bool [count]: whether that class is the image's."""

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean of the classes' own, of those that have images."""
        recalls = [score.recall for score in self.per_class if score.count]
        return sum(recalls) / len(recalls)

    def at_threshold(self, threshold: float) -> tuple[float, float]:
        """Which part of the images has an answer of at least this probability, and which part of these is right.

        The second is NaN where none has. Images of no class are not among these: how many of them are answered with
        "unknown", only such images tell.

        Args:
            threshold: as of `predict`, 0..1.
        """
        sure = self.probabilities >= threshold
        return float(sure.double().mean()), float(self.right[sure].double().mean())

    def __repr__(self) -> str:
        scores = f"top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f}"
        return f"<Evaluation of {self.count:,} images: {scores}>"


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 256,
    precision: Name = "float32",
    views: Views = "one",
    worst: int = 10,
    on_batch: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run a network over images, in evaluation mode and without random changes, and compare with their labels.

    Args:
        model: from normalized images [batch, channels, height, width] to logits [batch, K]; a DiracNet, a chain, or any
            other. Its mode is put back afterwards.
        images: their batches are put on the model's device.
        batch_size: images at a time, in each process.
        precision: the arithmetic; anything but float32 gives slightly different numbers.
        views: how many views of an image the logits are averaged over, see `averaged_logits`.
        worst: how many of the most confident errors to name.
        on_batch: called with the number of images done after each batch, by all processes.
        ranks: the processes that evaluate together, each its share of every batch. All get the same result.

    Raises:
        UsageError: `model` is no module, or a network for another number of channels or classes; there are no such
            views.
        DataError: there are no images.
        TrainingError: the network gives an infinity or NaN.

    >>> from diracnets import create_model, load_data
    >>> data = load_data("digits")
    >>> net = create_model("diracnet-10-0.25", in_channels=1, image_size=8)
    >>> evaluation = evaluate(net, data.val)
    >>> int(evaluation.confusion.sum()) == evaluation.count == len(data.val)
    True
    """
    check_module(model, "evaluate")
    if views not in get_args(Views):
        raise UsageError(f"views is {views!r}, but must be one of {', '.join(get_args(Views))}")
    if len(images) == 0:
        raise DataError("there are no images to evaluate the network on")
    found, numbers = [], []
    done = 0
    for logits, truth, indices in outputs(
        model, images, batch_size=batch_size, precision=precision, views=views, ranks=ranks
    ):
        log_probabilities = logits.double().log_softmax(1) if logits.device.type != "mps" else logits.log_softmax(1)
        best, prediction = log_probabilities.max(1)
        first_five = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [batch, 5]
        loss = -log_probabilities.gather(1, truth[:, None])[:, 0]
        right = (first_five == truth[:, None]).any(1)
        found.append(
            torch.stack([truth.to(loss.dtype), prediction.to(loss.dtype), best.exp(), loss, right.to(loss.dtype)])
        )
        numbers.append(indices)
        done = min(done + batch_size * ranks.count, len(images))
        if on_batch is not None:
            on_batch(done)
    truth, prediction, probability, losses, top5 = _of_all(
        torch.cat(found, 1), torch.cat(numbers), len(images), ranks
    ).double()
    truth, prediction = truth.long(), prediction.long()
    classes = logits.shape[1]
    confusion = torch.bincount(truth * classes + prediction, minlength=classes * classes).view(classes, classes)
    mean_loss = float(losses.mean())
    if not math.isfinite(mean_loss):
        raise TrainingError("the network's outputs are infinite or NaN, so that it cannot be evaluated")
    return Evaluation(
        count=len(truth),
        top1=float((prediction == truth).double().mean()),
        top5=float(top5.mean()),
        loss=mean_loss,
        per_class=[
            ClassScore(label, int(confusion[label].sum()), int(confusion[:, label].sum()), int(confusion[label, label]))
            for label in range(classes)
        ],
        confusion=confusion,
        worst=_most_confident_errors(images, truth, prediction, probability, worst),
        predictions=prediction,
        probabilities=probability,
        right=prediction == truth,
    )


def _of_all(found: Tensor, indices: Tensor, count: int, ranks: Ranks) -> Tensor:
    """What was found for some images, [facts, some], with what others found for the rest: [facts, count], in order."""
    if ranks.alone:
        return found.cpu()
    whole = found.new_zeros(len(found), count)
    whole[:, indices.to(whole.device)] = found
    return ranks.total(whole).cpu()


def outputs(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 256,
    precision: Name = "float32",
    views: Views = "one",
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The logits [batch, K], labels and indices [batch] of all images in order, or of this process's share of them.

    `model` is in evaluation mode meanwhile.

    Raises:
        UsageError: the network is for another number of channels or classes.
    """
    was_training = model.training
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    model.eval()
    try:
        share = Share(ranks.rank, ranks.count)
        for batch, labels, indices in ranks.together(images.batches(batch_size * ranks.count, share=share)):
            _check_channels(model, batch)
            batch, labels = batch.to(device), labels.to(device)
            # in inference mode, a network divided among processes (FSDP2) would gather tensors that cannot train
            without_gradients = torch.inference_mode() if ranks.alone else torch.no_grad()
            with without_gradients, Precision(precision, "").autocast(device):
                logits = averaged_logits(model, batch, views)
            if len(labels) and int(labels.max()) >= logits.shape[1]:
                raise UsageError(
                    f"the network has {logits.shape[1]} classes, but these images are labelled up to "
                    f"{int(labels.max())}; evaluate it on the data that it was trained for"
                )
            yield logits, labels, indices
    finally:
        model.train(was_training)


def _check_channels(model: nn.Module, batch: Tensor) -> None:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels != batch.shape[1]:
        raise UsageError(
            f"the network takes images of {first.in_channels} channels, but these have {batch.shape[1]}; "
            "evaluate it on the data that it was trained for"
        )


def _most_confident_errors(
    images: Images, truth: Tensor, prediction: Tensor, probability: Tensor, count: int
) -> list[Mistake]:
    wrong = (prediction != truth).nonzero()[:, 0]
    order = wrong[probability[wrong].argsort(descending=True, stable=True)][:count]
    return [
        Mistake(images.name(i), i, int(truth[i]), int(prediction[i]), float(probability[i])) for i in map(int, order)
    ]
