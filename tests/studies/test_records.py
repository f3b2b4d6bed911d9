import dataclasses
import json

import pytest

from diracnets.errors import FileError
from diracnets.studies.records import add_record, key_of, read_records
from diracnets.training.recipe import Recipe


def test_a_file_gives_back_the_records_and_grows(record, tmp_path):
    path = tmp_path / "new" / "small.jsonl"
    assert read_records(path) == []
    first, second = record(0, 0.5), record(1, None, seed=3)
    add_record(path, first)
    text = path.read_text()
    add_record(path, second)
    assert path.read_text().startswith(text)
    assert read_records(path) == [first, second]


def test_a_repeated_run_counts_once_as_it_was_last(record, tmp_path):
    for accuracy in (0.5, 0.6):
        add_record(tmp_path / "a.jsonl", record(0, accuracy))
    assert [each.result["accuracy"] for each in read_records(tmp_path / "a.jsonl")] == [0.6]


@pytest.mark.parametrize("changes", [{"lr": 0.2}, {"seed": 1}, {"num_images": 100}, {"epochs": 1}, {"compile": True}])
def test_every_setting_makes_another_run(record, small_study, changes):
    changes = {"num_train" if name == "num_images" else name: value for name, value in changes.items()}
    row = small_study.rows[0]
    assert record(0, 0.5).key == key_of(row)
    assert record(0, 0.5, **changes).key != key_of(row)
    assert record(0, 0.5, **changes).key == key_of(type(row)(row.name, row.axes, row.recipe.replaced(**changes)))


def test_a_setting_that_recipes_gained_later_changes_no_run(record, small_study):
    old = record(0, 0.5)
    runtime = {name: value for name, value in old.recipe["runtime"].items() if name != "deterministic"}
    recipe = {**old.recipe, "runtime": runtime}
    assert dataclasses.replace(old, recipe=recipe).key == key_of(small_study.rows[0])


def test_files_of_the_version_before_are_read(small_study, tmp_path):
    recipe = {"model": "diracnet-10-0.25", "data": "digits", "lr": 0.2, "epochs": 4, "drops": [2]}
    row = {"row": "r", "key": "k", "place": {"depth": 10}, "recipe": {**recipe, "seed": 0}, "full_epochs": 8}
    numbers = {"loss": 1.5, "epochs": 4, "seconds": 60.0, "images_per_second": 99.0, "machine": {"device": "d"}}
    old = {"row": "r", "key": "k", "outcome": "trained", "message": "", **numbers}
    records = [
        {**old, "seed": 0, "accuracy": 0.5, "chain_accuracy": 0.5},
        {**old, "seed": 1, "accuracy": None, "chain_accuracy": None, "outcome": "diverged"},
    ]
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"study": "small", "rows": [row], "records": records}))
    with pytest.warns(FutureWarning, match=r"small\.json has recipes of an earlier version"):
        first, second = read_records(path)
    numbers = {"loss": 1.5, "epochs": 4, "seconds": 60.0, "images_per_second": 99.0}
    assert first.result == {"accuracy": 0.5, "chain_accuracy": 0.5, **numbers}
    assert second.result == {"accuracy": None, **numbers}
    assert (second.row, second.axes, second.full_epochs, second.environment) == ("r", {"depth": 10}, 8, {"device": "d"})
    changes = {"model": "diracnet-10-0.25", "data": "digits", "lr": 0.2, "epochs": 4, "milestones": (2,)}
    assert first.settings == Recipe().replaced(**changes, recalibrate_bn=False).settings()
    assert second.settings["seed"] == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("text", ["[1]", "{", '{"row": "small"}', '{"rows": [{}], "records": [{}]}', "\udcff"])
def test_a_damaged_file_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(FileError, match=name):
        read_records(tmp_path / name)
