import io
import tarfile

import pytest

from diracnets.data.tar import BLOCK, begins, files_in, members
from diracnets.errors import DataError, FileError


def tar_of(*files, format=tarfile.USTAR_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name="a.jpg", size=10, kind=b"0", digits=None):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if digits is not None:
        block[124:136] = digits
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block[:BLOCK])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(format):
    long = "" if format == tarfile.USTAR_FORMAT else "n" * 300
    content = tar_of(("a.cls", b"1"), (f"b/{long}ü.jpg", bytes(1025)), ("c", b""), format=format)
    found = list(members(io.BytesIO(content)))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert [(each.name, each.offset, each.size) for each in found] == [
            (each.name, each.offset_data, each.size) for each in tar
        ]
    assert all(begins(io.BytesIO(content), each.offset, each.size) for each in found)
    assert not begins(io.BytesIO(content), found[1].offset, 1024)
    assert not begins(io.BytesIO(content), found[1].offset + BLOCK, 1025)


def test_links_folders_and_devices_are_passed_over():
    kinds = [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ]
    content = b"".join(header("../../etc/passwd", 0, kind) for kind in kinds) + tar_of(("/abs/x.jpg", b"x"))
    assert [each.name for each in members(io.BytesIO(content))] == ["/abs/x.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\)"),
        (b"no tar" * 200, "damaged or no tar file"),
        (header(size=10), "is cut off"),
        (header(size=1 << 32) + bytes(512), "is cut off"),
        (header(digits=b"\xff" * 12), "cut off|damaged"),  # a negative size
        (header(digits=b"\x80" + b"\x7f" * 11), "is cut off"),  # an absurd one
        (header(kind=b"x", size=1 << 20) + bytes(1 << 20), "extended header of 1,048,576 bytes"),
        (header(kind=b"x", size=14) + b"99 path=a.jpg\n".ljust(512, b"\0"), "an extended header"),
        (header(kind=b"x", size=14) + b"14 size=zzzzz\n".ljust(512, b"\0"), "an extended header"),
        (header(kind=b"x", size=14) + b"14 size=99999\n".ljust(512, b"\0") + header(size=5) + bytes(512), "cut off"),
    ],
)
def test_damage_is_said(content, message):
    with pytest.raises(DataError, match=message):
        list(members(io.BytesIO(content)))


def test_the_members_before_the_damage_are_given():
    content = tar_of(("a.cls", b"1"), ("b.jpg", bytes(5000)))
    found = members(io.BytesIO(content[:3000]))
    assert next(found).name == "a.cls"
    with pytest.raises(DataError, match="cut off"):
        next(found)
    with pytest.raises(DataError, match="end without the mark"):
        list(members(io.BytesIO(content[:1024])))


def extended(records, kind=b"x"):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(records)
    return header.tobuf() + records + bytes(-len(records) % 512)


def test_a_file_with_an_endless_name_is_refused():
    name = b"n" * 5000 + b".png"
    record = b"%d path=%s\n" % (len(name) + 11, name)
    with pytest.raises(DataError, match="a name of 5,004 bytes"):
        list(members(io.BytesIO(extended(record) + bytes(1024))))


@pytest.mark.parametrize(
    "hostile",
    [
        extended(b"30 GNU.sparse.map=a.b.c.png\n37 "),
        extended(b"13 size=9999\n" * 20) * 400,
        extended(bytes(1 << 17), b"L"),
        b"\0" * 100,
    ],
)
def test_archives_that_tarfile_trips_over_are_damaged(tmp_path, hostile):
    (tmp_path / "a.tar").write_bytes(hostile)
    with pytest.raises(FileError, match=r"a\.tar is damaged") as caught:
        list(files_in(tmp_path / "a.tar", lambda _: True, 100))
    assert "\n" not in str(caught.value)


def test_a_chain_of_headers_never_reaches_the_end_of_the_stack(tmp_path):
    (tmp_path / "a.tar").write_bytes(extended(b"14 path=a.png\n") * 17 + bytes(1024))
    with pytest.raises(FileError, match="more than 16 extended headers in a row"):
        list(files_in(tmp_path / "a.tar", lambda _: True, 100))
    member = tarfile.TarInfo("b.png")
    (tmp_path / "b.tar").write_bytes(extended(b"14 path=a.png\n") * 15 + member.tobuf() + bytes(1024))
    assert list(files_in(tmp_path / "b.tar", lambda _: True, 100)) == [("a.png", b"")]


def test_files_in_an_archive_are_bounded(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, size in (("big", 101), ("small", 100), ("other", 3)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
        link = tarfile.TarInfo("big/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = list(files_in(tmp_path / "a.tar.gz", lambda name: name != "other", 100))
    assert found == [("small", bytes(100))]
