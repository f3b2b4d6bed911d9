"""Dataclasses as TOML tables and back: strings, booleans, numbers, lists of integers, and dataclasses within."""

from __future__ import annotations

import difflib
import json
import types
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from diracnets.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Instance = TypeVar("Instance", bound="DataclassInstance")


def to_table(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass as a table; a field that is None has no key, for TOML has no null."""
    table: dict[str, Any] = {}
    for field in fields(instance):
        value = getattr(instance, field.name)
        if value is not None:
            is_table = is_dataclass(value) and not isinstance(value, type)
            table[field.name] = to_table(value) if is_table else list(value) if isinstance(value, tuple) else value
    return table


def to_toml(table: dict[str, Any]) -> str:
    """The TOML text of a table as `to_table` makes it; `tomllib` reads the same table back.

    >>> print(to_toml({"name": "a", "rate": 1e-05, "at": [1, 2], "more": {"flip": True}}))
    name = "a"
    rate = 1e-05
    at = [1, 2]
    <BLANKLINE>
    [more]
    flip = true
    """
    lines = [f"{key} = {_literal(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", to_toml(value)]
    return "\n".join(lines)


def _literal(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # JSON's escapes are all TOML's, but for DEL


def from_table(kind: type[Instance], table: dict[str, Any], source: str) -> Instance:
    """The dataclass `kind` with the values of `table`; fields without a key keep their defaults.

    Args:
        kind: a dataclass whose fields are str, bool, int, float, Literal, tuple[int, ...], such dataclasses, or
            one of these or None.
        table: names and values, as `tomllib` reads them. An integer is taken for a float, nothing else is converted.
        source: what an error calls the table, such as its file.

    Raises:
        UsageError: an unknown key (the nearest known one is named), or a value of a wrong type.
    """
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{source}: there is no {key!r}; the nearest is {nearest!r} (all: {', '.join(known)})")
        values[key] = _converted(hints[key], value, f"{source}: {key}")
    return kind(**values)


def _converted(hint: Any, value: object, where: str) -> Any:  # noqa: ANN401
    """`value` as the type `hint`."""
    if get_origin(hint) in (types.UnionType,):  # X | None; None is never written
        return _converted(get_args(hint)[0], value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where} is {value!r}, but must be one of {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise UsageError(f"{where} is {value!r}, but must be a list of whole numbers")
        return tuple(value)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {value!r}, but must be a table")
        return from_table(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
        raise UsageError(f"{where} is {value!r}, but must be {words[hint]}")
    return value
