"""The recipe: all that decides a training run, in one frozen dataclass that loads from and saves to TOML."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from diracnets.errors import FileError, UsageError, did_you_mean, first_line, shown
from diracnets.files import written_whole
from diracnets.training.renamed import modern, renamed_words
from diracnets.training.settings import DataSettings, ModelSettings, OptimizationSettings, RuntimeSettings
from diracnets.training.tables import flat, from_table, to_table, with_flat

GROUPS = ("model", "data", "optimization", "runtime")
_LONGEST = 1 << 14  # bytes of a file; the time that tomllib takes grows with the square of some


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run, in four groups. Values that make no sense are refused with a UsageError.

    >>> recipe = Recipe.load("paper-cifar")
    >>> recipe.optimization.lr, recipe.optimization.milestones, recipe.optimization.gamma
    (0.1, (60, 120, 160), 0.2)
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    """The network, and its initialization."""
    data: DataSettings = field(default_factory=DataSettings)
    """The images, and their augmentation."""
    optimization: OptimizationSettings = field(default_factory=OptimizationSettings)
    """Optimizer, learning rates, schedule and regularization."""
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    """Precision, compilation, random seed and evaluation."""

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """The recipe of that name, or in that TOML file.

        Args:
            name: one of `recipe_names()`, or the path of a file whose name ends in .toml.

        Raises:
            UsageError: no such recipe, an unknown key, a value of a wrong type or an impossible number.
            FileError: the file cannot be read, or is no TOML.
        """
        path = Path(name)
        if path.suffix == ".toml":
            text = _read(path)
        elif name in recipe_names():
            text = (_shipped() / f"{name}.toml").read_text(encoding="utf-8")
        else:
            hint = did_you_mean(str(name), recipe_names(), f"there are {', '.join(recipe_names())}")
            raise UsageError(f"there is no recipe {str(name)!r}: {hint} (a file's name must end in .toml)")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, and for numbers and lists without end
            raise FileError(f"the recipe {name} is no TOML: {first_line(error)}") from error
        return cls.from_table(table, f"recipe {name}")

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "recipe", *, warn: bool = True) -> Recipe:
        """The recipe with the values of a table (see `table`); keys that are missing keep their defaults.

        Tables of earlier versions, which had no groups and other names, are read too.

        Args:
            table: as `tomllib` reads it.
            source: what a message calls it, such as its file.
            warn: say with a `FutureWarning` that a table is of an earlier version.

        Raises:
            UsageError: an unknown key, a value of a wrong type or an impossible number.
        """
        _refuse_long_numbers(table, source)
        groups = {key: value for key, value in table.items() if key in GROUPS and isinstance(value, Mapping)}
        rest = {key: value for key, value in table.items() if key not in groups}
        recipe = from_table(cls, groups, source)
        if not rest:
            return recipe
        try:
            settings, old = modern(rest)
            recipe = recipe._with({"recalibrate_bn": False} | settings)  # as it was then, where the table does not say
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error
        if warn:
            words = f"; {renamed_words(old)}" if old else ""
            warnings.warn(
                f"{source} is of an earlier version: settings stand in the tables {', '.join(GROUPS)} now{words}",
                FutureWarning,
                stacklevel=2,
            )
        return recipe

    def table(self) -> dict[str, Any]:
        """The recipe as plain values, a table for each group, for TOML, JSON or a checkpoint."""
        return to_table(self)

    def settings(self) -> dict[str, Any]:
        """Every setting by its short name, as the flags of the command line have them.

        >>> settings = Recipe.load("fast-cifar").settings()
        >>> settings["model"], settings["init"], settings["bias"], settings["crop"], settings["batch_size"]
        ('diracnet-28-1', 'deep', 0.5, 'pad', 128)
        """
        return flat(self)

    def replaced(self, **settings: Any) -> Recipe:  # noqa: ANN401
        """This recipe with other values for some settings, given by their short names.

        A whole `Init` and a whole `Augmentation` are taken as `init` and `augment`. Names of earlier versions are taken
        with a `FutureWarning`.

        Raises:
            UsageError: no such setting, or a value that makes no sense.

        >>> Recipe.load("paper-cifar").replaced(model="diracnet-28-1", epochs=10).optimization.epochs
        10
        """
        settings, old = modern(settings)
        if old:
            warnings.warn(f"of a recipe's settings, {renamed_words(old)}", FutureWarning, stacklevel=2)
        return self._with(settings)

    def _with(self, settings: Mapping[str, Any]) -> Recipe:
        known = self.settings()
        for name in settings:
            if name not in known:
                raise UsageError(f"a recipe has no setting {shown(name)}; {did_you_mean(name, known, cutoff=0.0)}")
        return with_flat(self, settings)

    def save(self, path: str | Path) -> None:
        """Write the recipe as TOML; `Recipe.load` of that file gives an equal recipe.

        Raises:
            FileError: the file cannot be written.
        """
        with written_whole(path) as part:
            part.write_text(tomli_w.dumps(self.table()), encoding="utf-8")

    def differences(self, other: Recipe) -> list[str]:
        """What differs in `other`, as "name: mine, not theirs" for each setting."""
        mine, theirs = self.settings(), other.settings()
        return [f"{name}: {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def _refuse_long_numbers(table: Mapping[str, Any], source: str) -> None:
    """Refuse numbers that may be neither computed with nor printed."""
    left: list[tuple[str, Any]] = list(table.items())
    while left:
        name, value = left.pop()
        if isinstance(value, int) and value.bit_length() > 64:
            raise UsageError(f"{source}: {shown(name)} is {shown(value)}")
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        left += [(name, each) for each in inner]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise FileError(f"{path} has more than {_LONGEST:,} bytes, which no recipe needs: shorten it")
        return content.decode("utf-8-sig").replace("\r\n", "\n")  # as Notepad may save it
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error


def recipe_names() -> list[str]:
    """The recipes that come with the package.

    >>> recipe_names()
    ['best-cifar', 'deep-cifar', 'demo', 'fast-cifar', 'fast-imagenet', 'finetune', 'paper-cifar', 'paper-imagenet',
     'sprint-cifar']
    """
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def _shipped() -> resources.abc.Traversable:
    return resources.files("diracnets.training") / "recipes"
