"""The rows of parity and bench as the cells of a table, for terminals and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diracnets.deploy.row import Row, Timing


def columns(rows: Sequence[Row]) -> list[str]:
    """The titles of `cells`."""
    batches = _batches(rows)
    timed = [(f"{batch} image{'s' * (batch > 1)}, ms", "ratio", "of peak") for batch in batches]
    return [
        *("backend", "precision", "network", "top-1", "agreement", "difference"),
        *[title for titles in timed for title in titles],
        *("start, s", f"RAM, MB: start / {' / '.join(map(str, batches))}", "file, MB", "not measured, because"),
    ]


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each row; what was not measured is empty."""
    batches = _batches(rows)
    return [
        [
            *(row.backend, row.precision, row.network),
            _percent(row.top1),
            _percent(row.agreement),
            "" if row.difference is None else f"{row.difference:.1e}",
            *[cell for batch in batches for cell in _timing(row.latency.get(batch))],
            "" if row.start_seconds is None else f"{row.start_seconds:.2f}",
            _megabytes(row.start_bytes, *(row.running_bytes.get(batch) for batch in batches)),
            _megabytes(row.file_bytes),
            row.reason,
        ]
        for row in rows
    ]


def without_empty(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that hold anything, and of more than one network its name.

    >>> without_empty(["a", "b"], [["1", ""], ["2", ""]])
    (['a'], [['1'], ['2']])
    """
    kept = [
        index
        for index, title in enumerate(titles)
        if any(line[index] for line in lines) and (title != "network" or len({line[index] for line in lines}) > 1)
    ]
    return [titles[index] for index in kept], [[line[index] for index in kept] for line in lines]


def reasons(rows: Iterable[Row]) -> list[str]:
    """What was not measured and why, a sentence for each reason and precision."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.precision, row.reason), []).append(row.backend)
    return [
        f"{', '.join(dict.fromkeys(backends))} in {precision}: {reason}"
        for (precision, reason), backends in found.items()
    ]


def _batches(rows: Sequence[Row]) -> list[int]:
    return sorted({batch for row in rows for batch in row.latency})


def _timing(timing: Timing | None) -> tuple[str, str, str]:
    if timing is None:
        return "", "", ""
    low, high = timing.ratio_quartiles
    peak = "" if timing.of_peak is None else f"{timing.of_peak:.2f}"
    return f"{1e3 * timing.seconds:.4g}", f"{timing.ratio:.3f} ({low:.3f} to {high:.3f})", peak


def _megabytes(*sizes: int | None) -> str:
    return " / ".join(f"{size / 1e6:.1f}" for size in sizes if size is not None)


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.2%}"
