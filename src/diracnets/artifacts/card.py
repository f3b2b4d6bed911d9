"""What is known about a network beside its weights: the images that it takes, the classes, where it comes from."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from diracnets.errors import UsageError


@dataclass(frozen=True)
class ModelFacts:
    """What one needs to know to use a network.

    Args:
        input_size: (channels, height, width) of an image; other data has fewer or more axes behind the channels.
        mean: of each channel, for pixels in 0..1; a network's input is (pixel - mean) / std.
        std: of each channel.
        classes: the name of each output, or nothing where they are not known.
        provenance: where the network comes from, plain JSON values: recipe, data, accuracy, versions.
        fold: numbers of the fold, plain JSON values: largest differences between the network and its chain.

    Raises:
        UsageError: numbers or names that cannot be.

    >>> ModelFacts((1, 8, 8), mean=(0.3,), std=(0.4,), classes=("zero", "one")).classes[1]
    'one'
    """

    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    fold: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 2 <= len(self.input_size) <= 4 or not all(type(n) is int and 1 <= n <= 2**16 for n in self.input_size):
            raise UsageError(f"input_size {self.input_size!r} is not (channels, height, width), in positive numbers")
        for name, values, low in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            if len(values) != self.input_size[0]:
                raise UsageError(f"{name} has {len(values)} numbers for {self.input_size[0]} channels")
            if not all(type(value) in (int, float) and math.isfinite(value) and value > low for value in values):
                raise UsageError(f"{name} {reprlib.repr(values)} is not one {'positive ' * (low == 0)}number a channel")
        for name in self.classes:
            if not isinstance(name, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise UsageError(f"a class called {reprlib.repr(name)}; names must be text without control characters")
        for what, value in (("provenance", self.provenance), ("fold", self.fold)):
            if not isinstance(value, Mapping):
                raise UsageError(f"{what} is {reprlib.repr(value)}, not a mapping")
            _check_plain(value, what)

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values, from which `from_data` makes these facts again."""
        return {
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
            "provenance": dict(self.provenance),
            "fold": dict(self.fold),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ModelFacts:
        """The facts that `to_data` wrote down; keys that are not among them are ignored.

        Raises:
            UsageError: something is missing, of the wrong kind, or cannot be.
        """
        if not isinstance(data, Mapping):
            raise UsageError(f"facts are {reprlib.repr(data)}, not a mapping")
        lists = {key: data.get(key, []) for key in ("input_size", "mean", "std", "classes")}
        for key, value in lists.items():
            if not isinstance(value, list | tuple):
                raise UsageError(f"{key} is {reprlib.repr(value)}, not a list")
        tuples = {key: tuple(value) for key, value in lists.items()}
        return cls(**tuples, provenance=data.get("provenance", {}), fold=data.get("fold", {}))


def attach_facts(model: nn.Module, facts: ModelFacts) -> None:
    """Make `facts` the attribute `facts` of a network."""
    model.__dict__["facts"] = facts  # typed modules allow only tensors and modules as new attributes


def facts_of(model: nn.Module) -> ModelFacts | None:
    """The facts that a loaded network carries, if it does.

    >>> facts_of(nn.Identity()) is None
    True
    """
    facts = model.__dict__.get("facts")
    return facts if isinstance(facts, ModelFacts) else None


def input_size_of(model: nn.Module) -> tuple[int, ...] | None:
    """(channels, height, width) of a network's images, by its facts or as `fold` carried it over, if it is known.

    >>> input_size_of(nn.Identity()) is None
    True
    """
    facts = facts_of(model)
    return facts.input_size if facts is not None else model.__dict__.get("input_size")


def _check_plain(value: Any, where: str, depth: int = 0) -> None:  # noqa: ANN401
    """Refuse what JSON cannot hold, and control characters, which could rewrite a terminal that they are printed on."""
    if depth > 16:
        raise UsageError(f"{where} is nested more than 16 deep")
    if isinstance(value, str):
        if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in value):
            raise UsageError(f"{where} holds control characters: {reprlib.repr(value)}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"{where} has the key {reprlib.repr(key)}, which is not text")
            _check_plain(key, where, depth + 1)
            _check_plain(item, f"{where}.{reprlib.repr(key)[1:-1]}", depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where, depth + 1)
    elif not (value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))):
        raise UsageError(f"{where} is {reprlib.repr(value)}, which is not a plain JSON value")
