"""One step of training: the gradient of the mean loss over a batch, in parts if the recipe says so, and the update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diracnets.data.share import Share
from diracnets.runtime.device import memory_format
from diracnets.runtime.ranks import Ranks
from diracnets.training.inputs import mixed, mixup_share, progressively_resized, with_mixed_in
from diracnets.training.parallel import Trainee
from diracnets.training.recipe import Recipe
from diracnets.training.schedule import factor, momentum_restarts
from diracnets.training.settings import OptimizationSettings
from diracnets.training.state import State
from diracnets.training.teacher import Teacher, distillation

Piece = tuple[Tensor, tuple[Tensor, ...]]  # images, and their labels; then too those of the images mixed in


def share_of_batches(optimization: OptimizationSettings, ranks: Ranks) -> Share:
    """A process's share of every batch of training."""
    mixes = optimization.mixup > 0 and not ranks.alone
    return Share(ranks.rank, ranks.count, parts=optimization.accumulate, before=int(mixes))


def train_step(
    recipe: Recipe,
    state: State,
    trainee: Trainee,
    images: Tensor,
    labels: Tensor,
    size: int,
    teacher: Teacher | None = None,
    weights: Tensor | None = None,
) -> None:
    """Take one step of a run.

    Args:
        recipe: of the run.
        state: of the run, before the step. Its `loss_sum` and `correct` take in what the step finds.
        trainee: its network.
        images: this process's share of the batch, [share, C, H, W], see `share_of_batches`.
        labels: of these, [share].
        size: images of the whole batch.
        teacher: the network to learn from besides the labels.
        weights: how much an image of each class counts, [classes]; None: all alike.
    """
    optimization = recipe.optimization
    step = (state.epoch - 1) * state.steps + state.batch
    if momentum_restarts(optimization, step, state.steps):
        state.optimizer.state.clear()
    for group, highest in zip(state.optimizer.param_groups, state.rates, strict=True):
        group["lr"] = highest * factor(optimization, step, state.steps)

    images = images.to(state.device, memory_format=memory_format(recipe.runtime.channels_last))
    labels = labels.to(state.device)
    inputs = progressively_resized(images, recipe.data, step, optimization.epochs * state.steps)
    counts = [end - begin for begin, end in share_of_batches(optimization, state.ranks).pieces(size)]
    mix = mixup_share(optimization.mixup, recipe.runtime.seed, state.epoch, state.batch) if optimization.mixup else None
    pieces = list(_pieces(inputs, labels, counts, mix, whole=state.ranks.alone))
    answers: list[Tensor | None] = [None] * len(pieces)
    if teacher is not None:  # it sees the images as they are
        full = pieces if inputs is images else _pieces(images, labels, counts, mix, whole=state.ranks.alone)
        with state.precision.autocast(state.device):
            answers = [teacher(each) if len(each) else None for each, _ in full]
    _add_gradients(optimization, state, trainee, list(zip(pieces, answers, strict=True)), mix, size, weights)
    if optimization.clip_grad:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.net.parameters(), optimization.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update(state.net, step)


def _add_gradients(
    optimization: OptimizationSettings,
    state: State,
    trainee: Trainee,
    pieces: list[tuple[Piece, Tensor | None]],
    mix: float | None,
    size: int,
    weights: Tensor | None,
) -> None:
    """Add up the gradients of the pieces of the share, and with those of the last one all processes'."""
    own = sum(len(images) for (images, _), _ in pieces)
    if not trainee.in_step:  # else all processes have to call the network as often
        pieces = [piece for piece in pieces if len(piece[0][0])] or pieces[:1]
    for number, ((images, targets), answers) in enumerate(pieces, start=1):
        last = number == len(pieces)
        with nullcontext() if last else trainee.gradients_kept():
            with state.precision.autocast(state.device):
                logits = trainee(images)
                loss = _loss(logits, targets, mix, answers, optimization, weights)
            # DDP divides the sum over processes by their number.
            weighted = loss * (len(images) * state.ranks.count / size) if len(images) else loss
            with trainee.statistics_shared(own / size) if last else nullcontext():
                state.scaler.scale(weighted).backward()  # type: ignore[no-untyped-call]
        if len(images):
            state.add(loss, logits, targets[0])


def _pieces(images: Tensor, labels: Tensor, counts: list[int], mix: float | None, *, whole: bool) -> Iterator[Piece]:
    """The pieces of a share, mixed unless `mix` is None.

    Args:
        images: of all pieces, [share, C, H, W]; if they are to be mixed, and not `whole`, with the one before each
            piece.
        labels: of these.
        counts: images in each piece.
        mix: an image's own share in a mixture.
        whole: whether the pieces are those of a whole batch.
    """
    if mix is None:
        yield from zip(torch.split(images, counts), zip(torch.split(labels, counts), strict=True), strict=True)
    elif whole:
        targets = [torch.split(each, counts) for each in with_mixed_in(labels)]
        yield from zip(torch.split(mixed(images, mix), counts), zip(*targets, strict=True), strict=True)
    else:
        spans = [count + (count > 0) for count in counts]
        for some, theirs in zip(torch.split(images, spans), torch.split(labels, spans), strict=True):
            yield mixed(some, mix, ring=False), with_mixed_in(theirs, ring=False)


def _loss(
    logits: Tensor,
    targets: tuple[Tensor, ...],
    mix: float | None,
    answers: Tensor | None,
    optimization: OptimizationSettings,
    weights: Tensor | None,
) -> Tensor:
    """The mean loss of a piece: of the images' own labels, of those mixed in, and of the teacher's answers."""
    if not len(logits):
        return logits.sum()  # 0, and so are its gradients
    smoothing = optimization.label_smoothing
    loss = _label_loss(logits, targets[0], smoothing, weights)
    if mix is not None:
        loss = mix * loss + (1 - mix) * _label_loss(logits, targets[1], smoothing, weights)
    if answers is not None:
        loss = torch.lerp(loss, distillation(logits, answers, optimization.temperature), optimization.teacher_weight)
    return loss


def _label_loss(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """The mean cross-entropy, each image's times the weight of its class.

    It is divided by the images, not by their weights as torch does: means of pieces then add up to that of the batch.
    """
    if weights is None:
        return cross_entropy(logits, labels, label_smoothing=smoothing)
    return (weights[labels] * cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()
