"""Help texts without the line breaks of the source, wrapped to the terminal."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, TextIO, cast, get_args, get_type_hints

import docstring_parser

_WIDEST = 100  # longer lines are hard to read
_LEAST = 40  # columns; in fewer, the parser puts one letter on a line
_EMPTY = "(default: )"  # of options that take several values, and by default none


def texts(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field, without the line breaks of the source.

    >>> from diracnets.commands.fold import Fold
    >>> texts(Fold)["out"].partition(";")[0]
    'The model file to write'
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):  # fields stand in the class that has them
        for field in docstring_parser.parse_from_object(each).params:
            if field.description:
                found[field.arg_name] = " ".join(field.description.split())
    return found


def prepare(kind: Any) -> None:  # noqa: ANN401
    """Set the help texts of a command, its options and the dataclasses in it to what `paragraphs` and `texts` give.

    The parser alone keeps some of the line breaks of the source.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        helps = texts(kind)
        if kind.__doc__ and not docstring_parser.parse(kind.__doc__).params:
            kind.__doc__ = paragraphs(kind.__doc__)
        for item in fields(kind):
            if item.name in helps and "help" not in item.metadata:
                item.metadata = MappingProxyType({**item.metadata, "help": helps[item.name]})
        for hint in get_type_hints(kind, include_extras=True).values():
            prepare(hint)
    for part in get_args(kind):
        prepare(part)


def paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


def line_width() -> int:
    """How long the lines of a text are: as the terminal is wide, but not too long to read, nor too short."""
    return max(_LEAST, min(shutil.get_terminal_size().columns, _WIDEST))


@contextmanager
def wrapped() -> Iterator[None]:
    """Wrap what the parser prints: it wraps the texts of options, but not the description of the command."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _LEAST:
        os.environ["COLUMNS"] = str(_LEAST)
    try:
        with redirect_stdout(cast(TextIO, _Wrapping(sys.stdout))):
            yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


class _Wrapping:
    """A stream that breaks long lines between words; coloured lines and boxes have their width already."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        width = line_width()
        lines = text.replace(_EMPTY, " " * len(_EMPTY)).split("\n")
        return self._stream.write("\n".join(line if _laid_out(line) else textwrap.fill(line, width) for line in lines))


def _laid_out(line: str) -> bool:
    return not line or "\033" in line or not line[0].isalnum()
