"""What earlier versions wrote in place of a model card: `facts`, most of them in a free-form provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diracnets.artifacts.card import ModelCard
from diracnets.errors import UsageError

_OF_RECIPE = ("width", "start", "init", "alpha", "beta", "bias")  # settings that are arguments of build_model


def card_of_facts(
    facts: Any,  # noqa: ANN401
    architecture: Mapping[str, Any] | None = None,
    outputs: int | None = None,
) -> ModelCard:
    """The card that says what the facts of an earlier version say.

    Args:
        facts: as they stand in a checkpoint or model file.
        architecture: what a checkpoint has as "model". For a model file it follows from the recipe, where there is one.
        outputs: how many outputs a model file's network has.

    Raises:
        UsageError: something is missing, of the wrong kind, or cannot be.
    """
    if not isinstance(facts, Mapping) or not isinstance(facts.get("provenance", {}), Mapping):
        return ModelCard.from_data(facts)  # which says what is wrong
    rest = dict(facts.get("provenance", {}))
    recipe = next((rest.pop(key) for key in ("recipe", "settings") if isinstance(rest.get(key), Mapping)), None)
    data = rest.pop("data", None)
    if "licence" in rest:
        rest["license"] = rest.pop("licence")
    plain = {key: value for key, value in facts.items() if key in ("input_size", "mean", "std", "classes", "fold")}
    card = ModelCard.from_data({**plain, "provenance": rest})  # before its values are used below
    if architecture is None and recipe is not None and "taken_out" not in rest and len(card.input_size) == 3:
        architecture = {
            "name": recipe.get("model"),
            "num_classes": outputs,
            "in_channels": card.input_size[0],
            "image_size": list(card.input_size[1:]),
            **{key: recipe[key] for key in _OF_RECIPE if key in recipe},
        }
    named = isinstance(data, Mapping) and isinstance(data.get("name"), str)
    try:
        return ModelCard.from_data(
            {
                **card.to_data(),
                "architecture": architecture,
                "recipe": recipe,
                "data": data if named else None,
            }
        )
    except TypeError as error:
        raise UsageError(f"its recipe or architecture cannot be read: {error}") from error
