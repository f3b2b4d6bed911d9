"""`diracnets train`: a recipe and the circumstances of one run, all of them flags."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from diracnets.commands.files import network_file
from diracnets.errors import UsageError
from diracnets.training.recipe import Recipe, recipe_names

_USUAL = {"digits": "demo", "cifar10": "fast-cifar", "cifar100": "fast-cifar", "folder": "fast-imagenet"}
_RECIPES = (
    f"Where the settings below start from: a recipe of the package ({', '.join(recipe_names())}) or a file. By default "
    "the one that suits --data."
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network by a recipe, fold it, and keep everything in one run folder.

    The flags from --model on are the recipe; their defaults are those of --recipe, so that `diracnets train --recipe
    paper-cifar --help` shows that recipe."""

    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="", help=_RECIPES)] = None
    run: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder for recipe, log, checkpoints and model file; by default a new one in runs/."""
    resume: FlagCreatePairsOff[bool] = False
    """Continue the run in --run, exactly where it stopped, with its own recipe."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where the images are, or where CIFAR is downloaded to."""
    start: Annotated[Path | None, arg(name="from", metavar="FILE", help_behavior_hint="")] = None
    """Start from the weights of a checkpoint or model file, of a run folder's best checkpoint, or of a trained network
    by its name; the classifier is made anew where the classes differ."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto for the best that there is."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that decode images of a folder; by default one a core, at most 4."""
    quiet: FlagCreatePairsOff[bool] = False
    """Print nothing but errors."""
    settings: Annotated[Recipe, arg(name="")]

    @classmethod
    def start_from(cls, options: Sequence[str]) -> Train:
        """What the flags' defaults are, which depends on some of the flags themselves.

        Raises:
            UsageError: no such recipe, --resume without --run, --data-dir without --data.
            FileError: no run to resume.
        """
        name, run = _given(options, "recipe"), _given(options, "run")
        if "--resume" in options and run is None:
            raise UsageError("--resume needs --run FOLDER, the run to continue")
        given = {flag for flag in ("data", "recipe", "data-dir") if _given(options, flag) is not None}
        if given == {"data-dir"} and "--resume" not in options:
            raise UsageError("--data-dir needs --data: folder for pictures of your own, or cifar10, or cifar100")
        if name is None and "--resume" in options:
            recipe = _recipe_of(Path(str(run)))
        else:
            recipe = Recipe.load(name or _USUAL.get(_given(options, "data") or "", "fast-cifar"))
        return cls(settings=recipe)

    def execute(self) -> None:
        """Train, or go on training."""
        if self.resume and self.run is not None:
            changes = _recipe_of(self.run).differences(self.settings)
            if changes:
                raise UsageError(
                    f"the run in {self.run} keeps its recipe, but asked for is another ({'; '.join(changes)}): "
                    "leave these flags out, or train anew in another --run"
                )
        from diracnets.training.loop import train

        train(
            self.settings,
            run=self.run,
            data_dir=self.data_dir,
            device=self.device,
            resume=self.resume,
            start=None if self.start is None else network_file(self.start),
            workers=self.workers,
            quiet=self.quiet,
        )


def _given(options: Sequence[str], flag: str) -> str | None:
    """The value of --flag among `options`, which the parser has not seen yet."""
    for option, value in itertools.zip_longest(options, options[1:]):
        if option == f"--{flag}":
            return value
        if option.startswith(f"--{flag}="):
            return option.partition("=")[2]
    return None


def _recipe_of(run: Path) -> Recipe:
    if not (run / "recipe.toml").is_file():
        raise UsageError(f"there is no run to resume in {run}: it holds no recipe.toml")
    return Recipe.load(run / "recipe.toml")
