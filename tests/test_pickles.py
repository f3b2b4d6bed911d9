"""Pickles that would take any time or memory, or end the process, are found without loading them."""

import io
import pickle

import pytest
import torch

from diracnets.artifacts.load import load
from diracnets.data.unpickle import read_pickle
from diracnets.errors import DataError, FileError
from diracnets.pickles import opcodes


def laughing(depth=30):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def nested(key):
    """A million tuples, one in the other; as a key they are hashed, which ends the process."""
    return b"\x80\x02})" + b"\x85" * 10**6 + (b"K\x01s." if key else b".")


HOSTILE = {
    "shared": pickle.dumps(laughing(), 2),
    "deep": nested(key=False),
    "a deep key": nested(key=True),
    "a doubling key": b"\x80\x02})q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"h<K\x01s.",
    "far memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a list changed in another": b"\x80\x02]q\x00]q\x01h\x00ah\x00K\x01a.",
    "dropped": b"\x80\x02K\x010K\x01.",
    "a mark": b"\x80\x02(q\x00.",
    "nothing": b"\x80\x02a.",
    "no such value": b"\x80\x02h\x07.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"it |pickle"):
        list(opcodes(io.BytesIO(HOSTILE[name])))
    with pytest.raises(DataError, match="not a CIFAR file"):
        read_pickle(HOSTILE[name], "data_batch_1")
    (tmp_path / "a.pt").write_bytes(HOSTILE[name])
    with pytest.raises(FileError):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", range(6))
def test_what_picklers_write_passes(protocol):
    shared = ("a", 1.5)
    value = {"a": [shared, shared, list(range(3000))], b"b": {1: None, (1, 2): {3, 4}}, "c": {}, "d": bytearray(9)}
    names = [name for name, _, _ in opcodes(io.BytesIO(pickle.dumps(value, protocol)))]
    assert names[-1] == "STOP"
    two = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    list(opcodes(two))
    assert two.read() == b"rest"


@pytest.mark.parametrize("old", [True, False])
def test_files_of_torch_are_looked_at_as_well(tmp_path, old):
    torch.save({"format": laughing(12)[0], "x": laughing()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(FileError, match="more than 16777216 values"):
        load(tmp_path / "a.pt")


def test_tensors_of_more_than_is_stored_are_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content.replace(b"cpuq\x06K\x04", b"cpuq\x06J\xff\xff\xff\x7f"))
    assert b"J\xff\xff\xff\x7f" in (tmp_path / "a.pt").read_bytes()
    with pytest.raises(FileError, match="2147483647 elements is not stored in full"):
        load(tmp_path / "a.pt")
