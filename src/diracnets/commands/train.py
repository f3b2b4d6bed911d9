"""`diracnets train`: a recipe and the options of one run, all as flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import FlagCreatePairsOff, arg

from diracnets.artifacts.run_record import RunRecord
from diracnets.commands.output import note
from diracnets.commands.recipe_flags import FINETUNE, recipe_of, usual_recipe, with_settings
from diracnets.commands.words import given, without
from diracnets.errors import UsageError
from diracnets.training.recipe import GROUPS, Recipe, recipe_names
from diracnets.training.safeguards import Safeguards

_RECIPES = (
    f"The recipe that the settings below start from: one of the package ({', '.join(recipe_names())}) or a file. "
    "By default one that suits --data; finetune, where photographs are trained on with --from."
)


GROUPS_OF_FLAGS = {
    "Recipe and images": "recipe data data_dir image_size num_train select_on skip_unreadable",
    "The network": "model start init filters alpha beta bias width pool",
    "The run": "run resume eval_every save_every keep stall_seconds diverged_steps seed deterministic quiet",
    "Optimization": (
        "epochs patience batch_size accumulate optimizer lr momentum nesterov weight_decay muon_lr muon_momentum "
        "scale_lr stem_lr classifier_lr schedule warmup milestones gamma restart_momentum clip_grad freeze"
    ),
    "Regularization and BatchNorm": "label_smoothing class_weights ema_decay swa_fraction recalibrate_bn sync_bn",
    "Augmentation": "crop pad min_scale flip cutout mixup progressive_size progressive_fraction",
    "Knowledge distillation": "teacher compare trust_teacher inherit teacher_weight temperature",
    "Devices and precision": "device devices restarts shard workers precision channels_last compile",
}


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network, fold it, and write everything to one run folder.

    Settings have the values of --recipe as their defaults: `diracnets train --recipe paper-cifar --help` shows those of
    that recipe."""

    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="", help=_RECIPES)] = None
    run: Annotated[Path | None, arg(name="run-dir", metavar="FOLDER", help_behavior_hint="")] = None
    """The folder for the recipe, log, checkpoints and model file; by default a new one in runs/."""
    resume: FlagCreatePairsOff[bool] = False
    """Resume the run in --run-dir where it stopped, with its own recipe."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of the images; CIFAR is downloaded to it if missing. For shards a folder, a pattern such as
    'train-{000000..000146}.tar', or URLs."""
    start: Annotated[Path | None, arg(name="from", metavar="FILE", help_behavior_hint="")] = None
    """Start from trained weights: a checkpoint, a model file, a run folder (its best checkpoint), or the name of a
    trained network. Network and image size are those of the weights, unless flags or a recipe file ask for others, and
    images are normalized as they were for them. If the classes differ, the classifier is replaced by a new one. With
    --resume: the checkpoint of the run to go back to."""
    teacher: Annotated[str | None, arg(metavar="NAME|FILE", help_behavior_hint="")] = None
    """Learn from the answers of a trained network too (knowledge distillation): the name of a trained network, a run
    folder, checkpoint, model file, TorchScript file or exported program (.pt2) for the same classes."""
    trust_teacher: FlagCreatePairsOff[bool] = False
    """Load the teacher even if it is a TorchScript file or exported program: loading one can run any code."""
    inherit: FlagCreatePairsOff[bool] = False
    """Begin with the teacher's filters where the shapes allow."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, mps, or auto for the best available."""
    devices: Annotated[str | None, arg(metavar="auto|N", help_behavior_hint="")] = None
    """How many devices of this machine train together, one process each: graphics cards, or processes on the CPU. auto:
    all graphics cards. For several machines, start it by torchrun instead."""
    restarts: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """With --devices: how often to go on from the last checkpoint after a process has died; by default 0."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Worker processes that decode images from a folder, shards or Parquet; by default one per core, at most 4."""
    shard: FlagCreatePairsOff[bool] = False
    """With several processes: divide the network among them (FSDP2), for networks that one device has no room for."""
    save_every: Annotated[int | None, arg(metavar="STEPS", help_behavior_hint="")] = None
    """Save after every this many steps too, not only after each epoch. 0, the default: after epochs only."""
    keep: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Earlier checkpoints to keep, besides the last and the best one; by default 1."""
    stall_seconds: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Stop if worker processes give no batch of images for this long; by default 600 seconds. 0: wait for ever."""
    diverged_steps: Annotated[int | None, arg(metavar="STEPS", help_behavior_hint="")] = None
    """Stop if the training loss stays above 3 times that of guessing for this many steps; by default 200. 0: go on."""
    quiet: FlagCreatePairsOff[bool] = False
    """Print nothing but errors."""

    options: ClassVar[Sequence[str]] = ()
    """The flags that were given."""
    examples: ClassVar[Sequence[str]] = (
        "--data digits",
        "--data folder --data-dir photos",
        "--data folder --data-dir photos --from diracnet-28-1-cifar10",
        "--resume --run-dir runs/diracnet-28-1-cifar10",
    )
    inner: ClassVar[str] = "."
    """The run folder, seen from --run-dir."""
    groups: ClassVar[Mapping[str, str]] = GROUPS_OF_FLAGS
    """The settings and options by the titles under which --help shows them."""

    @property
    def settings(self) -> Recipe:
        """The recipe that the flags describe.

        Raises:
            UsageError: a value that makes no sense.
        """
        groups = [getattr(self, group) for group in GROUPS if hasattr(self, group)]
        return Recipe().replaced(**{item.name: getattr(group, item.name) for group in groups for item in fields(group)})

    @property
    def safeguards(self) -> Safeguards:
        """Those of the flags; of a resumed run, what is not given is as it was.

        Raises:
            UsageError: a number that makes no sense.
            FileError: the record of the run to resume is damaged.
        """
        begun = RunRecord.read(self.run / self.inner).safeguards if self.resume and self.run is not None else {}
        given = {item.name: getattr(self, item.name) for item in fields(Safeguards)}
        return replace(Safeguards.of(begun), **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def form(cls, options: Sequence[str]) -> tuple[type[Train], list[str]]:
        """The class for the parser to fill in, and the options by their current names, see `with_settings`."""
        return with_settings(cls, options)

    def kept_settings(self) -> Recipe:
        """The recipe; that of the run, where one is resumed.

        Raises:
            UsageError: a flag that changes the recipe of the run to resume.
        """
        recipe = self.settings
        if self.resume and self.run is not None:
            changes = recipe_of(self.run).differences(recipe)
            if changes:
                raise UsageError(
                    f"the run in {self.run} keeps its recipe, but these flags change it ({'; '.join(changes)}): "
                    "leave them out, or start a new run in another folder, from the weights of this one with --from "
                    f"{self.run}"
                )
        return recipe

    def picked(self, recipe: Recipe) -> str | None:
        """What to say of a recipe that was chosen for trained weights, None if the command names one."""
        if self.start is None or self.resume or self.quiet or given(self.options, "recipe") is not None:
            return None
        if usual_recipe(self.options) != FINETUNE:
            return None
        rates = recipe.optimization
        what = "the classifier alone" if rates.freeze else "all layers"
        epochs = f"{rates.epochs} epoch{'s' * (rates.epochs != 1)}"
        return (
            f"recipe {FINETUNE}, as trained weights go on with photographs: {what}, {epochs}, learning "
            f"rate {rates.lr:g}; --recipe and flags change it"
        )

    def launched(self, recipe: Recipe) -> bool:
        """Start the command in several processes and wait for them, if --devices asks for several.

        Raises:
            UsageError: so many there are not; --restarts without --devices; a folder that holds a run.
            DiracNetsError: a process was killed.
            SystemExit: with the code that the processes ended with, if that is not 0.
        """
        if self.restarts is not None and (self.restarts < 0 or self.devices is None):
            raise UsageError(
                f"--restarts is {self.restarts}, but must be 0 or more"
                if self.restarts < 0
                else "--restarts needs --devices; torchrun itself has --max-restarts"
            )
        if self.devices is None:
            return False
        from diracnets.runtime.launch import count_processes, crowded, launch
        from diracnets.training.folder import RunFolder, new_folder

        count = count_processes(self.devices, self.device)
        if count == 1 and self.devices == "auto" and not self.quiet:
            note("--devices auto: one process, since there is one device; it uses all cores of a processor")
        if count == 1 and not self.restarts:
            return False
        if (warning := crowded(count, self.device)) and not self.quiet:
            note(warning)
        run = self.run or new_folder(recipe)
        if not self.resume:
            RunFolder(run).check_unused()
        words = without(self.options, "devices", "restarts", "run-dir")
        launch(["train", *words, "--run-dir", str(run)], count, restarts=self.restarts or 0, devices=self.devices)
        return True

    def execute(self) -> None:
        """Train, or resume training."""
        recipe = self.kept_settings()
        if self.launched(recipe):
            return
        if (why := self.picked(recipe)) and os.environ.get("RANK", "0") == "0":  # of several processes, one says it
            note(why)
        from diracnets.runtime.device import choose_device, keep_memory
        from diracnets.training.loop import train

        if choose_device(self.device).type == "cpu":
            keep_memory()
        train(
            recipe,
            run=self.run,
            data_dir=self.data_dir,
            device=self.device,
            resume=self.resume,
            start=self.start,
            teacher=self.teacher,
            trust_teacher=self.trust_teacher,
            inherit=self.inherit,
            workers=self.workers,
            safeguards=self.safeguards,
            shard=self.shard,
            quiet=self.quiet,
        )
