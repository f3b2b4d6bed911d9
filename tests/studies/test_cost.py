import json

import pytest

from diracnets.errors import UsageError
from diracnets.studies.cost import CHAIN, OTHERS, Cost


def test_all_variants_are_measured_side_by_side(tmp_path):
    said = []
    Cost(networks=("10-0.25:4",), rounds=2, device="cpu", out=tmp_path).run(said.append)
    facts = json.loads((tmp_path / "cost.json").read_text())
    rows = {row["variant"]: row for row in facts["rows"]}
    assert list(rows) == ["plain", *OTHERS, CHAIN]
    assert rows["plain"]["step_ratio"] == rows[CHAIN]["inference_ratio"] == 1
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
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["plain", "dirac", CHAIN] * 2
    assert {row["precision"] for row in rows} == {"bfloat16"}
    assert "RepVGG" not in (tmp_path / "cost.md").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"networks": ("28-1",)}, "does not say size and batch"),
        ({"networks": ("28-1:1",)}, "a batch of at least 2"),
        ({"networks": ("18:64",)}, "18 has no width"),
        ({"networks": ("27-1:64",)}, "the depth must be"),
        ({"rounds": 1}, "rounds is 1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        Cost(**options, device="cpu", out=tmp_path).run(print)
