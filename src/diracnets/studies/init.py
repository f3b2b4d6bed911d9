"""Accuracy and divergence over where training starts: the filters' standard deviation, alpha and beta."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from diracnets.studies.conduct import Trainings
from diracnets.studies.depth import base_recipe, short_recipe
from diracnets.studies.study import Lines, Row, Study, of_network

FAMILIES = {"plain": "plain", "wrn": "residual", "diracnet": "Dirac", "dirac-wrn": "Dirac residual"}
STANDARD_DEVIATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
BETAS = (0.001, 0.01, 0.1, 0.3, 1.0, 10.0)
ALPHA, BETA = 1.0, 0.1  # the paper's, where the other one is varied


@dataclass(frozen=True, kw_only=True)
class Init(Trainings):
    """Where may training start? Accuracy and divergence over the scale of filters, alpha and beta.

    What the paper says of its parameterization, that it mostly eliminates the need of careful initialization, for plain
    and residual networks with it and without it: those without start with the filters that the scales and W would make.
    No gradient is clipped, which would hide a start that diverges."""

    depth: int = 28
    """Layers of all networks, 6n + 4."""
    width: float = 0.5
    """Of all networks; 1 has 16, 32 and 64 channels."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """What to train on."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = None
    """The recipe of all rows; by default deep-cifar, and demo for the digits."""

    def study(self) -> Study:
        """Each family at each start; names are DATA-FAMILY-DEPTH-WIDTH-STARTVALUE."""
        name = self.recipe or short_recipe(self.data)
        base = replace(base_recipe(name, self.data), clip=0.0)
        common: dict[str, str | float] = {"width": self.width, "depth": self.depth, "recipe": Path(name).stem}
        starts: list[tuple[str, str, float, dict[str, Any]]] = [
            *(("std", "standard deviation of W", value, {"init": value}) for value in STANDARD_DEVIATIONS),
            *(("alpha", "alpha", value, {"init": "kaiming", "alpha": value, "beta": BETA}) for value in ALPHAS),
            *(("beta", "beta", value, {"init": "kaiming", "alpha": ALPHA, "beta": value}) for value in BETAS),
        ]
        rows = []
        for short, what, value, changes in starts:
            for family, title in FAMILIES.items():
                model = f"{family}-{self.depth}-{self.width:g}"
                place = {"data": self.data, "network": title, **common, "varied": what, "value": value}
                recipe = of_network(base, model, **changes)
                rows.append(Row(f"{self.data}-{model}-{short}{value:g}", place, recipe))
        return Study(
            "init",
            "Where training may start",
            "How good does a network become, and does it diverge, when its filters W are drawn with standard "
            "deviations over five orders of magnitude, and when the scales alpha and beta of the Dirac "
            f"parameterization start elsewhere than at {ALPHA:g} and {BETA}? Those two are varied with W drawn as "
            "Kaiming does; networks without the parameterization start with the filters that it would have. No "
            "gradient is clipped.",
            rows,
            seeds=3,
            picture=Lines(x="value", series="network", panels=("data", "varied")),
            chain=False,
        )
