"""The paper's table of errors on CIFAR-10 and CIFAR-100, row by row, ours beside the published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from diracnets.studies.conduct import Trainings
from diracnets.studies.published import ERRORS
from diracnets.studies.study import Row, Study, of_network
from diracnets.training.recipe import Recipe

LARGE = ("vgg-16", "diracnet-28-5", "diracnet-28-10", "resnet-1001", "wrn-28-10")
SMALL = ("plain-28-1", "diracnet-28-1", "wrn-28-1", "dirac-wrn-28-1")


@dataclass(frozen=True, kw_only=True)
class Cifar(Trainings):
    """How wrong are plain chains on CIFAR-10 and CIFAR-100, beside residual networks and what was published?

    The rows of the paper's table by its recipe, and networks of 28 layers and width 1 also by a short one, with which
    the plain network is also trained from the usual start, and from the very filters that the Dirac one begins with.
    One learning rate need not suit all: --rates gives each row the best of several."""

    recipe: Annotated[tuple[str, ...], arg(metavar="NAME|FILE.toml")] = ()
    """Train every row by these recipes instead, such as best-cifar."""

    def study(self) -> Study:
        """Each network on each data by each recipe; names are DATA-NETWORK-RECIPE."""
        rows: list[Row] = []
        for data in ("cifar10", "cifar100"):
            for model in (*LARGE, *SMALL):
                for name in self.recipe or (("paper-cifar",) if model in LARGE else ("paper-cifar", "fast-cifar")):
                    recipe = of_network(Recipe.load(name), model, data=data)
                    title = Path(name).stem
                    place = {"data": data, "network": model, "recipe": title}
                    row = Row(f"{data}-{model}-{title}", place, recipe, ERRORS.get((data, model)))
                    rows.append(row)
                    if model in SMALL and model.startswith("plain") and title != "paper-cifar":
                        rows += _other_starts(row)
        return Study(
            "cifar",
            "Errors on CIFAR-10 and CIFAR-100",
            "How wrong are plain chains of convolutions, trained with the Dirac parameterization, beside residual "
            "networks of the same size, and how near is that to what was published? Published numbers are errors of "
            "the same network by its authors' recipe.",
            rows,
            seeds=5,
            measure="error",
            sizes=True,
        )


def _other_starts(row: Row) -> list[Row]:
    """The row of a plain network, from starts that its recipe may not be made for, but that network."""
    from diracnets.models.init import from_old
    from diracnets.models.initializer import resolved
    from diracnets.models.names import parse

    recipe = row.recipe
    init = from_old(recipe.start, recipe.init, recipe.alpha, recipe.beta, recipe.bias)
    of_dirac = resolved(init, parse(recipe.model).blocks, dirac=True, scale="uniform")
    starts: dict[str, tuple[str, dict[str, Any]]] = {
        "usual": ("the usual", {"start": "deep", "init": "kaiming", "alpha": None, "beta": None, "bias": 0.0}),
        "identity": ("the Dirac network's filters", {"alpha": of_dirac.alpha, "beta": of_dirac.beta}),
    }
    return [
        replace(
            row, name=f"{row.name}-{name}", place={**row.place, "start": title}, recipe=replace(row.recipe, **changes)
        )
        for name, (title, changes) in starts.items()
    ]
