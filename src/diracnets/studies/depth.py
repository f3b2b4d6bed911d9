"""Accuracy against depth, at equal width and budget: plain, Dirac, residual and RepVGG networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diracnets.models.init import Init
from diracnets.models.initializer import deep
from diracnets.models.names import parse
from diracnets.studies.grid import Lines, Row, Study, base_recipe, default_recipe, for_network

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # by name of the row: title, and what the recipe gets
    "plain": ("plain", {"init": Init("kaiming")}),
    "plain-usual": ("plain, usual initialization", {"init": Init("deep", bias=0.0)}),
    "plain-deep": ("plain, deep initialization", {"init": Init("deep")}),
    "plain-identity": ("plain, initialized as the deep Dirac network", {"init": Init("deep", alpha=1.0)}),
    "diracnet": ("Dirac, paper's initialization", {"init": Init("paper", filters="normal")}),
    "diracnet-deep": ("Dirac, deep initialization", {"init": Init("deep")}),
    "wrn": ("residual", {"init": Init("kaiming")}),
    "repvgg": ("RepVGG", {"init": Init("kaiming")}),
}
CLIP = 5.0  # largest norm of the gradient, for the first steps of very deep networks


def depth_study(
    depths: Sequence[int] = (16, 28, 52, 100, 196, 400, 1000),
    width: float = 0.5,
    data: str = "cifar10",
    recipe: str | None = None,
) -> Study:
    """Each family at each depth; rows are named DATA-FAMILY-DEPTH-WIDTH, then the initialization, such as "-deep".

    Args:
        depths: numbers of layers, each 6n + 4.
        width: of all networks; 1 has 16, 32 and 64 channels.
        data: cifar10, cifar100 or digits.
        recipe: a name or TOML file; by default the short one that suits the data.

    Raises:
        UsageError, FileError: a depth or width that no network has; as `Recipe.load`.
    """
    base = base_recipe(recipe, data).replaced(clip_grad=CLIP, recalibrate_bn=True)
    rows = []
    for depth in depths:
        for family, (title, changes) in FAMILIES.items():
            kind, _, initialization = family.partition("-")
            model = f"{kind}-{depth}-{width:g}"
            row = for_network(base, model, **changes)
            if initialization == "identity":
                row = row.replaced(beta=deep(parse(model).blocks).beta)
            axes: dict[str, str | float] = {
                "data": data,
                "network": title,
                "width": width,
                "depth": depth,
                "recipe": Path(recipe or default_recipe(data)).stem,
            }
            rows.append(Row(f"{data}-{model}" + f"-{initialization}" * bool(initialization), axes, row))
    return Study(
        "depth",
        "Accuracy against depth",
        "How does accuracy change with depth, at equal width and by one recipe? The deep initialization shifts the "
        "inputs of the ReLUs so that most of the signal passes; the plain network is trained with it too.",
        rows,
        seeds=3,
        figure=Lines(x="depth", series="network", panels=("data",)),
    )
