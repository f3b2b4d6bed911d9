"""The paper's table of errors on CIFAR-10 and CIFAR-100, row by row, ours next to the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diracnets.models.build import on_meta
from diracnets.models.init import Init
from diracnets.models.initializer import resolved
from diracnets.models.names import parse
from diracnets.studies.grid import Row, Study, for_network
from diracnets.training.recipe import Recipe

LARGE = ("vgg-16", "diracnet-28-5", "diracnet-28-10", "resnet-1001", "wrn-28-10")
SMALL = ("plain-28-1", "diracnet-28-1", "wrn-28-1", "dirac-wrn-28-1")
CLASSES = {"cifar10": 10, "cifar100": 100}
PUBLISHED = {  # errors of the test images in percent, each with where it was read
    ("cifar10", "vgg-16"): "6.09 ± 0.11 (remembered from the paper, not checked)",
    ("cifar10", "diracnet-28-5"): "5.16 ± 0.14 (remembered from the paper, not checked)",
    ("cifar10", "diracnet-28-10"): "4.75 ± 0.16 (remembered from the paper, not checked)",
    ("cifar10", "resnet-1001"): "4.92 (its own paper has 4.62)",
    ("cifar10", "wrn-28-10"): "4.00 (its README, median of 5)",
    ("cifar100", "vgg-16"): "25.92 ± 0.09 (remembered from the paper, not checked)",
    ("cifar100", "diracnet-28-5"): "23.44 ± 0.14 (remembered from the paper, not checked)",
    ("cifar100", "diracnet-28-10"): "21.54 (quoted from the paper by another)",
    ("cifar100", "resnet-1001"): "22.71 (its own paper)",
    ("cifar100", "wrn-28-10"): "19.25 (its README, median of 5)",
}


def cifar_study(recipes: Sequence[str] = ()) -> Study:
    """Each network on each data set; rows are named DATA-NETWORK-RECIPE.

    Args:
        recipes: train every row by these instead: names or TOML files.

    Raises:
        UsageError, FileError: as `Recipe.load`.
    """
    rows: list[Row] = []
    for data in CLASSES:
        for model in (*LARGE, *SMALL):
            for name in recipes or (("paper-cifar",) if model in LARGE else ("paper-cifar", "fast-cifar")):
                title = Path(name).stem
                axes = {"data": data, "network": model, "recipe": title}
                row = Row(f"{data}-{model}-{title}", axes, for_network(Recipe.load(name), model, data=data))
                rows.append(row)
                if model == "plain-28-1" and title != "paper-cifar":
                    rows += _other_initializations(row)
    return Study(
        "cifar",
        "Errors on CIFAR-10 and CIFAR-100",
        "How large is the error of plain chains of convolutions, trained with the Dirac parameterization, next to "
        "residual networks of the same size, and how near is that to what was published? Published numbers are errors "
        "of the same network by its authors' recipe.",
        rows,
        seeds=5,
        measure="error",
        columns={"parameters": _parameters, "published error, %": _published},
        published={
            f"{data}-{model}, {_source(text)}": float(text.split()[0]) for (data, model), text in PUBLISHED.items()
        },
    )


def _other_initializations(row: Row) -> list[Row]:
    """The row of a plain network with other initializations: the usual one, and the filters of the Dirac network."""
    recipe = row.recipe
    init = recipe.model.init
    dirac = resolved(init, parse(recipe.model.name).blocks, dirac=True, scale="uniform")
    usual = recipe.replaced(init=Init("deep", filters="kaiming", bias=0.0))
    same = recipe.replaced(alpha=dirac.alpha, beta=dirac.beta)
    return [
        Row(f"{row.name}-usual", {**row.axes, "initialization": "usual"}, usual),
        Row(f"{row.name}-identity", {**row.axes, "initialization": "as the Dirac network"}, same),
    ]


def _parameters(settings: Mapping[str, Any]) -> str:
    """How many parameters the network has as it is trained, counted without memory for its weights."""
    if settings["data"] not in CLASSES:
        return ""
    net = on_meta({"name": settings["model"], "width": settings["width"], "num_classes": CLASSES[settings["data"]]})
    return f"{sum(parameter.numel() for parameter in net.parameters()):,}"


def _source(text: str) -> str:
    """How a published value is called in the figure, which has no room for where it was read.

    >>> _source(PUBLISHED["cifar10", "wrn-28-10"]), _source(PUBLISHED["cifar10", "vgg-16"])
    ('published', 'published (not checked)')
    """
    return "published (not checked)" if "not checked" in text else "published"


def _published(settings: Mapping[str, Any]) -> str:
    return PUBLISHED.get((settings["data"], settings["model"]), "")
