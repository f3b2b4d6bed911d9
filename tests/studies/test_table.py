import json
from dataclasses import replace

import pytest

from diracnets import create_model
from diracnets.studies.lines import draw, series_names
from diracnets.studies.records import Asked, Record, Results
from diracnets.studies.study import Budget, Lines
from diracnets.studies.table import page


def record(row, seed, accuracy, **values):
    machine = {"device": "Abacus", "processor": "Abacus", "threads": 2, "precision": "float32", "jobs": 1}
    outcome = "trained" if accuracy is not None else "diverged"
    return Record(row.row, row.key, seed, outcome, accuracy, None, None, 2, 90.0, 100.0, {**machine, **values})


@pytest.fixture
def results(small_study, circumstances):
    made = Results.of(small_study, circumstances)
    made.ask(Asked.of(row, small_study, Budget()) for row in small_study.rows)
    return made


def cells(text, network):
    header, _, *lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("|")]
    (line,) = [line for line in lines if line[0] == network]
    return dict(zip(header, line, strict=True))


def test_ours_stands_beside_the_published(results):
    results.add([record(results.rows[0], seed, accuracy) for seed, accuracy in enumerate((0.88, 0.92))])
    row = cells(page(results, None), "diracnet-10-0.25")
    assert row["accuracy, %"] == "90.00 ± 2.83"
    assert row["published accuracy, %"] == "90.00 ± 0.50 (a book)"
    assert row["against published"] == "+0.00"
    assert row["trained"] == "2 of 3 seeds"
    assert row["minutes"] == "1.5"
    assert row["on"] == "Abacus, 2 threads, float32"


def test_errors_are_told_where_errors_are_asked_for(results):
    results = replace(results, measure="error")
    results.add([record(results.rows[0], 0, 0.88)])
    row = cells(page(results, None), "diracnet-10-0.25")
    assert (row["error, %"], row["published error, %"], row["against published"]) == (
        "12.00",
        "10.00 ± 0.50 (a book)",
        "+2.00",
    )


def test_parameters_are_counted_where_a_file_lacks_them(results, tmp_path):
    path = tmp_path / "small.json"
    results.rows = [
        replace(row, recipe={**row.recipe, "model": "diracnet-16-0.25", "data": data}, place={"network": data})
        for data, row in zip(("cifar10", "cifar100"), results.rows, strict=True)
    ]
    results.write(path)
    content = json.loads(path.read_text())
    for row in content["rows"]:
        del row["parameters"]  # as they were written before there were any
    path.write_text(json.dumps(content))
    found = Results.read(path)
    assert "parameters" not in page(found, None)
    found.count_parameters()
    for classes, row in zip((10, 100), found.rows, strict=True):
        net = create_model("diracnet-16-0.25", num_classes=classes)
        assert row.parameters == sum(parameter.numel() for parameter in net.parameters())
        assert cells(page(found, None), row.place["network"])["parameters"] == f"{row.parameters:,}"


def test_rows_without_a_training_say_so(results):
    results.add([record(results.rows[0], 0, None)])
    text = page(results, None)
    assert cells(text, "diracnet-10-0.25")["accuracy, %"] == "diverged"
    assert cells(text, "wrn-16-0.25")["accuracy, %"] == "not trained yet"
    assert "**Partial: 1 of 6 trainings are finished.**" in text
    assert "Scaled down" not in text


def test_what_the_budget_took_is_told(small_study, results):
    results.ask([Asked.of(small_study.rows[0], small_study, Budget(epochs=2, seeds=1, images=500))])
    text = page(results, None)
    assert "Scaled down to a budget: 1 row at 2 of 8 epochs, 1 of 3 seeds, 500 training images." in text


def test_rows_of_one_name_tell_how_their_recipes_differ(small_study, results):
    row = small_study.rows[0]
    changed = replace(row, recipe=replace(row.recipe, lr=0.3, epochs=4))
    results.ask([Asked.of(changed, small_study, Budget())])
    lines = [line for line in page(results, None).splitlines() if line.startswith("| diracnet")]
    assert [line.rpartition(" | ")[2] for line in lines] == ["lr 0.1 |", "lr 0.3 |"]
    assert "set otherwise" not in page(replace(results, rows=results.rows[:2]), None)


def test_rows_by_one_recipe_tell_their_rates_where_these_differ(small_study, results):
    assert "rate" not in page(results, None).split("| --- |")[0]
    other = small_study.rows[1]
    results.ask([Asked.of(replace(other, recipe=replace(other.recipe, lr=0.3)), small_study, Budget())])
    results.rows = [results.rows[0], results.rows[-1]]
    text = page(results, None)
    assert cells(text, "diracnet-10-0.25")["rate"] == "0.1"
    assert cells(text, "wrn-16-0.25")["rate"] == "0.3"


def test_minutes_are_of_trainings_that_came_to_their_end(results):
    done = record(results.rows[0], 0, 0.5)
    results.add([done, replace(record(results.rows[0], 1, None), seconds=1.0)])
    assert cells(page(results, None), "diracnet-10-0.25")["minutes"] == "1.5"


def test_different_machines_are_all_told(results):
    results.add([record(results.rows[0], 0, 0.5), record(results.rows[0], 1, 0.5, device="GPU", jobs=2)])
    assert cells(page(results, None), "diracnet-10-0.25")["on"] == (
        "Abacus, 2 threads, float32; GPU, float32, 2 beside each other"
    )


@pytest.mark.parametrize("last", [None, 0.6])
@pytest.mark.parametrize("picture", [None, Lines("depth", "network"), Lines("depth", "network", ("network",))])
def test_pictures_are_drawn_of_what_there_is(results, picture, last, tmp_path):
    results = replace(results, picture=picture)
    said = []
    draw(results, tmp_path / "empty.png", said.append)
    assert list(tmp_path.iterdir()) == []
    results.add([record(results.rows[0], 0, 0.5), record(results.rows[1], 0, last)])
    draw(results, tmp_path / "picture.png", said.append)
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
    assert said == []


def test_budgets_are_lines_of_their_own(small_study, results):
    shape = small_study.picture
    assert series_names(results.rows, shape) == ["diracnet-10-0.25", "wrn-16-0.25"]
    results.ask([Asked.of(small_study.rows[0], small_study, Budget(epochs=2))])
    assert series_names(results.rows, shape)[::2] == ["diracnet-10-0.25, 8 epochs", "diracnet-10-0.25, 2 epochs"]
    apart = [replace(row, place={**row.place, "epochs": row.recipe["epochs"]}) for row in results.rows]
    names = series_names(apart, replace(shape, panels=("epochs",)))
    assert names == ["diracnet-10-0.25", "wrn-16-0.25", "diracnet-10-0.25"]


def test_a_file_gives_back_the_results(results, tmp_path):
    results.add([record(results.rows[0], 0, 0.5)])
    results.write(tmp_path / "small.json")
    assert Results.read(tmp_path / "small.json") == results
    assert Results.read(tmp_path / "none.json") is None


def test_a_row_asked_for_again_has_no_fewer_seeds_than_were_trained(small_study, results):
    results.add([record(results.rows[0], seed, 0.5) for seed in range(2)])
    results.ask([Asked.of(row, small_study, Budget(seeds=1)) for row in small_study.rows])
    assert [row.seeds for row in results.rows] == [2, 1]


def test_rows_of_which_nothing_was_trained_are_forgotten(results):
    results.add([record(results.rows[1], 0, 0.5)])
    results.forget_untrained()
    assert [row.row for row in results.rows] == ["digits-wrn-16-0.25"]
