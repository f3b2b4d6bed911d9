"""A run folder belongs to one process at a time."""

import threading

import pytest

from diracnets.errors import FileError, UsageError
from diracnets.training import folder
from diracnets.training.checkpoints import Checkpoints
from diracnets.training.folder import RunFolder
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "WAIT", 0.0)
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", num_train=64, epochs=1, precision="float32")
    run = train(recipe, run=tmp_path / "run", device="cpu", quiet=True).run
    kept = (run / "last.pt").read_bytes()
    with RunFolder(run).held():
        for resume in (True, False):
            with pytest.raises(UsageError, match=r"another process trains in .*run: wait until it has finished"):
                train(recipe, run=run, resume=resume, device="cpu", quiet=True)
    assert (run / "last.pt").read_bytes() == kept
    assert train(recipe, run=run, resume=True, device="cpu", quiet=True).run == run


def test_the_lock_of_a_run_that_is_about_to_end_is_waited_for(tmp_path):
    other = RunFolder(tmp_path).held()
    other.__enter__()
    threading.Timer(0.3, other.__exit__, (None, None, None)).start()
    with RunFolder(tmp_path).held():
        pass


def test_a_folder_that_gets_no_run_is_not_left_behind(tmp_path):
    with RunFolder(tmp_path / "new").held():
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, not a folder"), RunFolder(tmp_path / "file").held():
        pass


def test_a_start_that_fails_on_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def write(self, *_, **__):
        raise FileError(f"cannot write {self.last}: No space left on device")

    monkeypatch.setattr(Checkpoints, "write", write)
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", num_train=64, epochs=1, precision="float32")
    (tmp_path / "there").mkdir()
    recipe.save(tmp_path / "there" / "recipe.toml")
    for run in (tmp_path / "new" / "run", tmp_path / "there"):
        with pytest.raises(FileError, match=r"No space left on device$"):
            train(recipe, run=run, device="cpu", quiet=True)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "there", tmp_path / "there" / "recipe.toml"]
