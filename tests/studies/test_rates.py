import json
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets.cli import main
from diracnets.errors import UsageError
from diracnets.studies import lines
from diracnets.studies.conduct import conduct
from diracnets.studies.rates import at_rates, told_rows
from diracnets.studies.records import Results
from diracnets.studies.study import Budget
from diracnets.studies.targets import Lead
from diracnets.training.plots import new_figure
from diracnets.training.recipe import Recipe

DIRAC, WRN = "diracnet-10-0.25", "wrn-16-0.25"
RATES = (0.05, 0.2, 0.8)
TWO = Budget(epochs=2, seeds=2)
OUTCOMES = {  # by network, seed and rate
    (DIRAC, 0): {0.05: 0.5, 0.2: 0.8, 0.8: 0.99, 0.1: 0.6},
    (DIRAC, 1): {0.05: 0.9, 0.2: 0.7, 0.8: "diverged", 0.1: 0.6},
    (WRN, 0): {0.05: 0.7, 0.2: 0.6, 0.8: "diverged", 0.1: 0.6},
    (WRN, 1): {0.05: 0.7, 0.2: 0.6, 0.8: "diverged", 0.1: 0.6},
}


@pytest.fixture
def runs(fake_runs):
    """A launcher of pretended trainings whose outcome depends on the rate."""

    class Runs(fake_runs):
        def train(self, folder, log):
            recipe = Recipe.load(folder / "recipe.toml")
            self.outcomes = {(recipe.model, recipe.seed): OUTCOMES[recipe.model, recipe.seed][recipe.lr]}
            self.rates.append(recipe.lr)
            return super().train(folder, log)

    made = Runs({})
    made.rates = []
    return made


def conducted(study, options, runs):
    said = []
    conduct(study, options, said.append, runs)
    return Results.read(options.out / "small.json"), (options.out / "small.md").read_text(), said


def line(page, network, table=0):
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    header, _, *lines = [text[2:-2].split(" | ") for text in tables[table].splitlines()]
    (found,) = [cells for cells in lines if cells[0] == network]
    return dict(zip(header, found, strict=True))


def test_each_row_is_trained_with_every_rate_and_told_by_the_best(small_study, options, runs):
    results, page, said = conducted(small_study, options(budget=TWO, rates=RATES), runs)
    assert sorted(runs.rates) == sorted(RATES * 4)
    assert len(results.records) == 12  # the file has all
    assert {(row.row, row.rate, row.recipe["lr"]) for row in results.rows} == {
        (row.name, rate, rate) for row in small_study.rows for rate in RATES
    }
    best = line(page, DIRAC)  # 0.8 is better with one seed, but diverges with the other
    assert (best["rate"], best["accuracy, %"]) == ("0.2, best of 0.05, 0.2, 0.8", "75.00 ± 7.07")
    assert best["folded chain, accuracy, %"] == "75.00 ± 7.07"
    assert (line(page, WRN)["rate"], line(page, WRN)["accuracy, %"]) == ("0.05, best of 0.05, 0.2, 0.8", "70.00 ± 0.00")
    each = line(page, DIRAC, table=1)
    assert [each[f"{rate:g}"] for rate in RATES] == ["70.00 ± 28.28", "75.00 ± 7.07", "99.00, 1 of 2 diverged"]
    assert line(page, WRN, table=1)["0.8"] == "2 of 2 diverged"
    assert "its line is that of the best, which was chosen by the images that are reported" in page
    assert "Scaled down to a budget: 2 rows at" in page
    assert "set otherwise" not in page
    assert f"digits-{WRN} at rate 0.8, seed 1: diverged: the loss became NaN in epoch 2 (12 of 12)" in said


def test_the_picture_has_a_panel_over_the_rates_for_each_depth(small_study, options, runs, monkeypatch):
    results, _, _ = conducted(small_study, options(budget=TWO, rates=RATES), runs)
    figure = new_figure(5, 5)
    monkeypatch.setattr(lines, "save_picture", lambda path, draw, width, height, say: draw(figure))
    lines.draw(results, Path("small.png"), print)
    by_depth, dirac, wrn = figure.axes
    assert (by_depth.get_xlabel(), dirac.get_xlabel(), wrn.get_xlabel()) == ("depth", "rate", "rate")
    assert (dirac.get_title(), wrn.get_title()) == ("depth 10", "depth 16")
    found = [list(zip(*each.get_data(), strict=True)) for each in wrn.lines]
    assert [(0.05, 70.0), (0.2, 60.0)] in found
    assert [(0.8, 0)] in found  # where all diverged


def test_no_rates_are_no_panels(small_study, options, runs, monkeypatch):
    results, _, _ = conducted(small_study, options(budget=TWO), runs)
    figure = new_figure(5, 5)
    monkeypatch.setattr(lines, "save_picture", lambda path, draw, width, height, say: draw(figure))
    lines.draw(results, Path("small.png"), print)
    assert [axes.get_xlabel() for axes in figure.axes] == ["depth"]


def test_the_best_is_that_of_the_lowest_error(small_study, options, runs):
    _, page, _ = conducted(replace(small_study, measure="error"), options(budget=TWO, rates=RATES), runs)
    assert line(page, WRN)["error, %"] == "30.00 ± 0.00"


@pytest.mark.parametrize("rates", [(), (0.2,)])
def test_none_or_one_rate_leaves_the_table_as_it_is(rates, small_study, options, runs):
    results, page, said = conducted(small_study, options(budget=TWO, rates=rates), runs)
    assert {*runs.rates} == {*(rates or (0.1,))}
    assert [row.rate for row in results.rows] == [None, None]
    assert "| rate |" not in page
    assert "Where rates are told" not in page
    assert "at each rate" not in page
    assert not any("at rate" in text for text in said)


def test_what_was_trained_with_some_rates_is_not_trained_again(small_study, options, runs):
    conducted(small_study, options(budget=TWO), runs)
    conducted(small_study, options(budget=TWO, rates=(0.1, 0.2)), runs)
    assert sorted(runs.rates) == [0.1] * 4 + [0.2] * 4
    results, page, _ = conducted(small_study, options(budget=TWO, rates=(0.1, 0.2, 0.05)), runs)
    assert sorted(runs.rates) == [0.05] * 4 + [0.1] * 4 + [0.2] * 4
    assert line(page, DIRAC)["rate"] == "0.2, best of 0.05, 0.1, 0.2"
    again, other, _ = conducted(small_study, options(budget=TWO), runs)
    assert len(runs.rates) == 12
    assert [row.rate for row in again.rows] == [row.rate for row in results.rows]  # they stay rates among several
    assert line(other, DIRAC) == line(page, DIRAC)


def test_what_is_missing_of_the_rates_is_planned_and_told(small_study, options, runs):
    conducted(small_study, options(budget=TWO, rates=(0.05, 0.2), rows=("*wrn*",)), runs)
    said = []
    conduct(small_study, options(budget=TWO, rates=RATES, rows=("*wrn*",), plan=True), said.append, runs)
    assert said == [
        f"digits-{WRN} at rate {rate}: {done} of 2 trained, 2 epochs each"
        for rate, done in {0.05: 2, 0.2: 2, 0.8: 0}.items()
    ]


def test_other_budgets_are_lines_of_their_own(small_study, options, runs):
    conducted(small_study, options(budget=TWO, rates=RATES), runs)
    results, _, _ = conducted(small_study, options(budget=Budget(epochs=2, seeds=1, images=50), rates=RATES), runs)
    assert [(told.row.row, told.row.recipe.get("images")) for told in told_rows(results)] == [
        (row.name, images) for row in small_study.rows for images in (None, 50)
    ]


def test_a_lead_compares_the_best_of_each(small_study, options, runs):
    results, _, _ = conducted(small_study, options(budget=TWO, rates=(0.05, 0.2)), runs)
    place, than = {"network": DIRAC, "depth": 10}, {"network": WRN, "depth": 16}
    assert "75.00" in Lead("", "small", place, than, margin=4.9).judge(results).told
    assert [Lead("", "small", place, than, margin).judge(results).state for margin in (4.9, 5.1)] == [
        "reached",
        "not reached",
    ]


def test_muon_is_given_rates_of_its_filters(small_study):
    row = replace(small_study.rows[0], recipe=replace(small_study.rows[0].recipe, optimizer="muon"))
    assert [(each.recipe.filter_lr, each.recipe.lr) for each in at_rates(row, RATES)] == [
        (rate, row.recipe.lr) for rate in RATES
    ]


@pytest.mark.parametrize(("rates", "words"), [((0.1, 0.1), "give each of them once"), ((0.1, 0.0), "lr is 0.0, but")])
def test_rates_that_make_no_sense_are_refused(rates, words, small_study, options, tmp_path):
    with pytest.raises(UsageError, match=words):
        conduct(small_study, options(rates=rates), print, None)
    assert list(tmp_path.iterdir()) == []


def test_rates_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["study", "depth", "--data", "digits", "--depths", "10", "--width", "0.25", "--rows", "*wrn*"]
    budget = ["--budget.epochs", "1", "--budget.seeds", "1", "--budget.images", "200", "--precision", "float32"]
    assert main([*words, *budget, "--device", "cpu", "--rates", "0.01", "0.1"]) == 0
    content = json.loads(Path("results/depth.json").read_text())
    assert [row["recipe"]["lr"] for row in content["rows"]] == [row["rate"] for row in content["rows"]] == [0.01, 0.1]
    best = max(content["records"], key=lambda record: record["accuracy"])
    told = f"| {100 * best['accuracy']:.2f} |"
    assert told in Path("results/depth.md").read_text()
    assert ", best of 0.01, 0.1 |" in Path("results/depth.md").read_text()
