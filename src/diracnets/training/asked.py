"""What is asked of `train`, before anything is read or written: the recipe to follow, or why it makes no sense."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from diracnets.artifacts.network_file import network_file
from diracnets.data.dataset import DATASET
from diracnets.data.images import ImageData
from diracnets.data.items import MapStyle
from diracnets.errors import UsageError
from diracnets.nn.module import check_module
from diracnets.training.recipe import Recipe
from diracnets.training.start import following

Start = nn.Module | str | Path | None
Data = ImageData | str | MapStyle | tuple[MapStyle, MapStyle]


def asked(
    recipe: Recipe | str | Path,
    net: nn.Module | None,
    data: Data | None,
    run: str | Path | None,
    start: Start,
    *,
    resume: bool,
    inherit: bool,
    shard: bool,
) -> tuple[Recipe, Start]:
    """The recipe of a run with the names of its network and data, and the weights that it starts from.

    Args:
        recipe, net, data, run, start, resume, inherit, shard: as for `train`.

    Raises:
        UsageError: they do not go together.
        FileError: the recipe or the weights cannot be read.
    """
    named = isinstance(recipe, str | Path)
    if isinstance(recipe, str | Path):
        recipe = Recipe.load(recipe)
    if not isinstance(recipe, Recipe):
        own = "; a module of your own goes to net=" if isinstance(recipe, nn.Module) else ""
        raise UsageError(f"train takes a Recipe or the name of one first, not a {type(recipe).__name__}{own}")
    if net is not None:
        check_module(net, "train")
        if (start is not None and not resume) or inherit:
            raise UsageError("a module of your own starts from the weights that it has: leave start and inherit out")
        recipe = recipe.replaced(model=type(net).__name__)
    if data is not None:
        recipe = recipe.replaced(data=_name(data))
    if resume and run is None:
        raise UsageError("to resume a run, give its folder")
    if resume and isinstance(start, nn.Module):
        raise UsageError("a resumed run goes on from its own weights: give one of its checkpoints, or none")
    if not resume and isinstance(start, str | Path):
        start = network_file(start)
    if not resume and start is not None and named:
        recipe = following(recipe, start)
    if shard and net is not None:
        raise UsageError("shard divides networks of diracnets, block by block: for a module of your own, leave it out")
    if shard and recipe.runtime.compile:
        raise UsageError(
            "compile and shard do not go together: a divided network gathers its parameters between the operations "
            "that torch.compile would compile as one; leave one out"
        )
    if inherit and start is not None:
        raise UsageError("a run begins with the teacher's filters (inherit) or other weights (start), not both")
    return recipe, start


def _name(data: Data) -> str:
    """What a run calls its data."""
    if isinstance(data, ImageData):
        return data.name
    return data if isinstance(data, str) else DATASET
