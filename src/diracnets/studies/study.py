"""A study made of trainings: a question, and rows, each of which is a recipe that is trained with several seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from diracnets.errors import UsageError
from diracnets.models.names import parse
from diracnets.training.recipe import Recipe


@dataclass(frozen=True)
class Published:
    """A number that others published, in percent of the images."""

    error: float
    """Part of the test images that is classified wrongly."""
    spread: float | None = None
    """Its standard deviation over runs, where it was published."""
    source: str = ""
    """Where it was read; a number that nobody here has read says so."""


@dataclass(frozen=True)
class Row:
    """One line of a study's table."""

    name: str
    """Unique in the study; also the name of a folder."""
    place: Mapping[str, str | float]
    """What tells this row from the others, such as network and depth: the table's first columns."""
    recipe: Recipe
    """With its full number of epochs."""
    published: Published | None = None
    rate: float | None = None
    """That of its recipe, where the row is trained with several; see `rates`."""


@dataclass(frozen=True)
class Lines:
    """A picture of lines: one for each value of `series`, over `x`, a panel for each combination of `panels`."""

    x: str
    series: str
    panels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A question and the trainings that answer it."""

    name: str
    title: str
    question: str
    rows: Sequence[Row]
    seeds: int
    """Trainings of each row at the full budget."""
    measure: Literal["error", "accuracy"] = "accuracy"
    """What the table tells, in percent of the held-out images."""
    picture: Lines | None = None
    """None draws a dot for each row."""
    chain: bool = True
    """Whether the folded chain is evaluated too."""
    sizes: bool = False
    """Whether the table tells how many parameters each network has; then all rows are of CIFAR."""


@dataclass(frozen=True)
class Budget:
    """How much is trained; what is not given is as in the full study.

    >>> scaled = Budget(epochs=10).scaled(Recipe.load("paper-cifar"))
    >>> scaled.epochs, scaled.drops
    (10, (3, 6, 8))
    """

    epochs: int | None = None
    """Passes over the training images; drops of the rate move in proportion."""
    seeds: int | None = None
    """Trainings of each row."""
    images: int | None = None
    """Train on so many images only."""

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds", "images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"budget.{name} is {value}, but must be at least 1")

    def scaled(self, recipe: Recipe) -> Recipe:
        """The recipe at this budget."""
        if self.epochs is not None:
            moved = {round(drop * self.epochs / recipe.epochs) for drop in recipe.drops}
            drops = tuple(sorted(drop for drop in moved if 1 < drop <= self.epochs))
            recipe = replace(recipe, epochs=self.epochs, drops=drops)
        return recipe if self.images is None else replace(recipe, images=self.images)


def choose_rows(study: Study, patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match one of the shell patterns, in the study's order.

    Raises:
        UsageError: a pattern matches no row, or a row's network does not exist.
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in study.rows):
            raise UsageError(f"no row matches {pattern!r}; there are {', '.join(row.name for row in study.rows)}")
    rows = [row for row in study.rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]
    for row in rows:
        parse(row.recipe.model)
    return rows


def recipe_key(recipe: Recipe) -> str:
    """Eight hex digits that tell recipes apart, whatever their seeds.

    Only what differs from the defaults counts, so that a setting that recipes gain later changes no key.

    >>> recipe_key(Recipe(seed=1)) == recipe_key(Recipe(seed=2)) != recipe_key(Recipe(lr=0.2))
    True
    """
    told = settings(replace(recipe, seed=0).table())
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()


def settings(table: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's table says that is not the default anyway: also of a recipe that was written down long ago.

    >>> settings(Recipe(lr=0.2).table())
    {'lr': 0.2}
    """
    return _differences(table, Recipe().table())


def _differences(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for name, value in table.items():
        default = defaults.get(name)
        if value != default:
            different[name] = _differences(value, default or {}) if isinstance(value, dict) else value
    return different


def of_network(recipe: Recipe, model: str, **changes: Any) -> Recipe:  # noqa: ANN401
    """The recipe for a network: without a rate of its own for alpha and beta where there are none.

    >>> of_network(Recipe(scale_lr=0.02), "plain-28-1").scale_lr
    >>> of_network(Recipe(scale_lr=0.02), "diracnet-28-1", seed=1).scale_lr
    0.02
    """
    scale_lr = recipe.scale_lr if parse(model).dirac else None
    return replace(recipe, model=model, scale_lr=scale_lr, **changes)
