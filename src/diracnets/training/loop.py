"""The training of a network by a recipe, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from diracnets.artifacts.card import card_of
from diracnets.artifacts.load import load_as_stored
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.data.items import MapStyle
from diracnets.data.load import load_data
from diracnets.data.stream import StreamedImages
from diracnets.data.workers import default_workers
from diracnets.errors import UsageError
from diracnets.models.network import Network
from diracnets.runtime.device import memory_format, repeatable
from diracnets.runtime.job import job
from diracnets.runtime.precision import Precision, choose_precision, usual_precision
from diracnets.runtime.ranks import Ranks, joined
from diracnets.training.asked import Data, asked
from diracnets.training.begin import begin, introduction, steps_per_epoch
from diracnets.training.epoch import finish_epoch, train_epoch
from diracnets.training.finish import Trained, finish
from diracnets.training.folder import RunFolder, new_folder
from diracnets.training.inputs import check_progressive_size
from diracnets.training.interruption import Interruption, command_to_resume, told_to_go_on
from diracnets.training.own import own_network
from diracnets.training.parallel import Trainee
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Events, Reporter
from diracnets.training.run import Run
from diracnets.training.safeguards import Safeguards
from diracnets.training.same_images import check_same_images
from diracnets.training.start import (
    followed,
    network_to_resume,
    start_name,
    starting_network,
    with_normalization,
)
from diracnets.training.state import State, precision_of
from diracnets.training.teacher import INHERITED, check_teacher, load_teacher
from diracnets.training.watchdog import LossWatch


def train(
    recipe: Recipe | str | Path,
    *,
    net: nn.Module | None = None,
    run: str | Path | None = None,
    data: ImageData | str | MapStyle | tuple[MapStyle, MapStyle] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    start: nn.Module | str | Path | None = None,
    teacher: nn.Module | str | Path | None = None,
    trust_teacher: bool = False,
    inherit: bool = False,
    safeguards: Safeguards | None = None,
    shard: bool = False,
    quiet: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """Train a network by a recipe, fold it, and write everything to a run folder.

    The folder gets recipe.toml, environment.json, metrics.jsonl, scales.jsonl (of Dirac convolutions), the checkpoints
    last.pt and best.pt, curve.png (with the extra `plot`), TensorBoard events (with the extra `tensorboard`), and in
    the end model.safetensors. Ctrl-C, SIGTERM or SIGHUP (in the main thread), once training has begun, ends the step at
    hand, saves, and raises `Interrupted`; resuming then gives, bit by bit, the weights that the run would have had
    without it. torch's random state is seeded by the recipe, and put back in the end. On a CPU under Linux, call
    `diracnets.runtime.device.keep_memory` before, as the command line does: a step takes up to a third less time.

    Args:
        recipe: what to do, or the name or file of a recipe, whose network and image size are then those of `start`, see
            `following`. When resuming, the very recipe that the run began with.
        net: a module of one's own to train instead of the recipe's network: for images [B, C, H, W] it gives logits
            [B, classes]. It is trained itself, and the best one of all epochs, a copy, is the result's. When resuming,
            one of the same layers. Where it has a `card`, as trained weights have, images are normalized as that says.
            There is a model file if it folds to a straight line of layers.
        run: the folder; it must not hold a run yet, unless `resume`. By default a new one in runs/.
        data: what `load_data` makes or takes, such as a Dataset of one's own; by default what the recipe names.
        data_dir: where the recipe's images are; when resuming, by default where they were.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        workers: processes that decode images of a folder; by default one a core, at most 4.
        resume: go on from the run's last checkpoint: of the last epoch, unless writing it takes so long that some are
            left out. One that is damaged is passed over, and the one before it taken.
        start: trained weights to begin with, see `starting_network`; images are normalized as those that they were
            trained on. With `resume`, the checkpoint of the run to go back to; when the run is saved next, those after
            it go.
        teacher: a trained network to learn from besides the labels, see `load_teacher`; when resuming, by default the
            one of before, unless that was a module.
        trust_teacher: the teacher may be a TorchScript file or exported program, which can run code of its author.
        inherit: begin with the teacher's filters where the shapes allow, see `Teacher.pass_on`.
        safeguards: how often to save, what to keep, and when to stop; when resuming, by default those of before.
        shard: divide the network among the processes (FSDP2), so that each keeps a part of its weights, gradients,
            optimizer states and averages. The run and its files are the same, and can be resumed with or without it.
            The trained network and its chain are on the CPU then.
        quiet: show nothing.
        on_epoch: called with each epoch's row of `metrics.jsonl`.

    Raises:
        UsageError: a name, number or combination that makes no sense; a folder that holds a run, or none to resume; a
            folder in which another process trains.
        DataError, FileError: images or files that cannot be read or written.
        TrainingError: the loss or a weight has become infinite or NaN.
        Interrupted: the run was stopped by a signal, and is saved.

    >>> import tempfile
    >>> recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1, precision="float32")
    >>> trained = train(recipe, run=tempfile.mkdtemp(), device="cpu", quiet=True)
    >>> sorted(path.name for path in trained.run.iterdir() if path.suffix in (".toml", ".jsonl", ".safetensors"))
    ['metrics.jsonl', 'model.safetensors', 'recipe.toml', 'scales.jsonl']
    """
    recipe, start = asked(recipe, net, data, run, start, resume=resume, inherit=inherit, shard=shard)
    data = recipe.data.name if data is None else data
    optimization = recipe.optimization

    repeated = repeatable(recipe.runtime.seed, deterministic=recipe.runtime.deterministic)
    with joined(device) as ranks, ExitStack() as held, repeated:
        if shard and ranks.alone:
            raise UsageError(
                "shard divides the network among several processes, but this one is alone: start several (--devices N, "
                "or torchrun), or leave it out"
            )
        folder = RunFolder(ranks.from_first(lambda: new_folder(recipe, job())) if run is None else run)
        there = folder.path.exists()
        if there and ranks.first:
            held.enter_context(folder.held())
        if ranks.from_first(lambda: folder.saved_by(job())):  # torchrun has restarted it
            resume, start, inherit = True, None, False
        if not resume and ranks.first:
            folder.check_unused()
        from_file = None if isinstance(start, nn.Module) else start
        saved = ranks.from_first(lambda: folder.read_last(recipe, from_file)) if resume else None
        resumed = {} if saved is None or saved.resume is None else dict(saved.resume)
        record = ranks.from_first(lambda: RunRecord.read(folder.path)) if resume else RunRecord(start=start_name(start))
        safeguards = safeguards or Safeguards.of(record.safeguards)
        if resume and isinstance(data, str) and data_dir is None:
            data_dir = record.data_dir
        if resume and teacher is None:
            teacher = record.teacher
        data = _images(recipe, data, data_dir, workers, ranks)
        trained = load_as_stored(start) if isinstance(start, str | Path) and saved is None else start
        weights = trained if isinstance(trained, nn.Module) else None
        known = net if net is not None and saved is None and card_of(net) is not None else weights
        data = with_normalization(data, known, None if saved is None else saved.card)
        for images in (data.train, data.val, data.test):
            if isinstance(images, StreamedImages):
                images.stall_seconds = safeguards.stall_seconds
        if not there and ranks.first:  # not before: within a folder of images, an empty one would be taken for a class
            held.enter_context(folder.held())
            folder.check_unused()
        guide = None if teacher is None else load_teacher(teacher, data, trusted=trust_teacher).to(ranks.device)
        check_teacher(guide, optimization, record if resume else None, inherit=inherit)
        steps = steps_per_epoch(optimization.batch_size, data)
        # This refuses what does not suit the images.
        data.train.batches(optimization.batch_size, epoch=1, augment=recipe.data.augment)
        own = None if net is None else own_network(net, recipe, data)
        net = own or (
            starting_network(recipe, data, weights) if saved is None else network_to_resume(saved.card, recipe, data)
        )
        record = ranks.from_first(partial(check_same_images, data, record))
        if guide is not None and inherit and saved is None:
            count = guide.pass_on(net)
            if count == 0:
                raise UsageError(f"no filter of {guide.name} has the shape of one of the network's: leave out inherit")
            record = replace(record, start=f"{count}{INHERITED}{guide.name}")
        check_progressive_size(recipe.data, data.input_size, net.min_image_size)
        if not shard:
            net.to(ranks.device, memory_format=memory_format(recipe.runtime.channels_last))  # type: ignore[call-overload]
        balanced = optimization.class_weights == "balanced"
        reporter = Reporter(optimization.epochs, steps, quiet=quiet or not ranks.first, balanced=balanced)
        for line in introduction(recipe, data, folder.path, net, guide, ranks, shard=shard):
            reporter.say(line)
        if saved is None and record.start is not None and INHERITED in record.start:
            reporter.say(f"  the network begins with {record.start}")
        if known is not None:
            reporter.say(followed(data, known))
        if saved is not None:
            precision = precision_of(resumed)
        else:
            precision = _precision(recipe, net, data, ranks, shard=shard, say=reporter.say)
        if shard:
            from diracnets.training.sharding import sharded  # takes seconds

            net = sharded(net, ranks, sync_bn=optimization.sync_bn)
        trainee = Trainee(net, ranks, sync_bn=optimization.sync_bn, shard=shard, compiled=recipe.runtime.compile)
        held.callback(trainee.release)
        state = State(optimization, net, precision, steps, ranks, shard=shard)
        if saved is not None:
            state.restore(resumed)

        command = command_to_resume(folder.path, data_dir, device, workers, shard=shard)
        if own is not None:
            command = f"train(recipe, net=..., run={str(folder.path)!r}, resume=True), in Python"
        with (
            told_to_go_on(folder.checkpoints, command),
            # Before, there is nothing to save: a signal ends the program at once.
            Interruption(say=ranks.first and not quiet, several=not ranks.alone) as interruption,
            reporter,
            closing(Events(folder.events, state.epoch - 1)) as events,
        ):
            watch = LossWatch(len(data.classes), safeguards.diverged_steps, state, steps, resumed.get("watch"))
            running = Run(
                recipe,
                data,
                data_dir,
                folder,
                state,
                record,
                guide,
                steps,
                reporter,
                interruption,
                command,
                safeguards,
                watch,
            )
            begin(running, resumed=saved is not None)
            while not running.over:
                train_epoch(running, trainee)
                row = finish_epoch(running)
                if ranks.first:
                    events.write(row)
                    if on_epoch is not None:
                        on_epoch(row)
                running.stop_if_asked()
            return finish(running)


def _images(recipe: Recipe, data: Data, data_dir: str | Path | None, workers: int | None, ranks: Ranks) -> ImageData:
    """The images of a run, loaded where they are not yet, as many as the recipe trains and validates on."""
    if not isinstance(data, ImageData):
        load = partial(
            load_data,
            data,
            data_dir=data_dir,
            image_size=recipe.data.image_size,
            device=ranks.device,
            workers=default_workers(ranks.local_count) if workers is None and not ranks.alone else workers,
            skip_unreadable=recipe.data.skip_unreadable,
        )
        data = ranks.one_first(load)
    if recipe.data.select_on is not None:
        data = data.selecting_on(recipe.data.select_on)
    return data if recipe.data.num_train is None else data.with_fewer(recipe.data.num_train)


def _precision(
    recipe: Recipe, net: Network, data: ImageData, ranks: Ranks, *, shard: bool, say: Callable[[str], None]
) -> Precision:
    """The arithmetic of a new run, the same in all processes."""
    if shard and recipe.runtime.precision == "auto":
        return usual_precision(ranks.device)
    optimization = recipe.optimization
    at_once = -(-min(optimization.batch_size, len(data.train)) // (ranks.count * optimization.accumulate))
    size = data.input_size
    measure = partial(choose_precision, recipe.runtime.precision, net, max(2, at_once), size, say=say)
    return ranks.from_first(measure)
