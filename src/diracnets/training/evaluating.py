"""Evaluation in the course of a run, and the BatchNorm statistics that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice

from torch import Tensor
from torch.optim.swa_utils import update_bn

from diracnets.data.images import Images
from diracnets.data.share import Share
from diracnets.evaluation.metrics import Evaluation, evaluate
from diracnets.models.network import Network
from diracnets.runtime.device import memory_format
from diracnets.training.run import Run
from diracnets.training.sync_bn import norms_synchronized

USUAL_IMAGES = 256  # of a batch that is evaluated
STATISTICS_BATCHES = 50  # from which BatchNorm statistics are recalibrated,
USUAL_BATCHES = 20  # and where the recipe does not ask for it: running statistics are of no more


def recalibrates(run: Run) -> bool:
    """Whether BatchNorm statistics are recalibrated before each evaluation."""
    return run.recipe.optimization.recalibrates(run.data.name, run.steps)


def recalibrate_bn(run: Run) -> None:
    """Set the BatchNorm statistics of the network to evaluate to their means over some of the epoch's batches.

    In float32 whatever the training's arithmetic, since that is what networks are evaluated and folded in: weights
    that are rounded to bfloat16 have other statistics, and hundreds of layers multiply the difference (11 points at
    1,000 layers, docs/depth.md).
    """
    recipe, state = run.recipe, run.state
    batches = run.data.train.batches(
        recipe.optimization.batch_size,
        epoch=state.epoch,
        augment=recipe.data.augment,
        seed=recipe.runtime.seed,
        share=Share(state.ranks.rank, state.ranks.count),
    )
    averaged = state.average is not None and state.average.started()
    count = STATISTICS_BATCHES if averaged or recipe.optimization.recalibrate_bn else USUAL_BATCHES
    some = state.ranks.together(islice(batches, min(run.steps, count)))
    layout = memory_format(recipe.runtime.channels_last)
    moved = (images.to(state.device, memory_format=layout) for images, _, _ in some)
    with nullcontext() if state.ranks.alone else norms_synchronized(state.evaluated):
        update_bn(_until_asked(run, moved), state.evaluated)
    run.stop_if_asked()  # not before: the norms have their momentum back only now
    if state.average is not None and state.average.started():
        state.average.ready = True


def _until_asked(run: Run, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, up to one at which a process was asked to stop; a resumed run begins again with the first."""
    for number, batch in enumerate(batches, start=1):
        run.reporter.recalibrating(number)
        yield batch
        if run.state.ranks.highest(run.interruption.asked)[0]:
            return


def evaluated(run: Run, images: Images, net: Network | None = None) -> Evaluation:
    """How good a network is, by default the one to evaluate; each process evaluates a share."""
    show = partial(_evaluating, run, count=len(images))
    net = run.state.evaluated if net is None else net
    few = min(USUAL_IMAGES, run.recipe.optimization.batch_size)  # a signal waits for a batch: for no more than a step's
    return evaluate(net, images, batch_size=few, on_batch=show, ranks=run.state.ranks)


def _evaluating(run: Run, done: int, count: int) -> None:
    """Show how far the evaluation is; a run that is to stop leaves it, and repeats it when it is resumed."""
    run.stop_if_asked()
    run.reporter.evaluating(done, count)
