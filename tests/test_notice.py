"""NOTICE.md says where everything comes from that ships, and under which license."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTICE = (ROOT / "NOTICE.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in NOTICE.splitlines() if line[:2] == "| "]
FILES = {pattern: row for row in ROWS for pattern in re.findall(r"`([^`]*[/*][^`]*)`", row[0])}
PACKAGES = {row[0].strip("`"): row for row in ROWS if re.fullmatch(r"`[^/*]*`", row[0])}
WEIGHTS = sorted((ROOT / "src/diracnets/artifacts/weights").glob("*.json"))
NOT_SHIPPED = {"__pycache__", ".ruff_cache", ".mypy_cache"}


def shipped():
    for folder in ("src", "tests", "benchmarks", "results", "docs"):
        for file in (ROOT / folder).rglob("*"):
            written = folder == "docs" and file.suffix == ".md"
            if file.is_file() and not written and not NOT_SHIPPED & set(file.parts):
                yield file.relative_to(ROOT)


def matches(file, pattern):
    """Like Path.full_match of Python 3.13: ** stands for any folders, * for no slash."""
    parts = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("**/"))
    return re.fullmatch("(?:.*/)?".join(parts), file.as_posix()) is not None


def test_every_file_has_an_origin_and_a_license():
    files = list(shipped())
    assert len(files) > 300
    assert not (bare := [str(file) for file in files if not any(matches(file, each) for each in FILES)]), (
        f"add to NOTICE.md where these come from, and their license: {bare}"
    )
    there = {pattern for pattern in FILES if (ROOT / pattern.partition("/")[0]).is_dir()}
    assert not (gone := [each for each in there if not any(matches(file, each) for file in files)]), gone
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: file.stem)
def test_weights_have_the_license_and_data_of_their_card(file):
    about = json.loads(file.read_text(encoding="utf-8"))
    [row] = [row for pattern, row in FILES.items() if matches(file.relative_to(ROOT), pattern)]
    assert row[2].endswith(about["license"])
    assert re.search(rf"trained .*on {about['card']['data']['name']}\b", row[1])
    assert any(about["card"]["data"]["name"] in row[0].split(", ") for row in ROWS)
    assert about["url"] is None or "do not ship" in row[1]


def test_every_package_that_is_asked_for_has_a_license():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {name: {"all"} for name in map(bare, project["dependencies"])}
    for extra in extras.keys() - {"all"}:
        for each in map(bare, extras[extra]):
            wanted.setdefault(each, set()).add(extra)
    del wanted["diracnets"]
    assert sorted(PACKAGES) == sorted(wanted)
    for name, extra in wanted.items():
        assert extra <= set(PACKAGES[name][2].split(", ")), name


def bare(requirement):
    return re.match(r"[A-Za-z0-9-]+", requirement)[0]
