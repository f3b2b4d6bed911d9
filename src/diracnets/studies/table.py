"""The page of a study of trainings: its question, its table, and what was scaled down, from the records alone."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diracnets.studies.rates import Told, rate_of, told_rows
from diracnets.studies.records import Asked, Record, Results
from diracnets.studies.report import machine_name, markdown_table, mean_and_spread, told
from diracnets.studies.study import Published, settings
from diracnets.training.recipe import Recipe


def page(results: Results, picture: str | None) -> str:
    """The results as Markdown.

    Args:
        results: all that is known.
        picture: the file of the picture, beside the page.
    """
    parts = [f"# {results.title}", results.question, *_notes(results)]
    if picture:
        parts.append(f"![{results.title}]({picture})")
    parts.append(_table(results))
    if several := [line for line in told_rows(results) if len(line.tried) > 1]:
        parts += [f"{results.measure.capitalize()} at each rate, %:", _by_rate(results, several)]
    if results.circumstances is not None:
        parts.append(f"Last call: {told(results.circumstances)}")
    return "\n\n".join(parts)


def percents(results: Results, records: Sequence[Record], *, chain: bool = False) -> list[float]:
    """What the study measures, in percent, of each training that did not diverge."""
    accuracies = [record.chain_accuracy if chain else record.accuracy for record in records]
    return [100 * ((1 - value) if results.measure == "error" else value) for value in accuracies if value is not None]


def mean_minutes(records: Sequence[Record]) -> float:
    """Minutes of a training's steps, on average: of those that came to their end, where there are any."""
    ended = [record for record in records if record.outcome == "trained"] or records
    return statistics.fmean(record.seconds for record in ended) / 60


def _notes(results: Results) -> list[str]:
    wanted = sum(row.seeds for row in results.rows)
    done = sum(min(row.seeds, len(results.of_row(row))) for row in results.rows)
    notes = []
    if done < wanted:
        notes.append(f"**Partial: {done} of {wanted} trainings are finished.**")
    lines = told_rows(results)
    cuts = Counter(text for line in lines if (text := _cut(line.row)))
    if cuts:
        listed = "; ".join(f"{count} row{'s' * (count != 1)} at {text}" for text, count in cuts.items())
        notes.append(f"Scaled down to a budget: {listed}.")
    notes.append(
        f"{results.measure.capitalize()} is that of the last epoch, on all held-out images: mean and standard "
        "deviation over the seeds that did not diverge. Minutes are those of one seed's training, without evaluation."
    )
    if any(line.tried for line in lines):
        notes.append(
            "Where rates are told, the row was trained with each of them, and its line is that of the best, which was "
            "chosen by the images that are reported: a little of it may be luck."
        )
    return notes


def _cut(row: Asked) -> str:
    """What the budget took from a row, if anything."""
    epochs, images = row.recipe["epochs"], row.recipe.get("images")
    cuts = [f"{epochs} of {row.full_epochs} epochs"] * (epochs < row.full_epochs)
    cuts += [f"{row.seeds} of {row.full_seeds} seeds"] * (row.seeds < row.full_seeds)
    cuts += [f"{images:,} training images"] if images else []
    return ", ".join(cuts)


def _table(results: Results) -> str:
    places = list(dict.fromkeys(name for row in results.rows for name in row.place))
    measure = f"{results.measure}, %"
    columns = [*places, "parameters", "rate", f"published {measure}", measure, "against published"]
    columns += [
        f"folded chain, {measure}",
        "trained",
        "diverged",
        "epochs",
        "training images",
        "minutes",
        "images a second",
        "on",
    ]
    columns.append("set otherwise")
    return markdown_table(
        columns, [[*_line(results, each, places), _set_otherwise(results, each.row)] for each in told_rows(results)]
    )


def _line(results: Results, line: Told, places: Sequence[str]) -> list[object]:
    row = line.row
    records = results.of_row(row)
    values, folded = percents(results, records), percents(results, records, chain=True)
    diverged = [record for record in records if record.outcome == "diverged"]
    published, against = "", ""
    if row.published:
        published = published_text(row.published, results.measure)
        if values:
            against = f"{statistics.fmean(values) - published_value(row.published, results.measure):+.2f}"
    epochs, images = row.recipe["epochs"], row.recipe.get("images")
    rates = [record.images_per_second for record in records if record.images_per_second is not None]
    return [
        *(_cell(row.place.get(name, "")) for name in places),
        "" if row.parameters is None else f"{row.parameters:,}",
        _rate(results, line),
        published,
        mean_and_spread(values) or ("not trained yet" if not records else "diverged"),
        against,
        mean_and_spread(folded),
        f"{len(records)} of {row.seeds} seeds",
        f"{len(diverged)} of {len(records)}" if diverged else "",
        f"{epochs} of {row.full_epochs}" if epochs < row.full_epochs else str(epochs),
        f"{images:,}" if images else "",
        f"{mean_minutes(records):.1f}" if records else "",
        f"{statistics.median(rates):,.0f}" if rates else "",
        "; ".join(dict.fromkeys(_machine(record) for record in records)),
    ]


def _rate(results: Results, line: Told) -> str:
    """A row's rate, where it was chosen, or where rows by a recipe of that name have different ones."""
    mine = rate_of(line.row)
    if len(line.tried) > 1:
        return f"{mine:g}, best of {', '.join(f'{rate_of(row):g}' for row in line.tried)}"
    recipe = line.row.place.get("recipe")
    rates = {rate_of(other) for other in results.rows if other.place.get("recipe") == recipe}
    return f"{mine:g}" if line.tried or len(rates) > 1 else ""


def _by_rate(results: Results, lines: Sequence[Told]) -> str:
    """What each of several rates gave."""
    places = list(dict.fromkeys(name for line in lines for name in line.row.place))
    rates = sorted({rate_of(row) for line in lines for row in line.tried})
    rows = []
    for line in lines:
        gave = {rate_of(row): _gave(results, results.of_row(row)) for row in line.tried}
        place = [_cell(line.row.place.get(name, "")) for name in places]
        rows.append([*place, *(gave.get(rate, "") for rate in rates), _set_otherwise(results, line.row)])
    return markdown_table([*places, *(f"{rate:g}" for rate in rates), "set otherwise"], rows)


def _gave(results: Results, records: Sequence[Record]) -> str:
    values = percents(results, records)
    lost = len(records) - len(values)
    return ", ".join([mean_and_spread(values)] * bool(values) + [f"{lost} of {len(records)} diverged"] * bool(lost))


def _set_otherwise(results: Results, row: Asked) -> str:
    """How a row's recipe differs from others of the same row, such as by a recipe's name before that was changed."""
    told = ("epochs", "images", "drops", "seed")  # in columns of their own, or as these have it
    others = [line.row for line in told_rows(results) if line.row.row == row.row and line.row.key != row.key]
    mine, *theirs = (
        {name: value for name, value in settings(each.recipe).items() if name not in told} for each in (row, *others)
    )
    names = sorted({name for other in theirs for name in {*mine, *other} if mine.get(name) != other.get(name)})
    return ", ".join(f"{name} {_setting(row.recipe, name)}" for name in names)


def _setting(recipe: Mapping[str, Any], name: str) -> str:
    value = recipe.get(name, Recipe().table().get(name, "not given"))
    return " ".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else str(value)


def published_value(published: Published, measure: str) -> float:
    """A published error as what the study measures, in percent."""
    return published.error if measure == "error" else 100 - published.error


def published_text(published: Published, measure: str) -> str:
    """A published number with its spread and its source.

    >>> published_text(Published(4.75, 0.16, "remembered, not checked"), "error")
    '4.75 ± 0.16 (remembered, not checked)'
    """
    spread = f" ± {published.spread:.2f}" if published.spread is not None else ""
    return f"{published_value(published, measure):.2f}{spread} ({published.source})"


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _machine(record: Record) -> str:
    beside = f", {record.machine['jobs']} beside each other" if record.machine["jobs"] > 1 else ""
    return f"{machine_name(record.machine)}, {record.machine['precision']}{beside}"
