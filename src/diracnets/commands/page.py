"""The help of a command that has many options: in groups, each option with its default, wrapped to the terminal."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from textwrap import wrap
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from rich.text import Text
from tyro.conf import Fixed, FlagCreatePairsOff, Positional

from diracnets.commands.help import line_width
from diracnets.commands.output import stdout
from diracnets.errors import lines_of

TEXT = 24  # the column in which the texts of options begin
UNBROKEN = "\N{NO-BREAK SPACE}"


def print_page(program: str, description: str, kind: Any) -> None:  # noqa: ANN401
    """Print the help of a command.

    Args:
        program: how it is called.
        description: what it does.
        kind: the dataclass of its options, prepared. It has `groups`, titles and the names of the options under them,
            and `examples`, words to give it. Options in no group come last.
    """
    width, options = line_width(), dict(_options(kind))
    words = [heading for heading, _ in options.values() if not heading.startswith("-")]
    lines = [Text(" ".join(["usage:", program, *words, "[OPTIONS]"]))]
    for part in description.split("\n\n"):
        lines += [Text(), *map(Text, wrap(part, width))]
    lines += [Text(), Text("Examples", "bold"), *(Text(f"  {program} {words}") for words in kind.examples)]
    grouped = {title: [name for name in names.split() if name in options] for title, names in kind.groups.items()}
    rest = options.keys() - chain.from_iterable(grouped.values())
    options["help"], grouped["Others"] = ("-h, --help", "Show this page."), [*sorted(rest), "help"]
    for title, names in grouped.items():
        lines += [Text(), Text(title, "bold")] * bool(names)
        for name in names:
            heading, text = options[name]
            below = lines_of(text, width - TEXT)
            first = below.pop(0) if len(heading) + 4 <= TEXT else ""
            lines.append(Text.assemble("  ", (heading, "cyan"), " " * (TEXT - 2 - len(heading)), first))
            lines += [Text(" " * TEXT + line) for line in below]
    for line in lines:
        line.rstrip()
        stdout().print(line, soft_wrap=True)


def _options(kind: Any) -> Iterator[tuple[str, tuple[str, str]]]:  # noqa: ANN401
    """The options of a dataclass, and of those within it, by their fields: flag and value, and what it does."""
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint, *markers = get_args(hints[item.name]) if hasattr(hints[item.name], "__metadata__") else [hints[item.name]]
        if Fixed in markers:
            continue
        if is_dataclass(hint):
            yield from _options(hint)
            continue
        said = next((each for each in markers if hasattr(each, "metavar")), None)  # by `arg`
        flag = getattr(said, "name", None) or item.name.replace("_", "-")
        text = (getattr(said, "help", None) or item.metadata.get("help", "")).strip()
        heading, default = f"--{flag}", f"default: {item.default}"
        if Positional in markers:
            heading, default = item.name.upper(), ""
        elif hint is bool and FlagCreatePairsOff in markers:
            default = ""
        elif hint is bool:
            heading, default = f"--[no-]{flag}", f"default: {'on' if item.default else 'off'}"
        else:
            heading += f" {getattr(said, 'metavar', None) or _value(hint)}"
            if getattr(said, "help_behavior_hint", None) == "" or item.default == ():
                default = ""
        if item.default is tyro.MISSING:
            default = "required"
        words = [text[:1].upper() + text[1:], *([f"[{default}]".replace(" ", UNBROKEN)] if default else [])]
        yield item.name, (heading, " ".join(words))


def _value(hint: Any) -> str:  # noqa: ANN401
    """What a flag of a type takes, in words.

    >>> _value(Literal["low", "high"] | float | None), _value(tuple[int, ...])
    ('low|high|FLOAT|None', '[INT ...]')
    """
    kind = get_origin(hint)
    if kind is Literal:
        return "|".join(map(str, get_args(hint)))
    if kind in (types.UnionType, Union):
        return "|".join(map(_value, get_args(hint)))
    if kind is tuple:
        return f"[{_value(get_args(hint)[0])} ...]"
    return {bool: "True|False", type(None): "None", str: "NAME"}.get(hint, str(hint.__name__).upper())
