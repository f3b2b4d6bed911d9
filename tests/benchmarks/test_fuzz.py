"""A short look at hostile files of each kind that is fast to read; `benchmarks/fuzz.py` takes a long one."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("tyro")
pytest.importorskip("hypothesis")

import fuzz
import fuzz_process
from fuzz_mutate import files
from fuzz_process import Isolated, Verdict
from fuzz_targets import TARGETS, Target

GOOD = bytes(range(200, 256)) * 4


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "ROUND", 40)
    fuzz.hypothesis.configuration.set_hypothesis_home_dir(tmp_path / "hypothesis")
    yield
    fuzz.hypothesis.configuration.set_hypothesis_home_dir(None)


def planted(read):
    """A target whose reader does this with the content of a file and the folder that it may write to."""
    return Target("a.bin", lambda _: [GOOD], lambda path, out: read(path.read_bytes(), out), (), 1.0)


@pytest.mark.parametrize("name", [pytest.param("recipes", marks=pytest.mark.slow), "CIFAR pickles", "records"])
def test_hostile_files_do_no_harm(name, tmp_path):
    out = tmp_path / "counts.json"
    assert fuzz.Fuzz(inputs=1, targets=(name,), found=tmp_path, out=out).run() == 0
    row = json.loads(out.read_text())["targets"][name]
    assert (row["findings"], row["harmful"]) == ([], 0)
    assert row["accepted"] > 2
    assert row["refused"] > 2
    assert row["inputs"] == row["accepted"] + row["refused"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.aware])
def test_changes_that_know_the_format_work(name, tmp_path):
    """Where they were errors for good files, only bytes would be changed, and nobody would see it."""
    seed = TARGETS[name].seeds(tmp_path)[0]
    for change in TARGETS[name].aware:
        assert len({change(seed, Random(number)) for number in range(10)}) > 3


def test_hypothesis_finds_a_planted_crash_and_makes_its_file_simple(tmp_path, monkeypatch):
    """The reader dies of the byte 7, which the good file has nowhere."""

    def read(data, _):
        if 7 in data:
            os.abort()

    monkeypatch.setattr(fuzz, "ROUND", 1000)
    with Isolated(planted(read), tmp_path, [GOOD]) as process:
        found = fuzz.one_round(files([GOOD], ()), process.read, "1")
        assert process.read(GOOD).accepted
    [(data, verdict)] = found.values()
    assert data == b"\7" + GOOD[1:]
    assert verdict.kind == "exit -6"
    assert "Fatal Python error: Aborted" in verdict.wrong


def test_the_seed_decides_the_files():
    made = [[], [], []]
    for seed, tried in zip("001", made, strict=True):
        fuzz.one_round(files([GOOD], ()), lambda data, tried=tried: tried.append(data) or Verdict(True), seed)
    assert made[0] == made[1] != made[2]
    assert len(set(made[0])) > 30


def test_a_call_goes_on_after_the_last_round(tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.TARGETS, "planted", planted(lambda data, _: 1 / (data[:1] == GOOD[:1])))
    out = tmp_path / "counts.json"
    first = fuzz.Fuzz(inputs=1, targets=("planted",), out=out, found=tmp_path)
    assert first.run() == 1
    [finding] = json.loads(out.read_text())["targets"]["planted"]["findings"]
    assert finding["file"] == "planted-0-ZeroDivisionError.bin"
    assert (tmp_path / finding["file"]).read_bytes()[:1] != GOOD[:1]
    assert first.run() == 1
    replace(first, inputs=json.loads(out.read_text())["inputs"] + 1).run()
    report = json.loads(out.read_text())
    assert report["targets"]["planted"]["rounds"] == 2
    assert report["inputs"] == sum(report["targets"]["planted"][key] for key in ("accepted", "refused", "harmful"))
    assert len(report["calls"]) == 2
    with pytest.raises(SystemExit, match="seed 0"):
        replace(first, seed=1).run()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda place: (place / "x").write_text(""), ""),
        (lambda place: (place.parent / "x").write_text(""), "open "),
        (lambda place: os.system("true"), "os.system"),
        (lambda place: exec("1", {}), "exec <string>"),
        (lambda place: Path(place.parent / "y").unlink(), "os.remove"),
        (lambda place: 1 / 0, "ZeroDivisionError"),
        (lambda place: bytearray(300 << 20).count(1), "MiB of memory"),
        (lambda place: os._exit(0), "the process ended with 0"),
    ],
)
def test_harm_is_seen(act, said, tmp_path):
    with Isolated(planted(lambda _, out: act(out.parent)), tmp_path, []) as process:
        wrong = process.read(b"").wrong
    assert said in wrong
    assert bool(said) == bool(wrong)


@pytest.mark.parametrize(
    ("bound", "said"), [("SECONDS", "more than 0.3 seconds"), ("WALL", "Fatal Python error: Aborted")]
)
def test_a_reader_without_end_is_stopped(bound, said, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_process, bound, 0.3)
    with Isolated(planted(lambda *_: [time.process_time() for _ in iter(int, 1)]), tmp_path, []) as process:
        assert said in process.read(b"").wrong
