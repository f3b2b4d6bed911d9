"""The settings of a recipe as flags, with the values of the recipe that the command line names as their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import field, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from tyro.conf import OmitArgPrefixes

from diracnets.commands.help import texts
from diracnets.commands.words import given, modern
from diracnets.errors import DiracNetsError, UsageError
from diracnets.training.recipe import GROUPS, Recipe
from diracnets.training.settings import PHOTOGRAPHS
from diracnets.training.tables import short_names

Options = TypeVar("Options")

FINETUNE = "finetune"
_USUAL = {
    "digits": "demo",
    **dict.fromkeys(("cifar10", "cifar100"), "fast-cifar"),
    **dict.fromkeys(PHOTOGRAPHS, "fast-imagenet"),
}


def with_settings(cls: type[Options], options: Sequence[str]) -> tuple[type[Options], list[str]]:
    """A command with a flag for each setting, for the parser to fill in, and the options by their current names.

    The recipe, and so the defaults of the flags, depends on some of the options.

    Raises:
        UsageError: no such recipe, one that starts from weights without --from, --resume without --run-dir,
            --data-dir without --data.
        FileError: no run to resume.
    """
    options = modern(options)
    name, run = given(options, "recipe"), given(options, "run-dir")
    if "--resume" in options and run is None:
        raise UsageError("--resume needs --run-dir FOLDER, the run to resume")
    among = {flag for flag in ("data", "recipe", "data-dir") if given(options, flag) is not None}
    if among == {"data-dir"} and "--resume" not in options:
        raise UsageError("--data-dir needs --data: folder, shards or parquet for your own images, cifar10 or cifar100")
    if name == FINETUNE and not {"--resume", "--help", "-h"} & set(options) and given(options, "from") is None:
        raise UsageError(f"the recipe {FINETUNE} starts from trained weights: give --from NAME|FILE, or another recipe")
    if name is None and "--resume" in options:
        recipe = recipe_of(Path(str(run)))
    else:
        recipe = Recipe.load(name or usual_recipe(options))
    recipe = _following(recipe, options)
    groups = [(group, _flags(getattr(recipe, group), group)) for group in GROUPS]
    made = make_dataclass(
        cls.__name__, groups, bases=(cls,), namespace={"options": tuple(options)}, frozen=True, kw_only=True
    )
    return made, options


def usual_recipe(options: Sequence[str]) -> str:
    """The recipe for what the options train, and from what, where they name none.

    >>> usual_recipe(["--data", "folder"]), usual_recipe(["--data", "folder", "--from", "runs/first"])
    ('fast-imagenet', 'finetune')
    """
    data = given(options, "data") or ""
    if data in PHOTOGRAPHS and given(options, "from") is not None:
        return FINETUNE
    return _USUAL.get(data, "fast-cifar")


def recipe_of(run: Path) -> Recipe:
    """The recipe of the run in a folder.

    Raises:
        UsageError: there is none.
    """
    if not (run / "recipe.toml").is_file():
        raise UsageError(f"no run to resume in {run}: it holds no recipe.toml")
    return Recipe.load(run / "recipe.toml")


def _following(recipe: Recipe, options: Sequence[str]) -> Recipe:
    """The recipe with network and image size of the weights given by --from, where no flag or file asks for others."""
    start, own = given(options, "from"), given(options, "recipe")
    if start is None or {"--resume", "--help", "-h"} & set(options) or (own or "").endswith(".toml"):
        return recipe
    from diracnets.training.start import following

    data = given(options, "data")
    with suppress(DiracNetsError):  # which is said where the weights are taken
        asked = [name for name in ("model", "width", "pool", "image_size") if _asked(options, name)]
        return following(recipe if data is None else recipe.replaced(data=data), start, asked)
    return recipe


def _asked(options: Sequence[str], setting: str) -> bool:
    return any(given(options, flag) is not None for flag in {setting, setting.replace("_", "-")})


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
