import errno
import os
import re
import stat

import pytest
from safetensors.torch import save_file

from diracnets.errors import FileError
from diracnets.files import written_together, written_whole


def test_a_file_has_the_permissions_of_any_new_one_and_the_process_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "a.json") as part:
            part.write_text("{}")
        with written_whole(tmp_path / "c.safetensors") as part:
            save_file({}, part)  # which makes a file that only its owner can read
        (tmp_path / "b.json").touch()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.json", "c.safetensors")]
    assert modes == [0o640] * 3


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "a.json").write_text("old")

    def write():
        with written_whole(tmp_path / "a.json") as part:
            part.write_text("new")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*file/a\.json"), written_whole(tmp_path / "file" / "a.json"):
        pass


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path):
    for name in ("first", "second"):
        with written_together(tmp_path / "net.package") as part:
            part.mkdir()
            (part / name).write_text(name)
    assert [file.name for file in tmp_path.iterdir()] == ["net.package"]
    assert [file.name for file in (tmp_path / "net.package").iterdir()] == ["second"]


def test_a_file_beside_another_is_named_by_where_it_was_to_be(tmp_path):
    with (
        pytest.raises(FileError, match=f"^cannot write {re.escape(str(tmp_path / 'net.h'))}: No space left on device$"),
        written_together(tmp_path / "net.c") as part,
        written_whole(part.with_suffix(".h")),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())
