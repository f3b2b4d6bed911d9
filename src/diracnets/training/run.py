"""A run while it runs: what it says, when it evaluates, and what it writes to its folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.chain import to_chain, write_model_file
from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from diracnets.artifacts.model_file import save
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import Batch, ImageData, Images
from diracnets.data.share import Share
from diracnets.errors import DataError, FileError, FoldError, TrainingError, UsageError, first_line
from diracnets.evaluation.metrics import Evaluation, evaluate
from diracnets.files import absolute_place
from diracnets.folding.fold import fold
from diracnets.models.network import Network
from diracnets.runtime.device import memory_format, synchronize
from diracnets.runtime.environment import device_name, record_environment
from diracnets.runtime.job import job
from diracnets.runtime.ranks import UNREADABLE, fetched
from diracnets.training.finish import card_of_run
from diracnets.training.folder import RunFolder
from diracnets.training.interruption import Interrupted, Interruption
from diracnets.training.own import OwnNetwork, kept_weights
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Reporter
from diracnets.training.safeguards import Safeguards
from diracnets.training.scales import record_scales
from diracnets.training.schedule import learning_rate
from diracnets.training.settings import FEW_STEPS
from diracnets.training.state import State
from diracnets.training.sync_bn import norms_synchronized
from diracnets.training.teacher import Teacher
from diracnets.training.watchdog import LossWatch

CHECK_STEPS = 20  # from one look at the loss to the next; a look waits for the device
STATISTICS_BATCHES = 50  # from which BatchNorm statistics are recalibrated,
USUAL_BATCHES = 20  # and where the recipe does not ask for it: running statistics are of no more
DRAW_SECONDS = 30.0  # between two drawings of the curve
LONG_SAVE = 1.0  # seconds; a checkpoint that takes longer is not written after every epoch,
SAVE_SHARE = 0.05  # but so rarely that this part of the time goes into it


@dataclass(frozen=True)
class Trained:
    """The result of a finished run."""

    run: Path
    """The run folder."""
    net: nn.Module
    """The network with the highest validation accuracy, that of best.pt, with averaged weights where the recipe
    averages, in evaluation mode."""
    chain: nn.Module | None
    """What the network folds to, on the same device; None if it has branches."""
    accuracy: float
    """Fraction of the validation images that the network gets right, 0 to 1; with `select_on`, of the training images
    that were held out (the last row of `history` then has a test_accuracy too)."""
    history: list[dict[str, Any]]
    """The rows of `metrics.jsonl`, one per epoch."""
    model_file: Path | None
    """The chain, in a file that describes itself; None if there is no chain."""
    epoch: int
    """The epoch after which the network was the best, counted from 1."""


@dataclass
class Run:
    """A run and all that it needs; `loop.train` takes it from one end to the other."""

    recipe: Recipe
    data: ImageData
    data_dir: str | Path | None
    """Where the images were asked for, if anywhere."""
    folder: RunFolder
    state: State
    start: str | None
    """What the weights came from, where they were not fresh."""
    teacher: Teacher | None
    """The network to learn from besides the labels."""
    steps: int
    """Batches an epoch."""
    reporter: Reporter
    interruption: Interruption
    command: str
    """What resumes the run."""
    safeguards: Safeguards
    """When it is saved, and when it is stopped."""
    watch: LossWatch
    """Over its loss."""
    drawn: float = field(default_factory=time.monotonic)
    """When the curve was last drawn."""
    saved: float = field(default_factory=time.monotonic)
    """When the last checkpoint was written."""
    save_seconds: float = 0.0
    """How long that took."""
    named: set[int] = field(default_factory=set)
    """Numbers of the images that are known to be unreadable."""

    def begin(self, *, resumed: bool) -> None:
        """Write the run's first files, and say on what it is going to run, and in which arithmetic."""
        recipe, state, say = self.recipe, self.state, self.reporter.say
        if state.ranks.first:
            self._write_record(resumed=resumed)
        if not resumed:
            self.record_scales()
            self.save()
        for damage in self.folder.damaged:
            say(f"{damage}; an earlier checkpoint is resumed instead")
        self.check_best()
        say(f"{device_name(state.device)}, {state.precision.name}: {state.precision.reason}")
        epochs = recipe.optimization.epochs
        if late := [milestone for milestone in recipe.optimization.milestones if milestone > epochs]:
            say(f"the milestones {', '.join(map(str, late))} are after the last epoch, {epochs}")
        if self.recalibrates and recipe.optimization.recalibrate_bn is None:
            lag = f", of the {self.steps} of an epoch" if self.steps < FEW_STEPS else ""
            say(f"BatchNorm is recalibrated before each evaluation: running statistics lag by ten steps{lag}")
        if resumed and state.epoch > epochs:
            again = f"start another with --from {self.folder.path}"
            say(f"this run is finished, {epochs} of {epochs} epochs: to train on, {again}")
        elif resumed:
            say(f"resumed after {state.epoch - 1} epochs and {state.batch} of {self.steps} batches")

    def _write_record(self, *, resumed: bool) -> None:
        data_dir = None if self.data_dir is None else absolute_place(self.data_dir)
        teacher = None if self.teacher is None else self.teacher.where
        fingerprint = None if self.teacher is None else self.teacher.fingerprint()
        RunRecord(data_dir, self.start, teacher, fingerprint, asdict(self.safeguards)).save(self.folder.path)
        if not resumed:
            self.recipe.save(self.folder.recipe)
        self.folder.rewrite_metrics(self.state.history)
        precision = self.state.precision
        record_environment(self.folder.environment, self.state.device, self.data_dir, precision, self.start)

    def finish_epoch(self) -> dict[str, Any]:
        """Evaluate when it is time to, write the epoch's numbers and the checkpoints, and move on to the next epoch."""
        recipe, state = self.recipe, self.state
        loss_sum, correct = state.totals()
        row: dict[str, Any] = {
            "epoch": state.epoch,
            "loss": float(loss_sum) / state.seen,
            "accuracy": int(correct) / state.seen,
            "rate": learning_rate(recipe.optimization, state.epoch * self.steps - 1, self.steps),
            "seconds": state.seconds,
            "images_per_second": state.seen / state.seconds,
        }
        if skipped := self.skipped():
            row["skipped"] = skipped
        last, improved = state.epoch == recipe.optimization.epochs, False
        if last or state.epoch % recipe.runtime.eval_every == 0:
            averaged = state.average is not None and state.average.started()
            try:
                if (averaged or self.recalibrates) and not recipe.optimization.freeze:
                    begun = time.perf_counter()
                    self.recalibrate_bn()
                    synchronize(state.device)
                    row["seconds"] += (time.perf_counter() - begun) * last  # a part of training, where they are kept
                evaluation = self.evaluated(self.data.val)
            except TrainingError as error:  # it has diverged, and what was saved last has not
                self.go_back()
                raise TrainingError(f"{error}; {self.advice()}") from error
            except Exception as error:  # an image that cannot be read, say, must not cost the epoch
                if state.ranks.alone or isinstance(error, UNREADABLE):  # which all processes raise
                    self.save()
                raise
            row |= {"val_loss": evaluation.loss, "val_accuracy": evaluation.top1}
            improved = evaluation.top1 >= state.best  # of equals the last, which has trained for longer
            state.best = max(state.best, evaluation.top1)
        state.history.append(row)
        state.begin_epoch(state.epoch + 1)
        self.record_scales()
        if improved:
            best = self.checkpoint()
            if state.ranks.first:
                save_checkpoint(self.folder.best, best)
        if last or state.ranks.from_first(self.save_is_due):
            self.save()
        if state.ranks.first:
            self.folder.append_metrics(row)
            self.reporter.epoch(row, best=improved)
            if last or time.monotonic() - self.drawn > DRAW_SECONDS:
                self.drawn = time.monotonic()
                if (why_not := self.folder.draw(state.history, recipe.optimization.label_smoothing)) and last:
                    self.reporter.say(why_not)
        return row

    def record_scales(self) -> None:
        """Add the scales of the network in training to those of the epochs before."""
        net = self.state.whole(self.state.net)
        if self.state.ranks.first:
            record_scales(self.folder.scales, net, self.state.epoch - 1)

    def skipped(self) -> int:
        """How many images could not be read since the run was begun or resumed; those that are new are named."""
        found: dict[int, str] = {}
        for each in self.state.ranks.gathered(dict(self.data.train.skipped)):
            found |= each
        new = sorted(found.keys() - self.named)
        self.named.update(new)
        for number in new:
            self.reporter.say(f"skipped, another image stands in for it: {found[number]}")
        return len(found)

    def check_best(self) -> None:
        """Where the best checkpoint is damaged, or of a course that was left, let the next network take its place."""
        damage = self.state.ranks.from_first(self._damage_of_best)
        if damage is not None:
            self.state.best = -1.0
            self.reporter.say(f"{damage}; the network that is evaluated next takes its place")

    def _damage_of_best(self) -> str | None:
        try:
            if self.folder.best.exists():
                epoch = read_checkpoint(self.folder.best).card.provenance.get("epoch")
                if isinstance(epoch, int) and epoch >= self.state.epoch:
                    return f"{self.folder.best} is of epoch {epoch}, which is trained again"
        except FileError as error:
            return str(error)
        return None

    def after_step(self) -> None:
        """Look at the loss now and then, and save when it is time to.

        Raises:
            TrainingError: the run diverges; what is left to resume is from before.
        """
        state, every = self.state, self.safeguards.save_every
        if state.batch % CHECK_STEPS == 0 or state.batch == self.steps or (state.epoch, state.batch) == (1, 1):
            self.stop_if(self.watch.look())
        if every and state.batch < self.steps and ((state.epoch - 1) * self.steps + state.batch) % every == 0:
            self.save()

    def in_step(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, while every process has them and none is to stop; else what was done before them is saved.

        Raises:
            Interrupted: a signal came to a process.
            DataError, FileError: a process cannot get its batch.
        """
        iterator, ranks, state = iter(batches), self.state.ranks, self.state
        while True:
            batch, error = fetched(iterator)
            number, failed = ranks.highest(self.interruption.signal or 0, error is not None)
            self.stop(number)  # a machine that stops everything may take the workers first
            if failed:
                self.save()
                raise ranks.shared(error)
            if state.batch:  # not before: a terminal that has gone may have sent the signal
                self.reporter.step(state.epoch, state.batch, state.seen / state.seconds, state.running)
            if batch is None:
                return
            yield batch

    @property
    def recalibrates(self) -> bool:
        """Whether BatchNorm statistics are recalibrated before each evaluation."""
        return self.recipe.optimization.recalibrates(self.data.name, self.steps)

    def recalibrate_bn(self) -> None:
        """Set the BatchNorm statistics of the network to evaluate to their means over some of the epoch's batches.

        In float32 whatever the training's arithmetic, since that is what networks are evaluated and folded in: weights
        that are rounded to bfloat16 have other statistics, and hundreds of layers multiply the difference (11 points at
        1,000 layers, docs/depth.md).
        """
        recipe, state = self.recipe, self.state
        batches = self.data.train.batches(
            recipe.optimization.batch_size,
            epoch=state.epoch,
            augment=recipe.data.augment,
            seed=recipe.runtime.seed,
            share=Share(state.ranks.rank, state.ranks.count),
        )
        averaged = state.average is not None and state.average.started()
        count = STATISTICS_BATCHES if averaged or recipe.optimization.recalibrate_bn else USUAL_BATCHES
        some = state.ranks.together(islice(batches, min(self.steps, count)))
        layout = memory_format(recipe.runtime.channels_last)
        moved = (images.to(state.device, memory_format=layout) for images, _, _ in some)
        with nullcontext() if state.ranks.alone else norms_synchronized(state.evaluated):
            update_bn(moved, state.evaluated)
        if state.average is not None and state.average.started():
            state.average.ready = True

    def evaluated(self, images: Images, net: Network | None = None) -> Evaluation:
        """How good a network is, by default the one to evaluate; each process evaluates a share."""
        show = partial(self.evaluating, count=len(images))
        return evaluate(self.state.evaluated if net is None else net, images, on_batch=show, ranks=self.state.ranks)

    def evaluating(self, done: int, count: int) -> None:
        """Show how far the evaluation is; a run that is to stop leaves it, and repeats it when it is resumed."""
        self.stop_if_asked()
        self.reporter.evaluating(done, count)

    def finish(self) -> Trained:
        """Fold the best network, that of best.pt, and write the model file, if it has no branches.

        A run that was validated on training images is first evaluated on the test images, this once.
        """
        history = self.state.history
        net, card = self.best()
        row = next((row for row in history if row["epoch"] == card.provenance.get("epoch")), history[-1])
        epoch, accuracy = row["epoch"], row["val_accuracy"]
        if self.data.test is not None and history[-1].get("test_epoch") != epoch:
            evaluation = self.evaluated(self.data.test, self.state.placed(net))
            history[-1] |= {"test_loss": evaluation.loss, "test_accuracy": evaluation.top1, "test_epoch": epoch}
            if self.state.ranks.first:
                self.folder.rewrite_metrics(history)
            self.save()
        attach_card(net, card)
        trained = Trained(self.folder.path, net, None, accuracy, history, None, epoch)
        chain, where = self._folded(net)
        if chain is not None:
            trained = replace(trained, chain=chain.to(next(net.parameters()).device), model_file=self.folder.model)
        if isinstance(net, OwnNetwork):
            attach_card(net.net, card)
            trained = replace(trained, net=net.net)
        tested = f", {history[-1]['test_accuracy']:.2%} on the test images" if self.data.test is not None else ""
        which = f"epoch {epoch} of {self.recipe.optimization.epochs}, the best"
        self.reporter.say(f"validation accuracy {accuracy:.2%} on {validated_on(self.data)}{tested}: {which}; {where}")
        if self.state.ranks.first and (pictures := self.folder.pictures()):
            self.reporter.say(pictures)
        return trained

    def _folded(self, net: Network) -> tuple[nn.Module | None, str]:
        """What a network folds to, in the model file too, or None; and where the network is, to be said."""
        first, file = self.state.ranks.first, self.folder.model
        if isinstance(net, OwnNetwork):
            try:
                chain = fold(deepcopy(net.net).cpu().eval(), torch.randn(2, *net.input_size))
                if first:
                    save(chain, file, card=replace(self.card(net), architecture=None))
            except (FoldError, UsageError) as error:
                return None, f"its weights are in {self.folder.best}, and there is no model file: {first_line(error)}"
            return chain, f"its folded network is in {file}"
        if not net.is_chain:
            name = net.config["name"]
            return None, f"{name} has branches and folds to no chain: the network is in {self.folder.best}"
        return write_model_file(net, file) if first else to_chain(net), f"its folded network is in {file}"

    def best(self) -> tuple[Network, ModelCard]:
        """The network of best.pt in evaluation mode, and its card: on all processes, on the run's device, or on the CPU
        where the run's networks are divided.

        Where that file is gone or damaged, and no epoch is left to replace it, it is the last one.
        """
        state = self.state
        found = state.ranks.from_first(self._read_best)
        if found is None:
            self.reporter.say(f"{self.folder.best} cannot be read: the last network stands in for the best one")
            return state.whole(state.evaluated.eval(), everywhere=True), self.card(state.evaluated)
        if isinstance(state.net, OwnNetwork):
            own = deepcopy(state.net)
            own.net.load_state_dict(found.state)
            return own.eval(), found.card
        net = found.network()
        if not state.divided:
            layout = memory_format(self.recipe.runtime.channels_last)
            net.to(state.device, memory_format=layout)  # type: ignore[call-overload]
        return net.eval(), found.card

    def _read_best(self) -> Checkpoint | None:
        with suppress(FileError):
            return read_checkpoint(self.folder.best)
        return None

    def card(self, net: Network) -> ModelCard:
        """What the run's files say about its network."""
        state = self.state
        return card_of_run(net, self.recipe, self.data, state.history, state.device, state.precision, self.start)

    def checkpoint(self, resume: dict[str, Any] | None = None) -> Checkpoint:
        """What is saved: the network to evaluate, and what to resume from. All processes have to ask."""
        net = self.state.saved
        weights = self.state.tensors(net) if self.state.divided else kept_weights(net)
        return Checkpoint(self.card(net), weights, resume)

    def save(self) -> None:
        """Write the checkpoint to resume from, unless the loss shows that it would be of a network that is lost.

        All processes have to ask, and the first one writes.
        """
        self.check_finite()
        begun = time.monotonic()
        checkpoint = self.checkpoint({**self.state.to_data(), "watch": self.watch.to_data(), "job": job()})
        if self.state.ranks.first:
            try:
                self.folder.checkpoints.write(checkpoint, keep=self.safeguards.keep, safe=self.watch.good)
            except TrainingError as error:  # the others are not here to wait for, and end with this one
                self.folder.checkpoints.go_back(self.watch.good)
                raise TrainingError(f"{error}; {self.advice()}") from error
        self.saved = time.monotonic()
        self.save_seconds = self.saved - begun

    def save_is_due(self) -> bool:
        """Whether to write a checkpoint now: a large network on a fast device would wait for the disk."""
        waited = time.monotonic() - self.saved
        rarely = self.save_seconds > LONG_SAVE and not self.safeguards.save_every
        return not rarely or waited >= self.save_seconds / SAVE_SHARE

    def stop_if_asked(self) -> None:
        """Save and raise `Interrupted` if a signal came, to any of the processes."""
        self.stop(*self.state.ranks.highest(self.interruption.signal or 0))

    def stop(self, number: int) -> None:
        """Save and raise `Interrupted` for a signal's number, unless it is 0."""
        if not number:
            return
        self.save()
        state = self.state
        state.ranks.wait()  # for the one that writes: the end of a process may bring about that of the others
        raise Interrupted(
            f"stopped after {state.epoch - 1} of {self.recipe.optimization.epochs} epochs and {state.batch} of "
            f"{self.steps} batches and saved; go on with: {self.command}",
            number,
        )

    def check_finite(self) -> None:
        """Raise `TrainingError` if a loss of this epoch was infinite or NaN."""
        state = self.state
        if not state.totals()[0].isfinite():
            self.stop_if(f"the loss became infinite or NaN in epoch {state.epoch}, by batch {state.batch}")

    def stop_if(self, wrong: str | None) -> None:
        """Stop a run that diverges, with a checkpoint from before as the last one.

        Args:
            wrong: what is wrong; None if nothing is.

        Raises:
            TrainingError: something is.
        """
        if wrong is not None:
            self.go_back()
            raise TrainingError(f"{wrong}; {self.advice()}")

    def go_back(self) -> None:
        """Make a checkpoint from before the run diverged the last one."""
        if self.state.ranks.first:
            self.folder.checkpoints.go_back(self.watch.good)
        self.state.ranks.wait()

    def advice(self) -> str:
        """What to try after a run diverged."""
        return (
            f"try a lower learning rate (lr is {self.recipe.optimization.lr}), a longer warmup, clip_grad = 1, or "
            f"float32 (it was {self.state.precision.name}); {self.folder.last} is from before, and can be started from"
        )


def introduction(recipe: Recipe, data: ImageData, folder: Path, teacher: Teacher | None) -> list[str]:
    """The first lines of a run: which network, which images, and where everything goes."""
    images = f"{len(data.train):,} images to train on, {validated_on(data)} to validate on"
    first = f"{recipe.model.name} on {data.name}: {images}; everything goes to {folder}"
    return [first, *data.summary(), *([] if teacher is None else teacher.summary())]


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


def validated_on(data: ImageData) -> str:
    """How many images the accuracies of a run are measured on, and of which kind.

    >>> from diracnets import load_data
    >>> digits = load_data("digits")
    >>> validated_on(digits), validated_on(digits.selecting_on(200))
    ('359 images', '200 held-out training images')
    """
    return f"{len(data.val):,} {'images' if data.test is None else 'held-out training images'}"
