"""Accuracy and divergence for many initializations: the filters' standard deviation, alpha and beta."""

from __future__ import annotations

from pathlib import Path

from diracnets.models.init import Init
from diracnets.studies.grid import Lines, Row, Study, base_recipe, default_recipe, for_network

FAMILIES = {"plain": "plain", "wrn": "residual", "diracnet": "Dirac", "dirac-wrn": "Dirac residual"}
STANDARD_DEVIATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
BETAS = (0.001, 0.01, 0.1, 0.3, 1.0, 10.0)
ALPHA, BETA = 1.0, 0.1  # the paper's, while the other one is varied


def init_study(depth: int = 28, width: float = 0.5, data: str = "cifar10", recipe: str | None = None) -> Study:
    """Each family with each initialization; rows are named DATA-FAMILY-DEPTH-WIDTH-WHATVALUE.

    Args:
        depth: layers of all networks, 6n + 4.
        width: of all networks; 1 has 16, 32 and 64 channels.
        data: cifar10, cifar100 or digits.
        recipe: a name or TOML file; by default the short one that suits the data.

    Raises:
        UsageError, FileError: as `Recipe.load`.
    """
    base = base_recipe(recipe, data).replaced(clip_grad=0.0)  # clipping would hide what diverges
    initializations: list[tuple[str, str, float, Init]] = [
        *(("std", "standard deviation of W", value, Init(filters=value)) for value in STANDARD_DEVIATIONS),
        *(("alpha", "alpha", value, Init("kaiming", alpha=value, beta=BETA)) for value in ALPHAS),
        *(("beta", "beta", value, Init("kaiming", alpha=ALPHA, beta=value)) for value in BETAS),
    ]
    rows = []
    for short, what, value, init in initializations:
        for family, title in FAMILIES.items():
            model = f"{family}-{depth}-{width:g}"
            axes: dict[str, str | float] = {
                "data": data,
                "network": title,
                "width": width,
                "depth": depth,
                "recipe": Path(recipe or default_recipe(data)).stem,
                "varied": what,
                "value": value,
            }
            rows.append(Row(f"{data}-{model}-{short}{value:g}", axes, for_network(base, model, init=init)))
    return Study(
        "init",
        "Which initializations work",
        "How accurate does a network become, and does it diverge, when its filters W are drawn with standard "
        "deviations over five orders of magnitude, and when the scales alpha and beta of the Dirac parameterization "
        f"are initialized to other values than {ALPHA:g} and {BETA}? While those two are varied, W is drawn Kaiming "
        "normal; networks without the parameterization are initialized to the filters that it would have. No gradient "
        "is clipped.",
        rows,
        seeds=3,
        figure=Lines(x="value", series="network", panels=("data", "varied")),
    )
