"""A study: a question, and the grid of training runs that answers it, rows of recipes with random seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from tyro.conf import arg

from diracnets.errors import UsageError
from diracnets.models.init import Init
from diracnets.models.names import parse
from diracnets.training.recipe import Recipe

Number = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
RATES = {"sgd": "lr", "muon": "muon_lr"}  # the setting that is the learning rate of filters, by optimizer


@dataclass(frozen=True)
class Row:
    """One recipe of a study."""

    name: str
    """Unique in the study; also the name of a folder."""
    axes: Mapping[str, str | float]
    """Where the row stands in the grid, such as network and depth: the first columns of the table."""
    recipe: Recipe
    """With its full number of epochs."""


@dataclass(frozen=True)
class Lines:
    """A figure of lines: one for each value of `series`, over `x`, a panel for each combination of `panels`."""

    x: str
    series: str
    panels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A question and the training runs that answer it."""

    name: str
    title: str
    question: str
    rows: Sequence[Row]
    seeds: int
    """Training runs of each row at the full budget."""
    measure: Literal["error", "accuracy"] = "accuracy"
    """What tables and figures show, in percent of the test images."""
    figure: Lines | None = None
    """None draws a dot for each run."""
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]] = field(default_factory=dict)
    """Further columns of the table, made from the settings of a recipe."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Values of others in percent, by the names that they have in a figure of dots."""


@dataclass(frozen=True)
class Budget:
    """How much is trained; what is not given is as in the full study.

    >>> Budget(epochs=10).scaled(Recipe.load("paper-cifar")).settings()["epochs"]
    10
    """

    epochs: Number = None
    """Epochs of each run; milestones are scaled in proportion. By default those of the recipe."""
    seeds: Number = None
    """Number of runs of each row, with random seeds 0, 1, 2, ... By default that of the full study."""
    images: Number = None
    """Train on this many images only. By default on all."""

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds", "images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"budget.{name} is {value}, but must be at least 1")

    def scaled(self, recipe: Recipe) -> Recipe:
        """The recipe at this budget."""
        changes: dict[str, Any] = {} if self.images is None else {"num_train": self.images}
        if self.epochs is not None:
            settings = recipe.settings()
            moved = {round(epoch * self.epochs / settings["epochs"]) for epoch in settings["milestones"]}
            changes |= {
                "epochs": self.epochs,
                "milestones": tuple(sorted(epoch for epoch in moved if 1 < epoch <= self.epochs)),
            }
        return recipe.replaced(**changes)


def rate_name(settings: Mapping[str, Any]) -> str:
    """The setting of a recipe that is the learning rate of its filters."""
    return RATES[settings["optimizer"]]


def at_rates(row: Row, rates: Sequence[float]) -> list[Row]:
    """The row at each learning rate; as it is if there are none.

    Raises:
        UsageError: a rate that is given twice, or is not above 0.

    >>> row = Row("small", {}, Recipe().replaced(optimizer="muon"))
    >>> [each.recipe.settings()["muon_lr"] for each in at_rates(row, (0.1, 0.2))]
    [0.1, 0.2]
    """
    if len(set(rates)) < len(rates):
        raise UsageError(f"rates are {', '.join(f'{rate:g}' for rate in rates)}; give each of them once")
    name = rate_name(row.recipe.settings())
    return [Row(row.name, row.axes, row.recipe.replaced(**{name: rate})) for rate in rates] or [row]


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
        parse(row.recipe.settings()["model"])
    return rows


def for_network(recipe: Recipe, model: str, **changes: object) -> Recipe:
    """The recipe for a network: without a learning rate for alpha and beta if there are none.

    >>> for_network(Recipe().replaced(scale_lr=0.02), "plain-28-1").settings()["scale_lr"]
    >>> for_network(Recipe().replaced(scale_lr=0.02), "diracnet-28-1").settings()["scale_lr"]
    0.02
    """
    scale_lr = recipe.settings()["scale_lr"] if parse(model).dirac else None
    return recipe.replaced(model=model, scale_lr=scale_lr, **changes)


def base_recipe(name: str | None, data: str) -> Recipe:
    """The recipe that all rows of a study begin with: of that name, or a short one that suits the data. It evaluates
    once, after the last epoch, and leaves the initialization to the network.

    Raises:
        UsageError, FileError: as `Recipe.load`.
    """
    recipe = Recipe.load(name or default_recipe(data))
    return recipe.replaced(data=data, eval_every=recipe.settings()["epochs"], init=Init())


def default_recipe(data: str) -> str:
    """The name of the short recipe that suits some data."""
    return "demo" if data == "digits" else "deep-cifar"
