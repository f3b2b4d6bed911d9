import io
import tarfile

import pytest

from diracnets.data.archive import unpack
from diracnets.errors import FileError


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
    return path


def test_only_the_named_files_come_out(tmp_path):
    path = archive(
        tmp_path / "x.tgz",
        ("../escaped", b"1"),
        ("/tmp/escaped", b"2"),
        ("set/a", b"3"),
        ("set/b", b"4"),
        ("set/c", b"5"),
    )
    unpack(path, tmp_path / "set", ["a", "b"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()} == {"a": b"3", "b": b"4"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set", "x.tgz"]


@pytest.mark.parametrize(
    ("members", "cut", "said"),
    [
        ([("set/a", b"1")], 0, "lacks set/b"),
        ([("set/a", b"1"), ("set/b", "/etc/passwd")], 0, "lacks set/b"),
        ([("set/a", bytes(1000)), ("set/b", bytes(range(256)) * 40)], 40, "is damaged|cannot unpack"),
        ([], None, "is damaged: "),
    ],
)
def test_bad_archives_leave_nothing(tmp_path, members, cut, said):
    path = archive(tmp_path / "x.tgz", *members)
    path.write_bytes(b"no archive" if cut is None else path.read_bytes()[: len(path.read_bytes()) - cut])
    with pytest.raises(FileError, match=said):
        unpack(path, tmp_path / "set", ["a", "b"])
    assert [file.name for file in tmp_path.iterdir()] == ["x.tgz"]
