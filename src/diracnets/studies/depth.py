"""Accuracy against depth, at equal width and budget: plain, Dirac, residual and RepVGG networks, and folded chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from diracnets.studies.conduct import Trainings
from diracnets.studies.study import Lines, Row, Study, of_network
from diracnets.training.recipe import Recipe

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # by name of the row: title, and what the recipe gets
    "plain": ("plain", {"start": "paper", "init": "kaiming"}),
    "plain-usual": ("plain, batch norms that start at 1", {"start": "deep", "bias": 0.0}),
    "plain-deep": ("plain, deep start", {"start": "deep"}),
    "plain-identity": ("plain, the Dirac network's filters at the deep start", {"start": "deep", "alpha": 1.0}),
    "diracnet": ("Dirac, the paper's start", {"start": "paper", "init": "normal"}),
    "diracnet-deep": ("Dirac, deep start", {"start": "deep"}),
    "wrn": ("residual", {"start": "paper", "init": "kaiming"}),
    "repvgg": ("RepVGG", {"start": "paper", "init": "kaiming"}),
}
CLIP = 5.0  # largest norm of the gradient, for the first steps of very deep networks


@dataclass(frozen=True, kw_only=True)
class Depth(Trainings):
    """How does accuracy change from 16 to 1000 layers, for plain, Dirac, residual and RepVGG networks?

    All networks have the same width, data and recipe, and their gradients are clipped alike. The plain network has four
    starts: the paper's, the usual one, the deep start's shift of 1, and this with the very filters that the Dirac one
    begins with, so that it has every advantage but the parameterization; with --rates it also has the rate that suits
    it best, as all others have. A Dirac network and its folded chain are one row."""

    depths: tuple[int, ...] = (16, 28, 52, 100, 196, 400, 1000)
    """Numbers of layers, each 6n + 4."""
    width: float = 0.5
    """Of all networks; 1 has 16, 32 and 64 channels."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """What to train on."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = None
    """The recipe of all rows; by default deep-cifar, and demo for the digits."""

    def study(self) -> Study:
        """Each family at each depth; names are DATA-FAMILY-DEPTH-WIDTH, with the start behind it, such as "-deep"."""
        from diracnets.models.initializer import deep
        from diracnets.models.names import parse

        name = self.recipe or short_recipe(self.data)
        base = replace(base_recipe(name, self.data), clip=CLIP, fresh_statistics=True)
        rows = []
        for depth in self.depths:
            for family, (title, changes) in FAMILIES.items():
                kind, _, start = family.partition("-")
                model = f"{kind}-{depth}-{self.width:g}"
                recipe = of_network(base, model, **changes)
                if start == "identity":
                    recipe = replace(recipe, beta=deep(parse(model).blocks).beta)
                row = f"{self.data}-{model}" + f"-{start}" * bool(start)
                place: dict[str, str | float] = {
                    "data": self.data,
                    "network": title,
                    "width": self.width,
                    "depth": depth,
                    "recipe": Path(name).stem,
                }
                rows.append(Row(row, place, recipe))
        return Study(
            "depth",
            "Accuracy against depth",
            "How does accuracy change with depth, at equal width and by one recipe? The deep start shifts the ReLUs so "
            "that most of the signal passes them; the plain network is trained with it too. The white dots on the "
            "lines are the folded chains: convolutions and ReLUs alone.",
            rows,
            seeds=3,
            picture=Lines(x="depth", series="network", panels=("data",)),
        )


def short_recipe(data: str) -> str:
    """The name of the short recipe that suits some data."""
    return "demo" if data == "digits" else "deep-cifar"


def base_recipe(name: str, data: str) -> Recipe:
    """A recipe for some data, with one evaluation, after its last epoch, and no start of its own.

    Raises:
        UsageError, FileError: as `Recipe.load`.
    """
    recipe = Recipe.load(name)
    recipe = replace(recipe, data=data, eval_every=recipe.epochs)
    return replace(recipe, start="paper", init=None, alpha=None, beta=None, bias=None)
