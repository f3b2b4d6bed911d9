"""Pickles, looked at before they are loaded: how much they would make is found without making it.

A few bytes of a pickle can stand for a tuple of two tuples of two tuples, and so on: comparing, printing or hashing it
takes time without end, and one nested a million deep ends the process. Pickles of weights and of images have no such
things, and none that a pickler would not write.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

MOST = 1 << 24  # values in one pickle; one that stands in several places counts as often
DEEPEST = 64  # containers within containers
_KEPT = 8  # items of a tuple that are kept to be looked at
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_CHANGING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_NEVER_WRITTEN = {"POP", "POP_MARK", "DUP", "NEXT_BUFFER", "READONLY_BUFFER"}  # for values without cycles


@dataclass(eq=False, slots=True)
class _Value:
    """What an opcode would make.

    Attributes:
        size: how many values it is of.
        depth: how deep they are nested.
        plain: a number, text or global name; the plain values of a short tuple.
        held: whether another value holds it.
    """

    size: int = 1
    depth: int = 0
    plain: Any = None
    held: bool = False


def opcodes(content: IO[bytes]) -> Iterator[tuple[str, Any, int]]:
    """Each opcode of one pickle, with its argument and place. `content` is left behind the pickle.

    The argument of `BINPERSID` is the identity that stands before it, as far as that is a short tuple of plain values.

    Args:
        content: an open file, at the beginning of the pickle.

    Raises:
        ValueError: it is damaged, makes more than `MOST` values or nests them more than `DEEPEST` deep, or has what no
            pickler writes for plain values.

    >>> import io, pickle
    >>> [name for name, _, _ in opcodes(io.BytesIO(pickle.dumps([1, 2], protocol=2)))]
    ['PROTO', 'EMPTY_LIST', 'BINPUT', 'MARK', 'BININT1', 'BININT1', 'APPENDS', 'STOP']
    >>> value = []
    >>> for _ in range(30):
    ...     value = [value, value]
    >>> list(opcodes(io.BytesIO(pickle.dumps(value))))
    Traceback (most recent call last):
        ...
    ValueError: it makes more than 16777216 values
    """
    stack: list[_Value | None] = []  # None is a mark
    memo: dict[int, _Value] = {}
    for number, (opcode, argument, place) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if name in _NEVER_WRITTEN:
            raise ValueError(f"it has the opcode {name}")
        try:
            if name in _PUT:
                index = len(memo) if name == "MEMOIZE" else int(argument or 0)
                if index > number:
                    raise ValueError(f"it keeps a value at place {index}")
                memo[index] = _top(stack)
            elif name in _GET:
                stack.append(memo[int(argument or 0)])
            elif name == "MARK":
                stack.append(None)
            else:
                given = _pop(stack, opcode)
                if name == "BINPERSID":
                    argument = given[0].plain
                if opcode.stack_after:
                    stack.append(_made(name, argument, given))
        except (IndexError, KeyError) as error:
            raise ValueError("it takes a value that is not there") from error
        yield name, argument, place or 0
    if sum(value.size for value in stack if value is not None) > MOST:
        raise ValueError(f"it makes more than {MOST} values")


def _top(stack: list[_Value | None]) -> _Value:
    value = stack[-1]
    if value is None:
        raise ValueError("it has a mark where a value should be")
    return value


def _pop(stack: list[_Value | None], opcode: pickletools.OpcodeInfo) -> list[_Value]:
    """What an opcode takes, in order."""
    wanted = [each.name for each in opcode.stack_before]
    taken: list[_Value] = []
    if "mark" in wanted:
        while (value := stack.pop()) is not None:
            taken.append(value)
        wanted = wanted[: wanted.index("mark")]
    for _ in wanted:
        taken.append(_top(stack))
        stack.pop()
    return taken[::-1]


def _made(name: str, argument: object, given: list[_Value]) -> _Value:
    changed = given[0] if name in _CHANGING else None
    if changed is not None and (changed.held or any(value is changed for value in given[1:])):
        raise ValueError("it changes a value that another one holds already")
    for value in given:
        value.held = value is not changed
    made = _Value() if changed is None else changed
    for value in given if changed is None else given[1:]:
        made.size += value.size
        made.depth = max(made.depth, value.depth + 1)
    if made.size > MOST:
        raise ValueError(f"it makes more than {MOST} values")
    if made.depth > DEEPEST:
        raise ValueError(f"it nests values more than {DEEPEST} deep")
    if name in _TUPLES and len(given) <= _KEPT:
        made.plain = tuple(value.plain for value in given)
    elif not given and isinstance(argument, str | int):
        made.plain = argument
    return made
