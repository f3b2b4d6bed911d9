"""What is kept of a run, and what is found again when files are damaged or a process was killed."""

import pytest
import torch

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from diracnets.artifacts.create import create_model
from diracnets.errors import FileError, UsageError
from diracnets.training.checkpoints import Checkpoints, Position

CARD = ModelCard(
    (3, 8, 8),
    (0.5,) * 3,
    (0.5,) * 3,
    architecture=create_model("plain-10-0.25").config,
    recipe={},
    provenance={"epoch": 4},
)
START = Position(0, 0)


def at(epochs, batches=0):
    weights = {"w": torch.tensor([float(epochs), float(batches)])}
    return Checkpoint(CARD, weights, {"epoch": epochs + 1, "batch": batches})


def write(checkpoints, *positions, keep=1, safe=None):
    for position in positions:
        checkpoints.write(at(*position), keep=keep, safe=Position(*position) if safe is None else safe)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.earlier.iterdir()) if checkpoints.earlier.exists() else []


def damage(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in its pickle
    path.unlink()  # or an earlier checkpoint that is the same file would be damaged too
    path.write_bytes(content)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_as_many_earlier_ones_are_kept_as_asked_for(keep, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (0, 0), (0, 2), (1, 0), (1, 2), (2, 0), keep=keep)
    assert Position.of(read_checkpoint(checkpoints.last)) == (2, 0)
    every = [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert names(checkpoints) == [Position(*each).name for each in every[len(every) - keep :]]
    for each in names(checkpoints):
        assert Position.of(read_checkpoint(checkpoints.earlier / each)).name == each


def test_the_one_from_before_the_loss_rose_is_kept_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (1, 0), (2, 0))
    write(checkpoints, (3, 0), (4, 0), (5, 0), safe=Position(2, 4))
    assert names(checkpoints) == [Position(2, 0).name, Position(4, 0).name]
    checkpoints.go_back(Position(2, 4))
    assert Position.of(read_checkpoint(checkpoints.last)) == (2, 0)
    assert names(checkpoints) == [Position(2, 0).name]
    write(checkpoints, (3, 0))
    assert names(checkpoints) == [Position(2, 0).name]


def test_writing_one_position_twice_keeps_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (1, 0), (2, 0), (2, 0))
    assert names(checkpoints) == [Position(1, 0).name]


def test_a_damaged_last_one_is_passed_over(tmp_path):
    write(Checkpoints(tmp_path), (1, 0), (2, 0), (3, 0), keep=2)
    damage(tmp_path / "last.pt")
    damage(tmp_path / "earlier" / Position(2, 0).name)
    resumed = Checkpoints(tmp_path)
    checkpoint, damaged = resumed.read()
    assert Position.of(checkpoint) == (1, 0)
    assert ["last.pt is damaged" in damaged[0], "epoch-0002" in damaged[1], len(damaged)] == [True, True, 2]
    write(resumed, (2, 0), keep=2)  # what was damaged does not come back as an earlier one
    assert names(resumed) == [Position(1, 0).name]
    assert [each.damage for each in resumed.listed()] == [None, None]


def test_all_damaged_is_an_error_about_the_last_one(tmp_path):
    write(Checkpoints(tmp_path), (1, 0), (2, 0))
    damage(tmp_path / "last.pt")
    damage(tmp_path / "earlier" / Position(1, 0).name)
    with pytest.raises(FileError, match=r"last\.pt is damaged"):
        Checkpoints(tmp_path).read()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        Checkpoints(tmp_path).read()


def test_a_failed_writing_changes_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (1, 0), (2, 0))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(FileError, match="No space left"):
            write(checkpoints, (3, 0))
    assert Position.of(Checkpoints(tmp_path).read()[0]) == (2, 0)
    assert Position(1, 0).name in names(checkpoints)


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (1, 0), (2, 0))
    assert Position.of(read_checkpoint(checkpoints.earlier / Position(1, 0).name)) == (1, 0)


def test_they_are_listed_with_what_is_wrong(tmp_path):
    write(Checkpoints(tmp_path), (1, 0), (2, 30))
    save_checkpoint(tmp_path / "best.pt", Checkpoint(CARD, {"w": torch.ones(1)}))
    damage(tmp_path / "last.pt")
    found = [(each.path.name, each.position, each.damage is None) for each in Checkpoints(tmp_path).listed()]
    assert found == [(Position(1, 0).name, (1, 0), True), ("last.pt", None, False), ("best.pt", (4, 0), True)]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, (1, 0), (2, 0))
    kept = {*tmp_path.rglob("*")} | {tmp_path / ".last-mine.pt"}
    left = [tmp_path / ".last-0123abcd.pt", tmp_path / ".best-0123abcd.pt"]
    left.append(checkpoints.earlier / f".{Position(2, 0).name[:-3]}-0123abcd.pt")
    for path in [*left, tmp_path / ".last-mine.pt"]:
        path.touch()
    checkpoints.remove_parts()
    assert {*tmp_path.rglob("*")} == kept
