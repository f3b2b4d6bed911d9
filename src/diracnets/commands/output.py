"""Output of commands: results on stdout, notes on stderr, tables that stay readable in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from diracnets.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


def note(text: str) -> None:
    """Print one line on stderr."""
    print(printable(text), file=sys.stderr)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table with numbers aligned right and floats to three decimals.

    The first column is never wrapped: it holds the names that a reader copies.

    >>> stdout().print(table(["name", "parameters"], [["diracnet-16-1", 173402]]))
    name            parameters
    ──────────────────────────
    diracnet-16-1      173,402
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.show_edge = False
    rows = list(rows)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        widest = max((cell_len(_cell(row[0])) for row in rows), default=0) if index == 0 else None
        made.add_column(column, justify="right" if numeric else "left", overflow="fold", min_width=widest)
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
