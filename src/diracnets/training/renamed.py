"""Settings of recipes that were renamed; their old names are still read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from diracnets.data.augmentation import Augmentation
from diracnets.errors import UsageError
from diracnets.models.init import Init, from_old

RENAMED = {
    "drops": "milestones",
    "drop_factor": "gamma",
    "average_last": "swa_fraction",
    "fresh_statistics": "recalibrate_bn",
    "images": "num_train",
    "first_size": "progressive_size",
    "first_part": "progressive_fraction",
    "clip": "clip_grad",
    "ema": "ema_decay",
    "filter_lr": "muon_lr",
    "filter_momentum": "muon_momentum",
    "start": "init",
}


def modern(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Flat settings by their current names, and the old names that were given.

    Args:
        settings: by names of any version. `init` may be an `Init`, and `augment` an `Augmentation` or a table.

    Raises:
        UsageError: a setting is given by both names.

    >>> modern({"drops": (60,), "start": "deep"})
    ({'milestones': (60,), 'init': 'deep'}, {'drops': 'milestones', 'start': 'init'})
    """
    made: dict[str, Any] = {}
    old: dict[str, str] = {}
    for name, value in settings.items():
        if name == "init" and _of_filters(settings):
            old["init"], given = "filters", _init_of(settings)
        elif name == "start":
            old["start"], given = "init", _init_of(settings)
        elif name in RENAMED:
            old[name], given = RENAMED[name], {RENAMED[name]: value}
        elif name == "init" and isinstance(value, Init | dict):
            init = Init.of(value)
            given = {"init": init.scheme, **{field.name: getattr(init, field.name) for field in fields(init)[1:]}}
        elif name == "augment" and isinstance(value, dict | Augmentation):
            given = (
                {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else value
            )
        else:
            given = {name: value}
        if twice := [each for each in given if each in made and made[each] != given[each]]:
            raise UsageError(f"{twice[0]} is given twice, also by its old name {name}: give it once")
        made |= given
    return made, old


def renamed_words(old: Mapping[str, str]) -> str:
    """The part of a warning that lists renamed settings.

    >>> renamed_words({"drops": "milestones", "clip": "clip_grad"})
    'drops is now milestones, clip is now clip_grad'
    """
    return ", ".join(f"{name} is now {new}" for name, new in old.items())


def _of_filters(settings: Mapping[str, Any]) -> bool:
    """Whether `init` says how filters are drawn, as it did together with `start`."""
    init = settings["init"]
    return "start" in settings or init is None or init == "normal" or type(init) in (int, float)


def _init_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scheme and filters of what earlier versions called `start` and `init`, as far as they are given."""
    if "start" not in settings:
        return {"filters": settings["init"]}
    init = from_old(settings["start"], settings.get("init"))
    return {"init": init.scheme} | ({"filters": init.filters} if "init" in settings else {})
