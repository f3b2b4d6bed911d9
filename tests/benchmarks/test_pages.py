import re

import pages


def test_the_page_is_what_the_results_give():
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page().rstrip("\n") + "\n"


def test_a_stranger_can_read_the_page():
    text = pages.PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| --- .*$", text, re.MULTILINE)
    assert 1 <= len(tables) <= 5
    assert max(line.count("---") for line in tables) <= 6
    assert text.index("not reached") < text.index("| --- |")
    first = text[text.index("| network |") :].partition("\n\n")[0]
    for error in ("6.90", "8.29", "8.63"):  # Wide ResNet, DiracNet and plain network by one recipe
        assert first.count(error) == 1


def test_every_link_leads_somewhere_and_every_file_is_listed():
    text = pages.PAGE.read_text(encoding="utf-8")
    linked = {(pages.PAGE.parent / link).resolve() for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)}
    assert all(path.exists() for path in linked)
    assert {path for path in linked if path.suffix.startswith(".json")} == {
        path.resolve()
        for path in pages.RESULTS.rglob("*.json*")
        if path.name not in ("environment.json", "metrics.jsonl")
    }
