import pickle
import resource
import signal

import pytest
import torch

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, all_finite, read_checkpoint, save_checkpoint
from diracnets.artifacts.create import create_model
from diracnets.errors import FileError, TrainingError

CARD = ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, architecture=create_model("plain-10-0.25").config)


def of(**state):
    return Checkpoint(CARD, state)


def test_comes_back_as_it_was(tmp_path):
    resume = {"history": [{"loss": 0.1}], "random": torch.get_rng_state()}
    checkpoint = Checkpoint(CARD, {"w": torch.randn(3)}, resume)
    save_checkpoint(tmp_path / "last.pt", checkpoint)
    found = read_checkpoint(tmp_path / "last.pt")
    assert found.card == CARD
    assert found.state["w"].equal(checkpoint.state["w"])
    assert found.resume["history"] == [{"loss": 0.1}]
    save_checkpoint(tmp_path / "best.pt", of(w=torch.ones(2)))
    assert read_checkpoint(tmp_path / "best.pt").resume is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(bad, tmp_path):
    save_checkpoint(tmp_path / "last.pt", of(w=torch.ones(2)))
    with pytest.raises(TrainingError, match="infinite or NaN"):
        save_checkpoint(tmp_path / "last.pt", of(n=torch.tensor(1), w=torch.tensor([1.0, bad])))
    assert read_checkpoint(tmp_path / "last.pt").state["w"].equal(torch.ones(2))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path / "last.pt", of(w=torch.ones(2)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"last\.pt, is the disk full\? \([\d,]+ bytes are left on it\)$"):
            save_checkpoint(tmp_path / "last.pt", of(w=torch.ones(20_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert read_checkpoint(tmp_path / "last.pt").state["w"].equal(torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


class Dangerous:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "foreign", "code"])
def test_what_is_no_checkpoint_is_refused(kind, tmp_path, capsys):
    path = tmp_path / "last.pt"
    save_checkpoint(path, of(w=torch.randn(1000)))
    whole = path.read_bytes()
    match kind:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("hello")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "foreign":
            torch.save({"epoch": 3}, path)
        case "code":
            path.write_bytes(pickle.dumps(Dangerous()))
    with pytest.raises(FileError, match=r"last\.pt"):
        read_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


def test_all_finite_looks_at_every_tensor():
    assert all_finite([])
    assert all_finite([torch.ones(2), torch.tensor(3)])
    assert not all_finite([torch.ones(2), torch.tensor([0.0, float("-inf")])])
