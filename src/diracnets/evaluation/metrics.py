"""How good a network is on a set of images: accuracy, loss, classes, confusion matrix, most confident errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from diracnets.data.images import Images
from diracnets.errors import DataError, TrainingError, UsageError
from diracnets.evaluation.views import Views, averaged_logits
from diracnets.runtime.precision import Name, Precision


@dataclass(frozen=True)
class ClassAccuracy:
    """How often one class was recognized."""

    label: int
    count: int
    """Images of the class."""
    correct: int
    """Those among them whose prediction is the class."""

    @property
    def accuracy(self) -> float:
        """From 0 to 1; NaN for a class without images."""
        return self.correct / self.count if self.count else float("nan")


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
    per_class: list[ClassAccuracy]
    confusion: Tensor
    """int64 [K, K]: images of the row's class that were predicted as the column's."""
    worst: list[Mistake]
    """The most confident errors, the most confident first."""
    predictions: Tensor
    """int64 [count]: the class that comes first for each image, in the order of the set."""


def evaluate(
    model: nn.Module,
    images: Images,
    *,
    batch_size: int = 256,
    precision: Name = "float32",
    views: Views = "one",
    worst: int = 10,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a network over images, in evaluation mode and without random changes, and compare with their labels.

    Args:
        model: from normalized images [batch, channels, height, width] to logits [batch, K]; a DiracNet, a chain, or any
            other. Its mode is put back afterwards.
        images: their batches are put on the model's device.
        batch_size: images at a time.
        precision: the arithmetic; anything but float32 gives slightly different numbers.
        views: how many views of an image the logits are averaged over, see `averaged_logits`.
        worst: how many of the most confident errors to name.
        on_batch: called with the number of images done after each batch.

    Raises:
        UsageError: the network is for another number of channels or classes, or there are no such views.
        DataError: there are no images.
        TrainingError: the network gives an infinity or NaN.

    >>> from diracnets import create_model, load_data
    >>> data = load_data("digits")
    >>> net = create_model("diracnet-10-0.25", in_channels=1, image_size=8)
    >>> evaluation = evaluate(net, data.val)
    >>> int(evaluation.confusion.sum()) == evaluation.count == len(data.val)
    True
    """
    if views not in get_args(Views):
        raise UsageError(f"views is {views!r}, but must be one of {', '.join(get_args(Views))}")
    if len(images) == 0:
        raise DataError("there are no images to evaluate the network on")
    labels, predictions, probabilities, losses, top5 = [], [], [], [], []
    done = 0
    for logits, truth in outputs(model, images, batch_size=batch_size, precision=precision, views=views):
        log_probabilities = logits.double().log_softmax(1) if logits.device.type != "mps" else logits.log_softmax(1)
        best, prediction = log_probabilities.max(1)
        first_five = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [batch, 5]
        labels.append(truth)
        predictions.append(prediction)
        probabilities.append(best.exp())
        losses.append(-log_probabilities.gather(1, truth[:, None])[:, 0])
        top5.append((first_five == truth[:, None]).any(1))
        done += len(truth)
        if on_batch is not None:
            on_batch(done)
    truth, prediction, probability = (
        torch.cat(labels).cpu(),
        torch.cat(predictions).cpu(),
        torch.cat(probabilities).cpu(),
    )
    classes = logits.shape[1]
    confusion = torch.bincount(truth * classes + prediction, minlength=classes * classes).view(classes, classes)
    loss = float(torch.cat(losses).mean())
    if not math.isfinite(loss):
        raise TrainingError("the network's outputs are infinite or NaN, so that it cannot be evaluated")
    return Evaluation(
        count=len(truth),
        top1=float((prediction == truth).double().mean()),
        top5=float(torch.cat(top5).cpu().double().mean()),
        loss=loss,
        per_class=[
            ClassAccuracy(label, int(confusion[label].sum()), int(confusion[label, label])) for label in range(classes)
        ],
        confusion=confusion,
        worst=_most_confident_errors(images, truth, prediction, probability, worst),
        predictions=prediction,
    )


def outputs(
    model: nn.Module, images: Images, *, batch_size: int = 256, precision: Name = "float32", views: Views = "one"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits [batch, K] and labels [batch] of all images in their order; `model` is in evaluation mode meanwhile.

    Raises:
        UsageError: the network is for another number of channels or classes.
    """
    was_training = model.training
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    model.eval()
    try:
        for batch, labels, _ in images.batches(batch_size):
            _check_channels(model, batch)
            batch, labels = batch.to(device), labels.to(device)
            with torch.inference_mode(), Precision(precision, "").autocast(device):
                logits = averaged_logits(model, batch, views)
            if int(labels.max()) >= logits.shape[1]:
                raise UsageError(
                    f"the network has {logits.shape[1]} classes, but these images are labelled up to "
                    f"{int(labels.max())}; evaluate it on the data that it was trained for"
                )
            yield logits, labels
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
