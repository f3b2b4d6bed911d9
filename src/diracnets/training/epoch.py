"""One epoch of a run: its steps, then evaluation, its numbers and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from diracnets.artifacts.checkpoint import save_checkpoint
from diracnets.data.images import Batch
from diracnets.errors import TrainingError
from diracnets.runtime.device import synchronize
from diracnets.runtime.ranks import UNREADABLE, fetched
from diracnets.training.class_weights import balanced_weights
from diracnets.training.evaluating import evaluated, recalibrate_bn, recalibrates
from diracnets.training.parallel import Trainee
from diracnets.training.patience import score
from diracnets.training.run import Run
from diracnets.training.schedule import learning_rate
from diracnets.training.step import share_of_batches, train_step

CHECK_STEPS = 20  # from one look at the loss to the next; a look waits for the device
DRAW_SECONDS = 30.0  # between two drawings of the curve


def train_epoch(run: Run, trainee: Trainee) -> None:
    """Train on what is left of the epoch at hand.

    Args:
        run: the run, whose state is changed.
        trainee: its network.
    """
    recipe, optimization, state, steps = run.recipe, run.recipe.optimization, run.state, run.steps
    trainee.train(not optimization.freeze)  # frozen features are those of evaluation
    weights = None
    if optimization.class_weights == "balanced":
        weights = balanced_weights(run.data.train.labels, len(run.data.classes)).to(state.device)
    begun = time.perf_counter() - state.seconds
    batches = run.data.train.batches(
        optimization.batch_size,
        epoch=state.epoch,
        augment=recipe.data.augment,
        seed=recipe.runtime.seed,
        first=state.batch,
        share=share_of_batches(optimization, state.ranks),
    )
    for images, labels, _ in _in_step(run, islice(batches, steps - state.batch)):
        size = min(optimization.batch_size, len(run.data.train) - state.batch * optimization.batch_size)
        train_step(recipe, state, trainee, images, labels, size, run.teacher, weights)
        if state.batch + 1 == steps:
            synchronize(state.device)
        state.end_step(size, seconds=time.perf_counter() - begun)
        _after_step(run)


def _in_step(run: Run, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, while every process has them and none is to stop; else what was done before them is saved.

    Raises:
        Interrupted: a signal came to a process.
        DataError, FileError: a process cannot get its batch.
    """
    iterator, ranks, state = iter(batches), run.state.ranks, run.state
    while True:
        batch, error = fetched(iterator)
        number, failed = ranks.highest(run.interruption.asked, error is not None)
        run.stop(number)  # a machine that stops everything may take the workers first
        if failed:
            raise run.save_before(ranks.shared(error))
        if state.batch:  # not before: a terminal that has gone may have sent the signal
            run.reporter.step(state.epoch, state.batch, state.seen / state.seconds, state.running)
        if batch is None:
            return
        yield batch


def _after_step(run: Run) -> None:
    """Look at the loss now and then, and save when it is time to.

    Raises:
        TrainingError: the run diverges; what is left to resume is from before.
    """
    state, every = run.state, run.safeguards.save_every
    if state.batch % CHECK_STEPS == 0 or state.batch == run.steps or (state.epoch, state.batch) == (1, 1):
        run.stop_if(run.watch.look())
    if every and state.batch < run.steps and ((state.epoch - 1) * run.steps + state.batch) % every == 0:
        run.save()


def finish_epoch(run: Run) -> dict[str, Any]:
    """Evaluate when it is time to, write the epoch's numbers and the checkpoints, and move on to the next epoch."""
    recipe, state = run.recipe, run.state
    loss_sum, correct = state.totals()
    row: dict[str, Any] = {
        "epoch": state.epoch,
        "loss": float(loss_sum) / state.seen,
        "accuracy": int(correct) / state.seen,
        "rate": learning_rate(recipe.optimization, state.epoch * run.steps - 1, run.steps),
        "seconds": state.seconds,
        "images_per_second": state.seen / state.seconds,
    }
    if skipped := _skipped(run):
        row["skipped"] = skipped
    last, improved = state.epoch == recipe.optimization.epochs, False
    if last or state.epoch % recipe.runtime.eval_every == 0:
        averaged = state.average is not None and state.average.started()
        try:
            if (averaged or recalibrates(run)) and not recipe.optimization.freeze:
                begun = time.perf_counter()
                recalibrate_bn(run)
                synchronize(state.device)
                row["seconds"] += (time.perf_counter() - begun) * last  # a part of training, where they are kept
            evaluation = evaluated(run, run.data.val)
        except TrainingError as error:  # it has diverged, and what was saved last has not
            run.go_back()
            raise TrainingError(f"{error}; {run.advice()}") from error
        except UNREADABLE as error:  # which all processes raise, and which must not cost the epoch
            raise run.save_before(error) from error.__cause__
        except Exception:
            if state.ranks.alone:
                run.save()
            raise
        row |= {"val_loss": evaluation.loss, "val_accuracy": evaluation.top1}
        if recipe.optimization.class_weights == "balanced":
            row["val_balanced_accuracy"] = evaluation.balanced
        reached = score(row) or 0.0
        improved = reached >= state.best  # of equals the last, which has trained for longer
        state.best = max(state.best, reached)
    state.history.append(row)
    state.begin_epoch(state.epoch + 1)
    run.record_scales()
    if improved:
        best = run.checkpoint()
        if state.ranks.first:
            save_checkpoint(run.folder.best, best)
    if run.over or state.ranks.from_first(run.save_is_due):
        run.save()
    if state.ranks.first:
        run.folder.append_metrics(row)
        run.reporter.epoch(row, best=improved)
        if run.over or time.monotonic() - run.drawn > DRAW_SECONDS:
            run.drawn = time.monotonic()
            if (why_not := run.folder.draw(state.history, recipe.optimization.label_smoothing)) and run.over:
                run.reporter.say(why_not)
    return row


def _skipped(run: Run) -> int:
    """How many images could not be read since the run was begun or resumed; those that are new are named."""
    found: dict[int, str] = {}
    for each in run.state.ranks.gathered(dict(run.data.train.skipped)):
        found |= each
    new = sorted(found.keys() - run.named)
    run.named.update(new)
    for number in new:
        run.reporter.say(f"skipped, another image stands in for it: {found[number]}")
    return len(found)
