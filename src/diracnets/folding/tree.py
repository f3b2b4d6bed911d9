"""Structures of mappings, lists and tuples, as arguments and outputs of networks are, and their leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any


def leaves(value: object) -> list[object]:
    """What is in a structure of mappings, lists and tuples, in order.

    >>> leaves(({"a": 1, "b": [2, None]}, "c"))
    [1, 2, None, 'c']
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list | tuple) else [value]


def layout_of(value: object) -> object:
    """What two structures have in common where their leaves alone may differ."""
    if isinstance(value, Mapping):
        return type(value), [(key, layout_of(part)) for key, part in value.items()]
    return (type(value), [layout_of(part) for part in value]) if isinstance(value, list | tuple) else None


def mapped(function: Callable[..., object], value: Any, *more: object) -> Any:  # noqa: ANN401
    """A structure of mappings, lists and tuples with a function applied to each leaf.

    >>> mapped(lambda number: 2 * number, ([1, 2], {"a": 3}))
    ([2, 4], {'a': 6})
    """
    if isinstance(value, MutableMapping):
        result = copy.copy(value)
        for key, part in value.items():
            result[key] = mapped(function, part, *more)
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, part, *more) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, part, *more) for part in value)
    return function(value, *more)
