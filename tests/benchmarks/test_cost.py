import json

import pytest
from cost import OTHERS, Cost
from cost_page import CHAIN, draw, known_measurements

from diracnets.errors import FileError, UsageError


def test_all_variants_are_measured_side_by_side(tmp_path):
    said = []
    Cost(networks=("10-0.25:4",), rounds=2, device="cpu", out=tmp_path).run(said.append)
    facts = json.loads((tmp_path / "cost.json").read_text())
    (measurement,) = facts["measured"]
    rows = {row["variant"]: row for row in measurement["rows"]}
    assert list(rows) == ["plain", *OTHERS, CHAIN]
    assert rows["plain"]["step_ratio"] == rows[CHAIN]["inference_ratio"] == 1
    for row in rows.values():
        for kind in ("step", "inference") if "step_ms" in row else ("inference",):
            low, high = row[f"{kind}_ratio_quartiles"]
            assert low <= row[f"{kind}_ratio"] <= high
    assert rows["plain"]["saved_beyond_plain_in_weights"] == 0
    assert rows["dbb"]["saved_mb"] > rows["repvgg"]["saved_mb"] > rows["plain"]["saved_mb"]
    assert rows["dbb"]["parameters"] > rows["repvgg"]["parameters"] > rows["plain"]["parameters"]
    assert rows[CHAIN]["parameters"] < rows["dirac"]["parameters"] == rows["composed"]["parameters"]
    assert "step_ms" not in rows[CHAIN]
    text = (tmp_path / "cost.md").read_text()
    assert text.count("| 10-0.25 |") == 9
    assert (tmp_path / "cost.png").exists()
    assert "| paired |" in said[0]


def test_some_variants_in_another_precision(tmp_path):
    Cost(
        networks=("10-0.25:2", "16-0.25:2"), variants=("dirac",), precisions=("bfloat16",), rounds=2, device="cpu",
        out=tmp_path,
    ).run(lambda _: None)  # fmt: skip
    measured = json.loads((tmp_path / "cost.json").read_text())["measured"]
    assert [row["network"] for each in measured for row in each["rows"]] == ["10-0.25"] * 3 + ["16-0.25"] * 3
    for each in measured:
        assert [row["variant"] for row in each["rows"]] == ["plain", "dirac", CHAIN]
        assert {row["precision"] for row in each["rows"]} == {"bfloat16"}
    assert "RepVGG" not in (tmp_path / "cost.md").read_text()


def test_what_was_measured_before_stays_and_the_same_again_replaces_it(tmp_path):
    for batch, rounds in ((2, 2), (3, 2), (2, 3)):
        Cost(networks=(f"10-0.25:{batch}",), variants=("dirac",), rounds=rounds, device="cpu", out=tmp_path).run(
            lambda _: None
        )
    measured = json.loads((tmp_path / "cost.json").read_text())["measured"]
    assert [(each["rows"][0]["batch"], each["rounds"]) for each in measured] == [(3, 2), (2, 3)]
    text = (tmp_path / "cost.md").read_text()
    assert "2 rounds, eager; " in text
    assert "3 rounds, eager; " in text
    (tmp_path / "cost.json").write_text('{"measured": [{}]}')
    with pytest.raises(FileError, match=r"cost.json does not hold measurements"):
        known_measurements(tmp_path / "cost.json")


def test_the_machine_stands_in_the_caption_not_in_the_legend():
    figure = pytest.importorskip("matplotlib.figure").Figure((11, 6), layout="constrained")
    rows = [
        {"network": "28-1", "batch": 8, "precision": "float32", "variant": name} for name in ("plain", "dirac", CHAIN)
    ]
    for row in rows:
        for kind in ("step", "inference")[row["variant"] == CHAIN :]:  # nobody trains a chain
            row |= {f"{kind}_ratio": 1.5, f"{kind}_ratio_quartiles": (1.25, 2)}
    measured = [
        {"rows": rows, "compiled": False, "circumstances": {"device": name, "processor": name, "threads": 2}}
        for name in ("AMD EPYC", "Intel Xeon", "AMD EPYC")
    ]
    draw(figure, measured)
    assert figure.get_suptitle().endswith("(a) eager, AMD EPYC, 2 threads; (b) eager, Intel Xeon, 2 threads")
    (legend,) = figure.legends
    assert [text.get_text()[-3:] for text in legend.get_texts()] == ["(a)", "(b)", "(a)"]
    assert {text.get_text()[:-4] for text in legend.get_texts()} == {"28-1, batch 8, float32"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"networks": ("28-1",)}, "does not say size and batch"),
        ({"networks": ("28-1:1",)}, "a batch of at least 2"),
        ({"networks": ("sprint:64",)}, "have no sprint"),
        ({"networks": ()}, "nothing is asked for"),
        ({"networks": ("27-1:64",)}, "the depth must be"),
        ({"rounds": 1}, "rounds is 1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        Cost(**options, device="cpu", out=tmp_path).run(print)
