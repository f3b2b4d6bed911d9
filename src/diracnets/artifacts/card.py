"""The model card: all that is known of a network but its weights. Checkpoints and model files hold it."""

from __future__ import annotations

import math
import reprlib
import sys
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diracnets.errors import UsageError, shown
from diracnets.models.init import upgraded

if TYPE_CHECKING:
    from torch import nn

_MOST = 100_000  # values in a recipe and the like


@dataclass(frozen=True)
class TrainedOn:
    """The images that a network was trained on.

    Args:
        name: of the data set, one of `data_names` or of the user's own.
        train: how many images it was trained on, None where it is not known.
        val: how many images were held out, None where it is not known.
    """

    name: str
    train: int | None = None
    val: int | None = None


@dataclass(frozen=True)
class ModelCard:
    """What one needs to know to use a network, to evaluate it, and to train it further.

    Args:
        input_size: (channels, height, width) of an image; other data has fewer or more axes after the channels.
        mean: of each channel, for pixels in 0..1; a network's input is (pixel - mean) / std.
        std: of each channel.
        classes: the name of each output, or nothing where they are not known.
        architecture: the arguments of `build_model` that make the network (for a chain: the one that it was folded
            from), plain JSON values; None for a network that is not ours.
        data: what it was trained on, None where it is not known.
        recipe: how it was trained, as `Recipe.table` gives it, None where it is not known.
        fold: how exact the fold was, plain JSON values: largest differences between the network and its chain.
        provenance: whatever else is worth knowing, plain JSON values: accuracy, versions, license. To be read by
            people: nothing depends on it.

    Raises:
        UsageError: numbers or names that cannot be.

    >>> ModelCard((1, 8, 8), mean=(0.3,), std=(0.4,), classes=("zero", "one")).classes[1]
    'one'
    """

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fold: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None
    data: TrainedOn | None = None
    recipe: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 2 <= len(self.input_size) <= 4 or not all(type(n) is int and 1 <= n <= 2**16 for n in self.input_size):
            raise UsageError(f"input_size {reprlib.repr(self.input_size)} is not (channels, height, width)")
        for name, values, low in (("mean", self.mean, -sys.float_info.max), ("std", self.std, 0.0)):
            if len(values) != self.input_size[0]:
                raise UsageError(f"{name} has {len(values)} numbers for {self.input_size[0]} channels")
            if not all(type(value) in (int, float) and low < value <= sys.float_info.max for value in values):
                raise UsageError(f"{name} {reprlib.repr(values)} is not one {'positive ' * (low == 0)}number a channel")
        for name in self.classes:
            if not isinstance(name, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise UsageError(f"a class called {reprlib.repr(name)}; names must be text without control characters")
        room = [_MOST]
        for what in ("architecture", "recipe", "provenance", "fold"):
            value = getattr(self, what)
            if value is None and what in ("architecture", "recipe"):
                continue
            if not isinstance(value, Mapping):
                raise UsageError(f"{what} is {reprlib.repr(value)}, not a mapping")
            _check_plain(value, what, room)
        if self.architecture is not None and not isinstance(self.architecture.get("name"), str):
            raise UsageError("the architecture has no name, by which build_model could make it")
        if self.data is not None:
            _check_data(self.data)

    def __repr__(self) -> str:
        of = "" if self.architecture is None else f" of {shown(self.architecture['name'])[1:-1]}"
        on = "" if self.data is None else f", trained on {shown(self.data.name)[1:-1]}"
        return f"<ModelCard{of}: {'x'.join(map(str, self.input_size))}, {len(self.classes)} classes{on}>"

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_data` makes this card again."""
        return {
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
            "architecture": None if self.architecture is None else dict(self.architecture),
            "data": None if self.data is None else {**vars(self.data)},
            "recipe": None if self.recipe is None else dict(self.recipe),
            "fold": dict(self.fold),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ModelCard:
        """The card that `to_data` of this or an earlier version wrote down; unknown keys are ignored.

        Raises:
            UsageError: something is missing, of the wrong kind, or cannot be.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"the model card is {reprlib.repr(data)}, not a mapping")
        lists = {key: data.get(key, []) for key in ("input_size", "mean", "std", "classes")}
        for key, value in lists.items():
            if not isinstance(value, list | tuple):
                raise UsageError(f"{key} is {reprlib.repr(value)}, not a list")
        trained_on, architecture = data.get("data"), data.get("architecture")
        if trained_on is not None:
            if not isinstance(trained_on, Mapping) or "name" not in trained_on:
                raise UsageError(f"data is {reprlib.repr(trained_on)}, not a mapping with a name")
            trained_on = TrainedOn(trained_on["name"], trained_on.get("train"), trained_on.get("val"))
        return cls(
            **{key: tuple(value) for key, value in lists.items()},
            provenance=data.get("provenance", {}),
            fold=data.get("fold", {}),
            architecture=upgraded(architecture) if isinstance(architecture, Mapping) else architecture,
            data=trained_on,
            recipe=data.get("recipe"),
        )


def attach_card(model: nn.Module, card: ModelCard) -> None:
    """Make `card` the attribute `card` of a network."""
    model.__dict__["card"] = card  # typed modules allow only tensors and modules as new attributes
    model.__dict__["facts"] = _Facts(card)


def card_of(model: nn.Module) -> ModelCard | None:
    """The card that a loaded network carries, if it does.

    >>> import torch
    >>> card_of(torch.nn.Identity()) is None
    True
    """
    card = model.__dict__.get("card")
    return card if isinstance(card, ModelCard) else None


def input_size_of(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, height, width) of a network's images, by its card or as `fold` carried it over, if it is known.

    >>> import torch
    >>> input_size_of(torch.nn.Identity()) is None
    True
    """
    card = card_of(model)
    return card.input_size if card is not None else model.__dict__.get("input_size")


def the_card(card: ModelCard | None, facts: ModelCard | None, of: str) -> ModelCard:
    """What was given as `card`, or, with a `DeprecationWarning`, as `facts`, which it was called earlier.

    Raises:
        UsageError: neither or both were given, or something else than a card.
    """
    if (card is None) == (facts is None):
        raise UsageError(f"{of} takes one card: give card=ModelCard(...)")
    if facts is not None:
        warnings.warn(f"{of}(..., facts=...) is now {of}(..., card=...)", DeprecationWarning, stacklevel=3)
    given = facts if card is None else card
    given = given._card if isinstance(given, _Facts) else given
    if not isinstance(given, ModelCard):
        raise UsageError(f"{of} takes a ModelCard, not a {type(given).__name__}")
    return given


class _Facts:
    """What a network had as `facts` in earlier versions: the values of its card."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("_"):
            raise AttributeError(name)
        warnings.warn(f"facts.{name} of a network is now card.{name}", DeprecationWarning, stacklevel=2)
        return getattr(self._card, name)


def _check_data(data: TrainedOn) -> None:
    if not isinstance(data.name, str):
        raise UsageError(f"the name of the data is {reprlib.repr(data.name)}, not text")
    _check_plain(data.name, "the name of the data", [1])
    for what, count in (("train", data.train), ("val", data.val)):
        if count is not None and (type(count) is not int or not 0 <= count < 1 << 63):
            raise UsageError(f"data.{what} is {shown(count)}, not a number of images")


def _check_plain(value: Any, where: str, room: list[int], depth: int = 0) -> None:  # noqa: ANN401
    """Refuse what JSON cannot hold, and control characters, which could rewrite a terminal that they are printed on.

    `room` holds how many more values there may be: in a checkpoint, one list may stand in many places.
    """
    room[0] -= 1
    if room[0] < 0:
        raise UsageError(f"its card holds more than {_MOST:,} values")
    if depth > 16:
        raise UsageError(f"{where} is nested more than 16 deep")
    if isinstance(value, str):
        if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in value):
            raise UsageError(f"{where} holds control characters: {reprlib.repr(value)}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{where} has the key {reprlib.repr(key)}, which is not text")
            _check_plain(key, where, room, depth + 1)
            _check_plain(item, f"{where}.{reprlib.repr(key)[1:-1]}", room, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where, room, depth + 1)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise UsageError(f"{where} is {shown(value)}")
    elif not (value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))):
        raise UsageError(f"{where} is {reprlib.repr(value)}, which is not a plain JSON value")
