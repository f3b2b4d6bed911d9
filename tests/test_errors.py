"""Messages are one line of bounded length, whatever the names and values are that they quote."""

import pickle

from diracnets.errors import DataError, ExportError, shown


def test_messages_are_one_line_of_bounded_length():
    assert str(DataError("a file\ncalled \x1b[2J.png")) == "a file\\ncalled \\x1b[2J.png"
    long = str(DataError(f"the label {'x' * 100_000} is none: remove it"))
    assert long.startswith("the label xxx")
    assert long.endswith("is none: remove it")
    assert len(long) < 3_000
    assert str(pickle.loads(pickle.dumps(DataError(long)))) == long
    assert str(ExportError("cc says:\nline 1\nline 2", lines=True)).count("\n") == 2


def test_any_value_can_be_shown():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, [1 << 40_000], {1: {2: 1 << 40_000}}, 1 << 40_000, b"\0" * 10**6, None, 1.5):
        assert len(shown(value)) <= 100
