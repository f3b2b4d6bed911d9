"""Output of commands: results on stdout, notes on stderr, tables that stay readable in a pipe."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diracnets.errors import lines_of, printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment
    from rich.table import Table

_LONGEST_NAME = 24  # columns of a name before its value
_PIPE_WIDTH = 400  # nothing is cut or wrapped where no terminal shows it


def stdout() -> Console:
    """A console for results: coloured and as wide as the terminal on one, plain unbroken lines elsewhere."""
    from rich.console import Console

    class Results(Console):
        def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401
            """As rich does, but no text, such as a file name, can control the terminal, and nothing is cropped."""
            texts = (printable(each, keep="\n\t") if isinstance(each, str) else each for each in objects)
            super().print(*texts, **{"crop": False, **options})

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Results(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print lines on stdout. A terminal that is too narrow for one has line breaks between words.

    What goes on in a further line is indented as the first, or as the value in it, which two spaces or more go before.
    """
    if sys.stdout.isatty():
        lines = []
        for line in printable(text, keep="\n").split("\n"):
            before = re.match(r" *(\S+( \S+)*  +(?=\S))?", line)
            indent = before.end() if before is not None and before.end() <= _LONGEST_NAME else 0
            lines += lines_of(line, shutil.get_terminal_size().columns, indent) or [""]
        text = "\n".join(lines)
    stdout().print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print one line on stderr; a terminal that is too narrow for it has line breaks between words."""
    text = printable(text)
    if sys.stderr.isatty():
        text = "\n".join(lines_of(text, shutil.get_terminal_size().columns))
    print(text, file=sys.stderr)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table with numbers and percentages aligned right and floats to three decimals, whose words are never broken.

    The first column is never wrapped: it holds the names that a reader copies. In the others lines end between words.
    Where a terminal is too narrow for that, the table is wider than it.

    >>> stdout().print(table(["name", "parameters"], [["diracnet-16-1", 173402]]))
    name            parameters
    ──────────────────────────
    diracnet-16-1      173,402
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table

    rows = list(rows)
    cells = [[column, *(_cell(row[index]) for row in rows)] for index, column in enumerate(columns)]
    wanted = [max(map(cell_len, texts)) for texts in cells]
    least = [max(cell_len(word) for text in texts for word in text.split() or [""]) for texts in cells]
    least[0] = wanted[0]

    class Unbroken(Table):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            between = 3 * (len(columns) - 1)  # a space, a line of the box and a space
            widths = _shared(options.max_width - between, least, wanted)
            if widths == wanted and not options.ascii_only:  # rich takes seconds for the lines of a thousand layers
                yield from _lines(cells, numeric, wanted)
                return
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from super().__rich_console__(console, options.update(max_width=sum(widths) + between))

    made = Unbroken(box=SIMPLE_HEAD, pad_edge=False)
    made.show_edge = False
    numeric = [all(map(_is_number, (row[index] for row in rows))) for index in range(len(columns))]
    for column, right in zip(columns, numeric, strict=True):
        made.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _lines(cells: Sequence[Sequence[str]], numeric: Sequence[bool], widths: Sequence[int]) -> Iterator[Segment]:
    """What rich makes of a table, given column by column, all of whose cells fit."""
    from rich.cells import cell_len
    from rich.segment import Segment
    from rich.style import Style

    padded = [
        [" " * (width - cell_len(text)) + text if right else text + " " * (width - cell_len(text)) for text in texts]
        for texts, right, width in zip(cells, numeric, widths, strict=True)
    ]
    lines = ["   ".join(texts) for texts in zip(*padded, strict=True)]
    rule = "─" * (sum(widths) + 3 * (len(widths) - 1))
    yield Segment(lines[0], Style(bold=True))
    yield Segment("\n" + "\n".join([rule, *lines[1:]]) + "\n")


def _shared(room: int, least: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """A width for each column, from the least to the one that it wants; the narrowest get theirs first.

    >>> _shared(20, [4, 4, 4], [4, 5, 30]), _shared(5, [4, 4], [4, 9])
    ([4, 5, 11], [4, 4])
    """
    widths, left = list(least), room - sum(least)
    for index in sorted(range(len(least)), key=lambda index: wanted[index] - least[index]):
        more = max(0, min(left, wanted[index] - least[index]))
        widths[index] += more
        left -= more
    return widths


def _is_number(value: object) -> bool:
    """Whether it is one, or a percentage, or the dash that stands for one that there is not."""
    return isinstance(value, int | float) or (isinstance(value, str) and bool(re.fullmatch(r"\d[\d.,]*%|-", value)))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
