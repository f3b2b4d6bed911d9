import pytest

from diracnets.errors import FileError
from diracnets.studies.picture import save_picture
from diracnets.studies.report import markdown_table, read_json, told, write_json


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"


def test_the_circumstances_in_one_line(circumstances):
    line = told({**circumstances, "instructions": ["avx2"], "command": ["diracnets", "study", "*a b*"]})
    assert line == "Abacus, 1 thread (avx2); torch 2.0, Python 3.11: `diracnets study '*a b*'`"


def test_json_comes_back(tmp_path):
    assert read_json(tmp_path / "a.json") is None
    write_json(tmp_path / "a.json", {"title": "±"})
    assert read_json(tmp_path / "a.json") == {"title": "±"}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(FileError, match=r"a.json"):
        read_json(tmp_path / "a.json")


def test_without_matplotlib_there_is_a_line_and_no_picture(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    said = []
    assert not save_picture(tmp_path / "a.png", lambda figure: None, 2, 2, said.append)
    assert "diracnets[plot]" in said[0]
    assert list(tmp_path.iterdir()) == []
