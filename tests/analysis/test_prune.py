import json
from dataclasses import replace

import pytest

from diracnets import Recipe, create_model, evaluate, load, train, verify
from diracnets.commands.study import Prune
from diracnets.errors import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe().replaced(
        model="diracnet-16-0.25",
        data="digits",
        num_train=400,
        init="deep",
        epochs=3,
        batch_size=32,
        lr=0.1,
        schedule="one-cycle",
        precision="float32",
    )
    return train(recipe, run=tmp_path_factory.mktemp("prune") / "run", device="cpu", quiet=True)


def test_layers_go_one_by_one_and_the_accuracy_after_each_is_told(run, tmp_path):
    said = []
    Prune(net=str(run.run), images=64, choose=200, most=3, device="cpu", out=tmp_path).run(said.append)
    facts = json.loads((tmp_path / "prune.json").read_text())
    rows = facts["rows"]
    assert [row["layers"] for row in rows] == [13, 12, 11, 10]
    assert rows[0]["accuracy"] == pytest.approx(run.accuracy, abs=0.01)
    assert rows[0]["taken"] is None
    assert len({row["taken"] for row in rows}) == 4
    assert rows[0]["parameters"] > rows[1]["parameters"] > rows[3]["parameters"]
    assert all(0 <= row["explained"] <= 1 for row in rows[1:])
    text = (tmp_path / "prune.md").read_text()
    assert f"{facts['kept']} can be removed with a loss of at most 1 point on 200 training images. " in text
    assert "Accuracy on the 359 held-out images of digits; layers measured on 64 training images" in text
    assert (facts["choice_images"], facts["held_out"]) == (200, 359)
    assert (tmp_path / "prune.png").exists()
    assert said[1].startswith(f"12 convolutions without {rows[1]['taken']}: ")


def test_the_shortest_chain_that_loses_little_is_written(run, tmp_path):
    path = tmp_path / "short.safetensors"
    Prune(net=str(run.model_file), images=64, lose=0.05, write=path, device="cpu", out=tmp_path).run(lambda _: None)
    facts = json.loads((tmp_path / "prune.json").read_text())
    kept = facts["rows"][facts["kept"]]
    enough = [row["choice_accuracy"] >= facts["rows"][0]["choice_accuracy"] - 0.05 for row in facts["rows"]]
    assert facts["kept"] == max(index for index, is_enough in enumerate(enough) if is_enough)
    verify(path)
    chain = load(path)
    assert sum(type(layer).__name__ == "Conv2d" for layer in chain) == kept["layers"]
    assert chain.card.provenance["accuracy"] == kept["accuracy"]
    assert chain.card.provenance["taken_out"] == [row["taken"] for row in facts["rows"][1 : facts["kept"] + 1]]
    assert facts["rows"][-1]["layers"] == 3  # the stem and the two layers that double the width


def test_images_held_out_have_no_part_in_the_choice(run, tmp_path, monkeypatch):
    """However much is lost on them, the same chain is chosen."""
    answers = iter(range(100, 0, -1))

    def worse_and_worse(chain, images):
        found = evaluate(chain, images)
        return replace(found, top1=next(answers) / 100) if len(images) == 359 else found

    kept = []
    for measure in (evaluate, worse_and_worse):
        monkeypatch.setattr("diracnets.analysis.prune.evaluate", measure)
        Prune(net=str(run.run), images=64, lose=0.2, choose=200, device="cpu", out=tmp_path).run(lambda _: None)
        facts = json.loads((tmp_path / "prune.json").read_text())
        kept.append(facts["kept"])
    assert facts["rows"][2]["accuracy"] == 0.98
    assert kept[0] == kept[1] > 0


def test_without_numbers_of_images_no_more_are_taken_than_there_are(run, tmp_path, monkeypatch):
    monkeypatch.setattr("diracnets.analysis.prune._CHOSEN_ON", 10**6)
    monkeypatch.setattr("diracnets.analysis.prune._MEASURED", 10**6)
    Prune(net=str(run.run), most=1, device="cpu", out=tmp_path).run(lambda _: None)
    facts = json.loads((tmp_path / "prune.json").read_text())
    assert (facts["images"], facts["choice_images"]) == (1438, 1438)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"most": 0}, "most is 0"),
        ({"lose": -0.1}, "lose is -0.1"),
        ({"choose": 0}, "choose is 0"),
        ({"choose": 9999}, "9999 images are asked for, but digits has 1438"),
        ({"net": "diracnet-10-1", "data": "digits"}, "untrained"),
    ],
)
def test_what_makes_no_sense_is_refused(run, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        Prune(**{"net": str(run.run), "out": tmp_path, "device": "cpu", **options}).run(print)


def test_a_network_with_branches_is_refused(tmp_path):
    recipe = Recipe().replaced(model="wrn-10-0.25", data="digits", num_train=100, epochs=1, precision="float32")
    branched = train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    with pytest.raises(UsageError, match="has branches"):
        Prune(net=str(branched.run), images=64, device="cpu", out=tmp_path).run(print)
    assert create_model("wrn-10-0.25").is_chain is False
