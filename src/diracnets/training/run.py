"""A run: all that it needs, what it saves of itself, and how it is stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.artifacts.checkpoint import Checkpoint
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.image_file import ADVICE
from diracnets.data.images import ImageData
from diracnets.errors import DiracNetsError, TrainingError
from diracnets.models.network import Network
from diracnets.runtime.environment import device_name, versions
from diracnets.runtime.job import job
from diracnets.training.folder import RunFolder
from diracnets.training.interruption import Interrupted, Interruption
from diracnets.training.own import kept_weights
from diracnets.training.patience import out_of_patience
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Reporter
from diracnets.training.safeguards import Safeguards
from diracnets.training.scales import record_scales
from diracnets.training.state import State
from diracnets.training.teacher import Teacher
from diracnets.training.watchdog import LossWatch

LONG_SAVE = 1.0  # seconds; a checkpoint that takes longer is not written after every epoch,
SAVE_SHARE = 0.05  # but so rarely that this part of the time goes into it


@dataclass
class Run:
    """A run and all that it needs; `loop.train` takes it from one end to the other."""

    recipe: Recipe
    data: ImageData
    data_dir: str | Path | None
    """Where the images were asked for, if anywhere."""
    folder: RunFolder
    state: State
    record: RunRecord
    """How it was begun."""
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

    @property
    def over(self) -> bool:
        """Whether nothing is left to train: after the last epoch, or as patience is at its end."""
        optimization, state = self.recipe.optimization, self.state
        return state.epoch > optimization.epochs or out_of_patience(optimization, state.history)

    def card(self, net: Network) -> ModelCard:
        """What the run's files say about its network."""
        data, state = self.data, self.state
        history = state.history
        return ModelCard(
            data.input_size,
            tuple(data.mean),
            tuple(data.std),
            tuple(data.classes),
            architecture=net.config,
            data=TrainedOn(data.name, len(data.train), len(data.val)),
            recipe=self.recipe.table(),
            provenance={
                **({"validated_on": validated_on(data)} if data.test is not None else {}),
                "epoch": history[-1]["epoch"] if history else 0,
                "accuracy": history[-1].get("val_accuracy") if history else None,
                "seed": self.recipe.runtime.seed,
                "versions": versions(),
                "device": device_name(state.device),
                "precision": state.precision.name,
                "start": self.record.start,
            },
        )

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

    def record_scales(self) -> None:
        """Add the scales of the network in training to those of the epochs before."""
        net = self.state.whole(self.state.net)
        if self.state.ranks.first:
            record_scales(self.folder.scales, net, self.state.epoch - 1)

    def stop_if_asked(self) -> None:
        """Save and raise `Interrupted` if a signal came, to any of the processes."""
        self.stop(*self.state.ranks.highest(self.interruption.asked))

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

    def save_before(self, error: DiracNetsError) -> DiracNetsError:
        """Save what was done before images that cannot be had; the error, which then says how to go on."""
        self.save()
        told = str(error).removesuffix(ADVICE)
        error.args = (f"{told}; the run is saved: mend that, remove no image, and go on with: {self.command}",)
        return error

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


def validated_on(data: ImageData) -> str:
    """How many images the accuracies of a run are measured on, and of which kind.

    >>> from diracnets import load_data
    >>> digits = load_data("digits")
    >>> validated_on(digits), validated_on(digits.selecting_on(200))
    ('359 images', '200 held-out training images')
    """
    return f"{len(data.val):,} {'images' if data.test is None else 'held-out training images'}"
