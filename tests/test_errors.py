"""Messages are one line of bounded length, whatever the names and values are that they quote."""

import pickle
from pathlib import Path

from diracnets.errors import DataError, ExportError, lines_of, shown


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


def test_paths_with_spaces_stay_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my photos, 2024/two cats").mkdir(parents=True)
    for path in ("my photos, 2024/two cats", str(tmp_path / "my photos, 2024")):
        text = f"16 of 32/64 images lie where they are looked for ({path}); others do not"
        lines = lines_of(text, 20)
        assert any(path in line for line in lines)
        assert " ".join(lines) == text
    assert lines_of("it is called 'no such file' here", 20) == ["it is called", "'no such file' here"]
