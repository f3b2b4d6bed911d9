"""What measurements are reported with: Markdown tables, mean and spread, the environment in a line, figures, files."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diracnets.errors import MissingExtraError
from diracnets.evaluation.plots import new_figure, save_figure
from diracnets.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Say = Callable[[str], None]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a column without any value is left out.

    >>> print(markdown_table(["network", "error", "note"], [["diracnet-28-5", "5.2", ""], ["vgg-16", "6.1", ""]]))
    | network | error |
    | --- | --- |
    | diracnet-28-5 | 5.2 |
    | vgg-16 | 6.1 |
    """
    lines = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    kept = [index for index in range(len(columns)) if any(line[index] for line in lines)]
    return "\n".join(
        f"| {' | '.join(line[index] for index in kept)} |" for line in [columns, ["---"] * len(columns), *lines]
    )


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the standard deviation of the sample where there is one; nothing for no values.

    >>> mean_and_spread([91.0, 92.0]), mean_and_spread([91.0]), mean_and_spread([])
    ('91.50 ± 0.71', '91.00', '')
    """
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def machine_name(environment: Mapping[str, Any]) -> str:
    """What computed: a graphics card by its name, a processor with its number of threads.

    >>> machine_name({"device": "AMD EPYC", "processor": "AMD EPYC", "threads": 2})
    'AMD EPYC, 2 threads'
    """
    device, threads = environment["device"], environment["threads"]
    if device != environment["processor"]:
        return str(device)
    return f"{device}, {threads} thread{'s' * (threads != 1)}"


def environment_line(environment: Mapping[str, Any]) -> str:
    """The environment of a measurement in one line of Markdown.

    Args:
        environment: what `diracnets.runtime.environment.circumstances` returns.
    """
    versions, sets = environment["versions"], environment["instructions"]
    processor = machine_name(environment) + (f" ({', '.join(sets)})" if sets else "")
    command = shlex.join(environment["command"])
    return f"{processor}; torch {versions['torch']}, Python {versions['python']}: `{command}`"


def write_report(
    folder: Path,
    facts: Mapping[str, Any],
    page: Callable[..., str],
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    say: Say,
) -> None:
    """Write what was measured: NAME.json, NAME.png (if matplotlib is installed) and NAME.md.

    Args:
        folder: where to.
        facts: all numbers; "study" is NAME.
        page: makes the Markdown from the facts, `page(facts, picture=...)`, with or without the figure.
        draw: draws on an empty figure.
        size: width and height of the figure, in inches.
        say: takes one line about what was written.

    Raises:
        FileError: a file cannot be written.
    """
    name = facts["study"]
    write_text(folder / f"{name}.json", json.dumps(facts, indent=2, ensure_ascii=False))
    drawn = draw_png(folder / f"{name}.png", draw, *size, say)
    write_text(folder / f"{name}.md", page(facts, picture=drawn))
    say(f"wrote {name}.json, {name}.md{f' and {name}.png' if drawn else ''} to {folder}")


def draw_png(path: Path, draw: Callable[[Figure], None], width: float, height: float, say: Say) -> bool:
    """Draw a figure of so many inches into a PNG; returns False, and says so, if matplotlib is not installed.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        figure = new_figure(width, height)
    except MissingExtraError as error:
        say(f"no {path.name}: {error}")
        return False
    draw(figure)
    save_figure(figure, path)
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, with a newline at its end.

    Raises:
        FileError: it cannot be written.
    """
    with written_whole(path) as part:
        part.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
