"""What a study writes with: Markdown tables, numbers with their spread, the line of circumstances, files."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diracnets.errors import FileError
from diracnets.files import written_whole
from diracnets.studies.picture import save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a column in which nothing stands is left out.

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


def machine_name(circumstances: Mapping[str, Any]) -> str:
    """What computed: a graphics card by its name, a processor with its threads.

    >>> machine_name({"device": "AMD EPYC", "processor": "AMD EPYC", "threads": 2})
    'AMD EPYC, 2 threads'
    """
    device, threads = circumstances["device"], circumstances["threads"]
    if device != circumstances["processor"]:
        return str(device)
    return f"{device}, {threads} thread{'s' * (threads != 1)}"


def told(circumstances: Mapping[str, Any]) -> str:
    """The circumstances of a measurement in one line of Markdown.

    Args:
        circumstances: what `diracnets.runtime.environment.circumstances` gives.
    """
    versions = circumstances["versions"]
    sets = f" ({', '.join(circumstances['instructions'])})" if circumstances["instructions"] else ""
    command = shlex.join(circumstances["command"])
    return f"{machine_name(circumstances)}{sets}; torch {versions['torch']}, Python {versions['python']}: `{command}`"


def write_study(
    folder: Path,
    facts: Mapping[str, Any],
    page: Callable[..., str],
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    say: Callable[[str], None],
) -> None:
    """Write what a study found: NAME.json, NAME.png where there is matplotlib, and NAME.md.

    Args:
        folder: where to.
        facts: all of it; "study" is its name.
        page: makes the Markdown of the facts, `page(facts, picture=...)`, with or without the picture.
        draw: draws on an empty figure.
        size: width and height of the figure, in inches.
        say: is told what was written.

    Raises:
        FileError: a file cannot be written.
    """
    name = facts["study"]
    write_json(folder / f"{name}.json", facts)
    drawn = save_picture(folder / f"{name}.png", draw, *size, say)
    write_text(folder / f"{name}.md", page(facts, picture=drawn))
    say(f"wrote {name}.json, {name}.md{f' and {name}.png' if drawn else ''} to {folder}")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is no such file.

    Raises:
        FileError: it cannot be read, or holds something else than a JSON object.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}; mend or delete it") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object; mend or delete it")
    return content


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole.

    Raises:
        FileError: it cannot be written.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, with a newline at its end.

    Raises:
        FileError: it cannot be written.
    """
    with written_whole(path) as part:
        part.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
