"""`diracnets train`: a recipe and the circumstances of one run, all of them flags."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from diracnets.commands.files import network_file
from diracnets.commands.help import texts
from diracnets.errors import UsageError
from diracnets.training.recipe import GROUPS, Recipe, recipe_names
from diracnets.training.renamed import RENAMED, renamed_words
from diracnets.training.tables import short_names

_USUAL = {"digits": "demo", "cifar10": "fast-cifar", "cifar100": "fast-cifar", "folder": "fast-imagenet"}
_RECIPES = (
    f"The recipe that the settings below are taken from: one of the package ({', '.join(recipe_names())}) or a file. "
    "By default the one that suits --data."
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network by a recipe, fold it, and keep everything in one run folder.

    The flags from --model on are the settings of the recipe; their defaults are those of --recipe, so that `diracnets
    train --recipe paper-cifar --help` shows that recipe."""

    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="", help=_RECIPES)] = None
    run: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder for recipe, log, checkpoints and model file; by default a new one in runs/."""
    resume: FlagCreatePairsOff[bool] = False
    """Resume the run in --run exactly where it stopped, with its own recipe."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where the images are, or where CIFAR is downloaded to."""
    start: Annotated[Path | None, arg(name="from", metavar="FILE", help_behavior_hint="")] = None
    """Begin with trained weights: a checkpoint or model file, a run folder (its best checkpoint), or the name of a
    trained network. Where the classes differ, the classifier is replaced by a new one."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto for the best available."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that decode images of a folder; by default one per core, at most 4."""
    quiet: FlagCreatePairsOff[bool] = False
    """Print nothing but errors."""

    @property
    def settings(self) -> Recipe:
        """The recipe that the flags spell.

        Raises:
            UsageError: a value that makes no sense.
        """
        groups = [getattr(self, group) for group in GROUPS if hasattr(self, group)]
        return Recipe().replaced(**{item.name: getattr(group, item.name) for group in groups for item in fields(group)})

    @classmethod
    def form(cls, options: Sequence[str]) -> tuple[type[Train], list[str]]:
        """What the parser is to fill in, and the options by their names of today.

        Every setting is a flag, whose default is that of the recipe, which some of the flags themselves choose.

        Raises:
            UsageError: no such recipe, --resume without --run, --data-dir without --data.
            FileError: no run to resume.
        """
        options = _modern(options)
        name, run = _given(options, "recipe"), _given(options, "run")
        if "--resume" in options and run is None:
            raise UsageError("--resume needs --run FOLDER, the run to resume")
        given = {flag for flag in ("data", "recipe", "data-dir") if _given(options, flag) is not None}
        if given == {"data-dir"} and "--resume" not in options:
            raise UsageError("--data-dir needs --data: folder for pictures of your own, or cifar10, or cifar100")
        if name is None and "--resume" in options:
            recipe = _recipe_of(Path(str(run)))
        else:
            recipe = Recipe.load(name or _USUAL.get(_given(options, "data") or "", "fast-cifar"))
        groups = [(group, _flags(getattr(recipe, group), group)) for group in GROUPS]
        return make_dataclass("Train", groups, bases=(cls,), frozen=True, kw_only=True), options

    def execute(self) -> None:
        """Train, or resume training."""
        recipe = self.settings
        if self.resume and self.run is not None:
            changes = _recipe_of(self.run).differences(recipe)
            if changes:
                raise UsageError(
                    f"the run in {self.run} keeps its recipe, but these flags ask for another ({'; '.join(changes)}): "
                    "leave them out, or begin a new run in another --run"
                )
        from diracnets.training.loop import train

        train(
            recipe,
            run=self.run,
            data_dir=self.data_dir,
            device=self.device,
            resume=self.resume,
            start=None if self.start is None else network_file(self.start),
            workers=self.workers,
            quiet=self.quiet,
        )


def _flags(settings: Any, title: str) -> Any:  # noqa: ANN401
    """A dataclass of the settings of a group, by their short names, with their values as defaults."""
    made: Any = make_dataclass(title, _flat_fields(settings), frozen=True, kw_only=True)
    made.__doc__ = type(settings).__doc__
    return OmitArgPrefixes[made]  # type: ignore[misc]


def _flat_fields(settings: Any) -> list[tuple[str, Any, Any]]:  # noqa: ANN401
    kind = type(settings)
    hints, shorts, helps = get_type_hints(kind), short_names(kind), texts(kind)
    flat: list[tuple[str, Any, Any]] = []
    for name, short in shorts.items():
        value = getattr(settings, name)
        if is_dataclass(value):
            flat += _flat_fields(value)
        else:
            flat.append((short, hints[name], field(default=value, metadata={"help": helps.get(name, "")})))
    return flat


def _modern(options: Sequence[str]) -> list[str]:
    """The options by their names of today, with one warning where some had others."""
    old: dict[str, str] = {}
    made: list[str] = []
    words = list(options)
    values = {option: _given(words, option) for option in ("start", "init")}
    drawn = values["start"] is not None or values["init"] in ("normal", "None") or _is_number(values["init"])
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.removeprefix("--").replace("_", "-")
        no = "no-" if flag.startswith("no-") else ""
        bare = flag.removeprefix("no-")
        new = RENAMED.get(bare.replace("-", "_"), "").replace("_", "-")
        if flag == "init" and drawn:
            new = "filters"
        elif bare.startswith("augment."):
            new = bare.removeprefix("augment.")
        if name.startswith("--") and new:
            old[f"--{flag}"] = f"--{no}{new}"
            word = f"--{no}{new}{equals}{value}"
        made.append(word)
    if old:
        warnings.warn(renamed_words(old), FutureWarning, stacklevel=2)
    return made


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) == float(text)
    except ValueError:
        return False


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
