"""`diracnets train`: a recipe and the options of one run, all as flags."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from diracnets.artifacts.run_record import RunRecord
from diracnets.commands.help import texts
from diracnets.commands.output import note
from diracnets.errors import DiracNetsError, UsageError
from diracnets.training.recipe import GROUPS, Recipe, recipe_names
from diracnets.training.renamed import RENAMED, renamed_words
from diracnets.training.safeguards import Safeguards
from diracnets.training.tables import short_names

_USUAL = {
    "digits": "demo",
    **dict.fromkeys(("cifar10", "cifar100"), "fast-cifar"),
    **dict.fromkeys(("folder", "shards", "parquet"), "fast-imagenet"),
}
_ON_OFF = {f"--{no}recalibrate{dash}bn" for no in ("", "no-") for dash in "-_"}
_THREE = (["True"], ["False"], ["None"])
_RECIPES = (
    f"The recipe that the settings below start from: one of the package ({', '.join(recipe_names())}) or a file. "
    "By default one that suits --data."
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network, fold it, and write everything to one run folder.

    The flags from --model on are the settings of the recipe. Their defaults come from --recipe: `diracnets train
    --recipe paper-cifar --help` shows that recipe."""

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
    """cpu, cuda, cuda:1, mps, or auto for the best available."""
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
        begun = RunRecord.read(self.run).safeguards if self.resume and self.run is not None else {}
        given = {item.name: getattr(self, item.name) for item in fields(Safeguards)}
        return replace(Safeguards.of(begun), **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def form(cls, options: Sequence[str]) -> tuple[type[Train], list[str]]:
        """The class for the parser to fill in, and the options by their current names.

        Every setting of the recipe is a flag. The recipe, and so the defaults, depends on some of the flags.

        Raises:
            UsageError: no such recipe, --resume without --run-dir, --data-dir without --data.
            FileError: no run to resume.
        """
        options = _modern(options)
        name, run = _given(options, "recipe"), _given(options, "run-dir")
        if "--resume" in options and run is None:
            raise UsageError("--resume needs --run-dir FOLDER, the run to resume")
        given = {flag for flag in ("data", "recipe", "data-dir") if _given(options, flag) is not None}
        if given == {"data-dir"} and "--resume" not in options:
            raise UsageError(
                "--data-dir needs --data: folder, shards or parquet for your own images, cifar10 or cifar100"
            )
        if name is None and "--resume" in options:
            recipe = _recipe_of(Path(str(run)))
        else:
            recipe = Recipe.load(name or _USUAL.get(_given(options, "data") or "", "fast-cifar"))
        recipe = _following(recipe, options)
        groups = [(group, _flags(getattr(recipe, group), group)) for group in GROUPS]
        made = make_dataclass(
            cls.__name__, groups, bases=(cls,), namespace={"options": tuple(options)}, frozen=True, kw_only=True
        )
        return made, options

    def kept_settings(self) -> Recipe:
        """The recipe; that of the run, where one is resumed.

        Raises:
            UsageError: a flag that changes the recipe of the run to resume.
        """
        recipe = self.settings
        if self.resume and self.run is not None:
            changes = _recipe_of(self.run).differences(recipe)
            if changes:
                raise UsageError(
                    f"the run in {self.run} keeps its recipe, but these flags change it ({'; '.join(changes)}): "
                    "leave them out, or start a new run in another folder"
                )
        return recipe

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
        from diracnets.runtime.launch import count_processes, launch
        from diracnets.training.folder import RunFolder, new_folder

        count = count_processes(self.devices, self.device)
        if count == 1 and self.devices == "auto" and not self.quiet:
            note("--devices auto: one process, since there is one device; it uses all cores of a processor")
        if count == 1 and not self.restarts:
            return False
        run = self.run or new_folder(recipe)
        if not self.resume:
            RunFolder(run).check_unused()
        words = _without(self.options, "devices", "restarts", "run-dir")
        launch(["train", *words, "--run-dir", str(run)], count, restarts=self.restarts or 0, devices=self.devices)
        return True

    def execute(self) -> None:
        """Train, or resume training."""
        recipe = self.kept_settings()
        if self.launched(recipe):
            return
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


def _following(recipe: Recipe, options: Sequence[str]) -> Recipe:
    """The recipe with network and image size of the weights given by --from, where no flag or file asks for others."""
    start, own = _given(options, "from"), _given(options, "recipe")
    if start is None or {"--resume", "--help", "-h"} & set(options) or (own or "").endswith(".toml"):
        return recipe
    from diracnets.training.start import following

    data = _given(options, "data")
    with suppress(DiracNetsError):  # which is said where the weights are taken
        asked = [name for name in ("model", "width", "pool", "image_size") if _asked(options, name)]
        return following(recipe if data is None else recipe.replaced(data=data), start, asked)
    return recipe


def _asked(options: Sequence[str], setting: str) -> bool:
    return any(_given(options, flag) is not None for flag in {setting, setting.replace("_", "-")})


def _flags(settings: Any, title: str) -> Any:  # noqa: ANN401
    """A dataclass of a group's settings by their short names, with their values as defaults."""
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
    """The options by their current names, with one warning if some were renamed."""
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
        new = "run-dir" if flag == "run" else RENAMED.get(bare.replace("-", "_"), "").replace("_", "-")
        if flag == "init" and drawn:
            new = "filters"
        elif bare.startswith("augment."):
            new = bare.removeprefix("augment.")
        if name.startswith("--") and new:
            old[f"--{flag}"] = f"--{no}{new}"
            word = f"--{no}{new}{equals}{value}"
        made.append(word)
    for index, word in enumerate(made):  # which was a flag without a value
        if word in _ON_OFF and (word.startswith("--no-") or made[index + 1 : index + 2] not in _THREE):
            made[index] = f"{word.replace('--no-', '--')}={not word.startswith('--no-')}"
    if old:
        warnings.warn(renamed_words(old), FutureWarning, stacklevel=2)
    return made


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) == float(text)
    except ValueError:
        return False


def _given(options: Sequence[str], flag: str) -> str | None:
    """The value of --flag in `options`, before they are parsed."""
    for option, value in itertools.zip_longest(options, options[1:]):
        if option == f"--{flag}":
            return value
        if option.startswith(f"--{flag}="):
            return option.partition("=")[2]
    return None


def _without(options: Sequence[str], *flags: str) -> list[str]:
    """The options without some flags and their values.

    >>> _without(["--quiet", "--devices", "2", "--run-dir=here"], "devices", "run-dir")
    ['--quiet']
    """
    names = {f"--{flag}" for flag in flags}
    heads = [word.partition("=")[0].replace("_", "-") for word in options]
    befores = ["", *(head if "=" not in word else "" for head, word in zip(heads, options, strict=True))]
    return [
        word
        for before, head, word in zip(befores, heads, options, strict=False)
        if before not in names and head not in names
    ]


def _recipe_of(run: Path) -> Recipe:
    if not (run / "recipe.toml").is_file():
        raise UsageError(f"no run to resume in {run}: it holds no recipe.toml")
    return Recipe.load(run / "recipe.toml")
