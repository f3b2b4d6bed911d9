import json

from diracnets.analysis.report import draw_png, environment_line, markdown_table, write_report

ENVIRONMENT = {
    "device": "Abacus",
    "processor": "Abacus",
    "instructions": ["avx2"],
    "threads": 1,
    "versions": {"torch": "2.0", "python": "3.11"},
    "command": ["diracnets", "study", "*a b*"],
}


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"


def test_the_environment_in_one_line():
    assert environment_line(ENVIRONMENT) == "Abacus, 1 thread (avx2); torch 2.0, Python 3.11: `diracnets study '*a b*'`"


def test_a_report_is_written_with_or_without_matplotlib(monkeypatch, tmp_path):
    said = []
    facts = {"study": "small", "title": "±"}

    def page(facts, *, picture):
        return f"{facts['title']} {picture}"

    write_report(tmp_path, facts, page, lambda figure: figure.subplots(), (2, 2), said.append)
    assert json.loads((tmp_path / "small.json").read_text()) == facts
    assert (tmp_path / "small.md").read_text() == "± True\n"
    assert (tmp_path / "small.png").read_bytes()[1:4] == b"PNG"
    assert said == [f"wrote small.json, small.md and small.png to {tmp_path}"]
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert not draw_png(tmp_path / "none.png", lambda figure: None, 2, 2, said.append)
    assert "diracnets[plot]" in said[-1]
    assert not (tmp_path / "none.png").exists()
    write_report(tmp_path, facts, page, lambda figure: None, (2, 2), said.append)
    assert (tmp_path / "small.md").read_text() == "± False\n"
