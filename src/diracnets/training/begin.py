"""The beginning of a run, or of what is left of it: its first files, and what it says before the first step."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from diracnets.artifacts.checkpoint import read_checkpoint
from diracnets.data.images import ImageData
from diracnets.data.share import LEAST, cut
from diracnets.errors import DataError, FileError
from diracnets.models.network import Network
from diracnets.places import absolute_place
from diracnets.runtime.environment import device_name, record_environment
from diracnets.runtime.job import restarts
from diracnets.runtime.ranks import Ranks
from diracnets.training.class_weights import unequal_classes
from diracnets.training.evaluating import recalibrates
from diracnets.training.patience import schedule_cut_short
from diracnets.training.recipe import Recipe
from diracnets.training.run import Run, validated_on
from diracnets.training.settings import FEW_STEPS
from diracnets.training.teacher import Teacher


def introduction(
    recipe: Recipe, data: ImageData, folder: Path, net: Network, teacher: Teacher | None, ranks: Ranks, *, shard: bool
) -> list[str]:
    """The first lines of a run: which network, which images, and where everything goes."""
    images = f"{len(data.train):,} images to train on, {validated_on(data)} to validate on"
    first = f"{recipe.model.name} on {data.name}: {images}; everything goes to {folder}"
    unequal = unequal_classes(data.train.labels, data.classes) if recipe.optimization.class_weights == "none" else None
    told = [unequal] if unequal else []
    init = recipe.model.init
    if init.scheme == "carriers" and init.bias is not None:
        told.append(
            f"init carriers with the bias {init.bias:g} of the recipe: --bias None leaves it that of the carriers"
        )
    lines = [first, *data.summary(), *told, *([] if teacher is None else teacher.summary(net, data))]
    return lines if ranks.alone else [*lines, _processes(recipe, len(data.train), ranks, shard=shard)]


def _processes(recipe: Recipe, images: int, ranks: Ranks, *, shard: bool) -> str:
    """How many train, what each has of a step, and what its batch norms see of it."""
    optimization = recipe.optimization
    batch = min(optimization.batch_size, images)
    ways = "that divide the network (FSDP2)" if shard else "that train one network"
    norms = "the whole batch" if optimization.sync_bn else "its own images alone (--sync-bn: the whole batch)"
    shares = [end - begin for begin, end in cut(batch // optimization.accumulate, ranks.count)]
    share = f"{max(shares) * optimization.accumulate} of the {batch} images of a step each"
    none = f", but {shares.count(0)} get none, since a share has at least {LEAST}" if 0 in shares else ""
    return f"{ranks.count} processes {ways}, {share}{none}; BatchNorm sees {norms}"


def steps_per_epoch(batch_size: int, data: ImageData) -> int:
    """Batches an epoch: a last batch of a single image is left out, for it has no statistics to normalize with.

    Raises:
        DataError: less than two images to train on.
    """
    full, rest = divmod(len(data.train), batch_size)
    steps = full + (rest > 1)
    if steps == 0:
        raise DataError(f"{data.name} has {len(data.train)} images to train on, but training needs at least 2")
    return steps


def begin(run: Run, *, resumed: bool) -> None:
    """Write the run's first files, and say on what it is going to run, and in which arithmetic."""
    recipe, state, say = run.recipe, run.state, run.reporter.say
    if state.ranks.first:
        _write_record(run, resumed=resumed)
    if not resumed:
        run.record_scales()
        run.save()
    for damage in run.folder.damaged:
        say(f"{damage}; an earlier checkpoint is resumed instead")
    _check_best(run)
    say(f"{device_name(state.device)}, {state.precision.name}: {state.precision.reason}")
    epochs = recipe.optimization.epochs
    if late := [milestone for milestone in recipe.optimization.milestones if milestone > epochs]:
        say(f"the milestones {', '.join(map(str, late))} are after the last epoch, {epochs}")
    if recipe.optimization.class_weights == "balanced":
        say("class weights are balanced: bal acc is the mean of the classes' own accuracies, and decides which is best")
    if recalibrates(run) and recipe.optimization.recalibrate_bn is None:
        lag = f", and an epoch has {run.steps}" if run.steps < FEW_STEPS else ""
        say(f"BatchNorm is recalibrated before each evaluation: running statistics lag by ten steps{lag}")
    if cut := schedule_cut_short(recipe.optimization):
        say(cut)
    if resumed and run.over:
        say(f"this run is finished, {state.epoch - 1} of {epochs} epochs: {_to_train_on(run)}")
    elif resumed:
        again, most = restarts()
        why = f", restart {again} of {most}" if again else ""
        say(f"resumed after {state.epoch - 1} epochs and {state.batch} of {run.steps} batches{why}")


def _to_train_on(run: Run) -> str:
    """How to go on from a finished run. Its own schedule has come to its end, and cannot be made longer afterwards."""
    where = f" --data-dir {shlex.quote(str(run.data_dir))}" if run.data_dir is not None else ""
    recipe, folder = shlex.quote(str(run.folder.recipe)), shlex.quote(str(run.folder.path))
    again = f"diracnets train --recipe {recipe} --from {folder}{where} --epochs N"
    return f"to train on, start another from it, with a schedule of its own: {again}"


def _write_record(run: Run, *, resumed: bool) -> None:
    data_dir = None if run.data_dir is None else absolute_place(run.data_dir)
    teacher = None if run.teacher is None else run.teacher.where
    fingerprint = None if run.teacher is None else run.teacher.fingerprint()
    safeguards = asdict(run.safeguards)
    record = replace(
        run.record, data_dir=data_dir, teacher=teacher, teacher_fingerprint=fingerprint, safeguards=safeguards
    )
    record.save(run.folder.path)
    if not resumed:
        run.recipe.save(run.folder.recipe)
    run.folder.rewrite_metrics(run.state.history)
    precision = run.state.precision
    record_environment(run.folder.environment, run.state.device, run.data_dir, precision, record.start)


def _check_best(run: Run) -> None:
    """Where the best checkpoint is damaged, or of a course that was left, let the next network take its place."""
    damage = run.state.ranks.from_first(partial(_damage_of_best, run))
    if damage is not None:
        run.state.best = -1.0
        run.reporter.say(f"{damage}; the network that is evaluated next takes its place")


def _damage_of_best(run: Run) -> str | None:
    try:
        if run.folder.best.exists():
            epoch = read_checkpoint(run.folder.best).card.provenance.get("epoch")
            if isinstance(epoch, int) and epoch >= run.state.epoch:
                return f"{run.folder.best} is of epoch {epoch}, which is trained again"
    except FileError as error:
        return str(error)
    return None
