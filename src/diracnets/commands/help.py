"""Help texts of options, each as one paragraph, which the parser wraps to the terminal."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import docstring_parser


def texts(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field, without the line breaks of the source.

    >>> from diracnets.commands.fold import Fold
    >>> texts(Fold)["out"]
    "The model file to write; by default the checkpoint's name with .safetensors."
    """
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):  # fields stand in the class that has them
        for field in docstring_parser.parse_from_object(each).params:
            if field.description:
                found[field.arg_name] = " ".join(field.description.split())
    return found


def prepare(kind: Any) -> None:  # noqa: ANN401
    """Let the parser find the texts of a command's options, and of the dataclasses within it, as `texts` gives them.

    Left to itself it keeps some of the line breaks of the source.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        helps = texts(kind)
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
