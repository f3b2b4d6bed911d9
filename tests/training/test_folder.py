"""A run folder belongs to one process at a time."""

import threading

import pytest

from diracnets.errors import UsageError
from diracnets.training import folder
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
