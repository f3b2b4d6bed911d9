import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets.studies.overview import reached, study_pages
from diracnets.studies.records import Asked, Record, Results
from diracnets.studies.study import Budget
from diracnets.studies.targets import TARGETS, Lead, Target

FIRST, SECOND = {"network": "diracnet-10-0.25"}, {"network": "wrn-16-0.25"}


@pytest.fixture
def made(small_study, circumstances):
    """Results with the given accuracies of each row, at a budget."""

    def make(accuracies, measure="accuracy", budget=None, known=None):
        results = known or replace(Results.of(small_study, circumstances), measure=measure)
        asked = [Asked.of(row, small_study, budget or Budget()) for row in small_study.rows]
        results.ask(asked)
        for row, values in zip(asked, accuracies, strict=True):
            for seed, value in enumerate(values):
                outcome = "trained" if value is not None else "diverged"
                results.add(
                    [
                        Record(
                            row.row,
                            row.key,
                            seed,
                            outcome,
                            value,
                            None,
                            None,
                            2,
                            600.0,
                            9.0,
                            {**circumstances, "jobs": 1},
                        )
                    ]
                )
        return results

    return make


@pytest.mark.parametrize(
    ("accuracies", "measure", "limit", "minutes", "state"),
    [
        ([0.9, 0.92], "accuracy", 91.0, None, "reached"),
        ([0.9, 0.92], "accuracy", 91.1, None, "not reached"),
        ([0.9, 0.92], "error", 9.0, None, "reached"),
        ([0.9, 0.92], "error", 8.9, None, "not reached"),
        ([0.9], "accuracy", 80.0, 10, "reached"),
        ([0.9], "accuracy", 80.0, 9, "not reached"),
        ([None, 0.9], "accuracy", 80.0, None, "reached"),
        ([None], "accuracy", 0.0, None, "not reached"),
        ([], "accuracy", 0.0, None, "not measured"),
    ],
)
def test_a_target_is_judged_by_the_mean_and_the_time(made, accuracies, measure, limit, minutes, state):
    target = Target("so good", "small", FIRST, limit, minutes)
    assert target.judge(made([accuracies, [1.0]], measure)).state == state


@pytest.mark.parametrize(
    ("margin", "measure", "state"),
    [
        (10, "accuracy", "reached"),
        (11, "accuracy", "not reached"),
        (-10, "error", "reached"),
        (20, "error", "not reached"),
    ],
)
def test_a_lead_is_judged_by_its_margin(made, margin, measure, state):
    accuracies = [[0.8], [0.7]] if measure == "accuracy" else [[0.7], [0.8]]
    lead = Lead("better", "small", FIRST | {"depth": 10}, SECOND | {"depth": 16}, margin)
    assert lead.judge(made(accuracies, measure)).state == state


def test_a_lead_compares_equal_budgets_alone(made):
    lead = Lead("better", "small", FIRST | {"depth": 10}, SECOND | {"depth": 16})
    results = made([[0.9], []], budget=Budget(epochs=2))
    made([[], [0.5]], known=results)
    assert lead.judge(results).state == "not measured"
    made([[0.4], []], known=results)
    verdict = lead.judge(results)
    assert verdict.state == "not reached"
    assert "40.00% accuracy (digits-diracnet-10-0.25: 1 seed, 8 epochs, 10 minutes each)" in verdict.told


def test_a_lead_over_what_diverged_is_reached_but_not_by_what_diverged(made):
    lead = Lead("better", "small", FIRST | {"depth": 10}, SECOND | {"depth": 16}, 10)
    verdict = lead.judge(made([[0.8], [None]]))
    assert verdict.state == "reached"
    assert "against diverged (digits-wrn-16-0.25: 1 seed" in verdict.told
    assert lead.judge(made([[None], [0.1]])).state == "not reached"
    assert lead.judge(made([[None], [None]])).state == "not reached"


def test_a_lead_compares_recipes_that_differ_in_the_start_alone(made):
    lead = Lead("better", "small", FIRST | {"depth": 10}, SECOND | {"depth": 16})
    for name, value, state in (("bias", 1.0, "reached"), ("scale_lr", 0.01, "reached"), ("lr", 0.3, "not measured")):
        results = made([[0.9], [0.5]])
        results.rows[1] = replace(results.rows[1], recipe={**results.rows[1].recipe, name: value})
        assert lead.judge(results).state == state


def test_the_rival_may_have_had_rates_of_its_own(made):
    lead = Lead("better", "small", FIRST | {"depth": 10}, SECOND | {"depth": 16})
    results = made([[0.9], [0.5]])
    results.rows[1] = replace(results.rows[1], recipe={**results.rows[1].recipe, "lr": 0.3}, rate=0.3)
    assert lead.judge(results).state == "reached"
    results.rows = [replace(results.rows[0], rate=0.1), replace(results.rows[1], rate=None)]
    assert lead.judge(results).state == "not measured"


def test_a_lead_tells_which_rivals_are_missing(made):
    rivals = {"network": ("wrn-16-0.25", "another"), "depth": 16}
    verdict = Lead("better", "small", FIRST | {"depth": 10}, rivals).judge(made([[0.9], [0.5]]))
    assert verdict.state == "reached"
    assert verdict.told.endswith("; not trained beside it: another")


def test_a_verdict_tells_of_seeds_that_diverged(made):
    told = Target("", "small", FIRST, 0.0).judge(made([[0.5, None], []])).told
    assert "1 seed and 1 that diverged" in told


def test_without_files_nothing_is_reached(tmp_path):
    lines = reached(tmp_path).splitlines()
    assert len(lines) == len(TARGETS) + 2
    assert all("| not measured |" in line for line in lines[2:])
    (page,) = study_pages(tmp_path, "../results")
    assert page.startswith("## Errors on CIFAR-10")
    assert page.count("not trained yet") == 10
    assert "21.54 (quoted" in page
    assert "| cifar10 | wrn-28-10 | paper-cifar | 36,479,194 | 4.00" in page


def test_targets_name_rows_that_their_studies_have():
    from diracnets.studies.cifar import Cifar
    from diracnets.studies.depth import Depth

    studies = {"cifar": Cifar().study(), "depth": Depth().study()}
    for target in TARGETS:
        for place in (target.place, target.than) if isinstance(target, Lead) else ():
            rows = studies[target.study].rows
            wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in place.items()}
            assert any(all(row.place[name] in values for name, values in wanted.items()) for row in rows)
        if isinstance(target, Target):
            rows = studies[target.study].rows
            assert any(all(row.place[name] == value for name, value in target.place.items()) for row in rows)


def test_pages_of_studies_come_one_level_lower(made, tmp_path):
    made([[0.5], [0.6]]).write(tmp_path / "small.json")
    (tmp_path / "small.png").touch()
    (tmp_path / "lens.json").write_text(json.dumps({"study": "lens"}))
    (tmp_path / "lens.md").write_text("# Lens\n\n## Layers\n\n![a](lens.png) ![b](https://example.org/b.png)\n")
    (tmp_path / "other.json").write_text("{}")
    _, lens, small = study_pages(tmp_path, "../results")
    assert lens == "## Lens\n\n### Layers\n\n![a](../results/lens.png) ![b](https://example.org/b.png)"
    assert "![A small study](../results/small.png)" in small
    assert small.startswith("## A small study")


def test_the_page_in_the_repository_is_what_its_files_say():
    root = Path(__file__).parents[2]
    page = root / "docs/results.md"
    if not page.exists():
        pytest.skip("the tests are not in their repository")
    text = page.read_text(encoding="utf-8")
    assert reached(root / "results") in text
    for section in study_pages(root / "results", "../results"):
        assert section in text, "run python benchmarks/pages.py"
    for link in re.findall(r"\]\((\.\./results/[^)]+)\)", text):
        assert (page.parent / link).exists()
