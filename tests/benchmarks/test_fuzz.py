"""A short look at hostile files of each kind that is fast to read; `benchmarks/fuzz.py` takes a long one."""

import pytest

pytest.importorskip("tyro")

from fuzz import Reader


@pytest.mark.parametrize("name", ["recipes", "CIFAR pickles", "records"])
def test_hostile_files_do_no_harm(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "home"))
    reader = Reader(name, tmp_path / "place", 0, tmp_path / "found")
    tried = [reader.try_one(reader.input(number)) for number in range(60)]
    assert any(accepted for accepted, *_ in tried[: len(reader.seeds)])
    assert not all(accepted for accepted, *_ in tried)
    assert [wrong for _, wrong, *_ in tried if wrong] == []


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIRACNETS_HOME", "changed by Reader")
        yield Reader("records", tmp_path_factory.mktemp("fuzz") / "place", 0, tmp_path_factory.mktemp("found"))


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda place: (place / "x").write_text(""), None),
        (lambda place: (place.parent / "x").write_text(""), "open "),
        (lambda place: __import__("os").system("true"), "os.system"),
        (lambda place: exec("1", {}), "exec <string>"),
        (lambda place: __import__("os").remove(place.parent / "y"), "os.remove"),
        (lambda place: 1 / 0, "ZeroDivisionError"),
        (lambda place: bytearray(300 << 20).count(1), "MiB of memory"),
    ],
)
def test_harm_is_seen(act, said, reader, monkeypatch):
    monkeypatch.setattr(reader, "_read", lambda _: (setattr(reader.watch, "on", True), act(reader.place)))
    wrong = reader.try_one(b"")[1]
    assert wrong is None if said is None else said in wrong
