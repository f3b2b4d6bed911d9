"""All studies on one page: what is reached, and what is not, then each study's own page, from the files in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from diracnets.studies.cifar import Cifar
from diracnets.studies.records import Asked, Results
from diracnets.studies.report import markdown_table, read_json
from diracnets.studies.side_by_side import SideBySide
from diracnets.studies.study import Budget
from diracnets.studies.table import page
from diracnets.studies.targets import TARGETS


def reached(folder: Path) -> str:
    """A table of the targets: reached, not reached or not measured, as the records in a folder have it.

    Args:
        folder: of the studies' JSON files; those that are missing measure nothing.

    Raises:
        FileError: a file is damaged.
    """
    verdicts = []
    for target in TARGETS:
        path = folder / f"{target.study}.json"
        verdict = target.judge(read_json(path)) if isinstance(target, SideBySide) else target.judge(_results(path))
        verdicts.append((target.goal, verdict))
    return markdown_table(
        ["goal", "state", "the best there is"],
        [[goal, verdict.state, verdict.told or "-"] for goal, verdict in verdicts],
    )


def study_pages(folder: Path, pictures: str) -> list[str]:
    """The pages of all studies in a folder, with headings one level lower.

    A study of trainings is told from its records, rows included that others published and that are not trained yet;
    for other studies, the page is taken that the study wrote.

    Args:
        folder: of the studies' JSON files.
        pictures: what leads from the page to that folder, such as "../results".

    Raises:
        FileError: a file is damaged.
    """
    pages = []
    for path in sorted({*folder.glob("*.json"), folder / "cifar.json"}):
        content = read_json(path) or {}
        written = path.with_suffix(".md")
        if (results := _results(path)) is not None:
            picture = path.with_suffix(".png")
            text = page(results, picture.name if picture.exists() else None)
        elif "study" in content and written.exists():
            text = written.read_text(encoding="utf-8")
        else:
            continue
        lower = re.sub(r"^(#+ )", r"#\1", text.strip(), flags=re.MULTILINE)
        pages.append(re.sub(r"(!\[[^\]]*\]\()(?![./]|https?:)", rf"\1{pictures}/", lower))
    return pages


def _results(path: Path) -> Results | None:
    content = read_json(path)
    if path.name == "cifar.json":
        return _with_published(Results.read(path))
    return Results.read(path) if content is not None and "records" in content else None


def _with_published(results: Results | None) -> Results:
    """The results of the study `cifar`, with the rows that others published."""
    study = Cifar().study()
    results = results or Results.of(study, None)
    there = {row.row for row in results.rows}
    results.ask(Asked.of(row, study, Budget()) for row in study.rows if row.published and row.name not in there)
    results.count_parameters()
    return results
