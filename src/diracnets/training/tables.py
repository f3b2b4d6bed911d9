"""Nested dataclasses as TOML tables and as flat settings, and back, with errors that name the key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diracnets.errors import UsageError, did_you_mean, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Instance = TypeVar("Instance", bound="DataclassInstance")


def short_names(kind: Any) -> dict[str, str]:  # noqa: ANN401
    """The name of each field of a dataclass among flat settings: its metadata's "short", or its own.

    >>> from diracnets.models.init import Init
    >>> short_names(Init)["scheme"], short_names(Init)["bias"]
    ('init', 'bias')
    """
    return {item.name: item.metadata.get("short", item.name) for item in fields(kind)}


def flat(instance: DataclassInstance) -> dict[str, Any]:
    """The values of a dataclass, and of the dataclasses within it, by their short names."""
    return dict(_leaves(instance))


def _leaves(instance: DataclassInstance) -> Iterator[tuple[str, Any]]:
    for name, short in short_names(type(instance)).items():
        value = getattr(instance, name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _leaves(value)
        else:
            yield short, value


def with_flat(instance: Instance, settings: Mapping[str, Any]) -> Instance:
    """The dataclass with other values for the fields, also of dataclasses within it, that have these short names."""
    changed: dict[str, Any] = {}
    for name, short in short_names(type(instance)).items():
        value = getattr(instance, name)
        if is_dataclass(value) and not isinstance(value, type):
            changed[name] = with_flat(value, settings)
        elif short in settings:
            changed[name] = settings[short]
    return replace(instance, **changed)


def to_table(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass as a table; a field that is None has no key, for TOML has no null."""
    table: dict[str, Any] = {}
    for field in fields(instance):
        value = getattr(instance, field.name)
        if value is not None:
            is_table = is_dataclass(value) and not isinstance(value, type)
            table[field.name] = to_table(value) if is_table else list(value) if isinstance(value, tuple) else value
    return table


def from_table(kind: type[Instance], table: Mapping[str, Any], source: str) -> Instance:
    """The dataclass `kind` with the values of `table`; fields without a key keep their defaults.

    Args:
        kind: a dataclass whose fields are str, bool, int, float, Literal, tuple[int, ...], such dataclasses, or
            unions of these and None.
        table: names and values, as `tomllib` reads them; see `converted`.
        source: what an error calls the table, such as its file.

    Raises:
        UsageError: an unknown key (the nearest known one is named), or a value of a wrong type.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            hint = did_you_mean(key, known, cutoff=0.0)
            raise UsageError(f"{source}: there is no {shown(key)}; {hint} (all: {', '.join(known)})")
        values[key] = converted(hints[key], value, f"{source}: {key}")
    return kind(**values)


def converted(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401
    """`value` as the type `hint`: an integer for a float and a list for a tuple, else only what has the type already.

    Args:
        hint: see `from_table`.
        value: as TOML or Python gives it.
        where: what an error calls it.

    Raises:
        UsageError: the value has another type.

    >>> converted(Literal["low", "high"] | float, 3, "level")
    3.0
    """
    if any(isinstance(item, int) and abs(item) >> 63 for item in (value if isinstance(value, list) else [value])):
        raise UsageError(f"{where} is a number of more than 63 bits")
    options = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    for option in options:
        if get_origin(option) is Literal and isinstance(value, str) and value in get_args(option):
            return value
        if get_origin(option) is tuple and isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
        if is_dataclass(option) and isinstance(option, type):
            if isinstance(value, dict):
                return from_table(option, value, where)
            if isinstance(value, option):
                return value
            if isinstance(value, str) and hasattr(option, "of"):  # a name that stands for one, as an `Init`'s scheme
                return option.of(value)
            continue
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if type(value) is option:
            return value
    words = " or ".join(_in_words(option) for option in options if option is not type(None))
    raise UsageError(f"{where} is {shown(value)}, but must be {words}")


def _in_words(hint: Any) -> str:  # noqa: ANN401
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        return "a list of whole numbers"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
    return words.get(hint, "a table")
