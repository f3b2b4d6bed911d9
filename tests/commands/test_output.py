import io
import sys

import pytest
from rich.console import Console

from diracnets.commands.output import say, table


def shown(rows, width):
    columns = ["name", "what it is", "suffix"]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table(columns, rows), crop=False)
    return console.file.getvalue()


ROWS = [["diracnet-28-1-cifar10-int8", "a network in integers for microcontrollers", ".safetensors"]]


@pytest.mark.parametrize("width", [400, 80, 60, 40, 10])
def test_no_word_is_broken_at_any_width(width):
    words = shown(ROWS, width).split()
    assert {"diracnet-28-1-cifar10-int8", "microcontrollers", ".safetensors"} <= set(words)


def test_a_table_is_as_wide_as_its_words_and_no_wider_than_the_terminal():
    assert max(map(len, shown(ROWS, 400).splitlines())) == 26 + 42 + 12 + 6
    assert max(map(len, shown(ROWS, 70).splitlines())) == 70
    assert max(map(len, shown(ROWS, 40).splitlines())) == 26 + 16 + 12 + 6


def test_facts_and_sentences_are_wrapped_between_words_on_a_terminal_alone(capsys, monkeypatch):
    fact = "classes          100: apple, aquarium_fish, baby, bear, beaver, bed, bee"
    say(fact)
    assert capsys.readouterr().out == fact + "\n"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say(f"{fact}\n\n  it is in /a/path/longer/than/the/terminal/is/wide.pt")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "classes          100: apple,",
        f"{'':17}aquarium_fish, baby,",
        f"{'':17}bear, beaver, bed, bee",
    ]
    assert lines[3:] == ["", "  it is in", "  /a/path/longer/than/the/terminal/is/wide.pt"]
