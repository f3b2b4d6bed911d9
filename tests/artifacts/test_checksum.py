"""A damaged checkpoint is found, whatever byte of it is wrong."""

import pytest
import torch

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from diracnets.artifacts.create import create_model
from diracnets.errors import FileError

CARD = ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, architecture=create_model("plain-10-0.25").config)


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "last.pt"
    save_checkpoint(path, Checkpoint(CARD, {"w": torch.randn(40)}, {"epoch": 3, "net": {"w": torch.randn(40)}}))
    return path


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    return list(one) == list(other) and all(
        same(one[key], other[key]) if isinstance(one[key], torch.Tensor | dict) else one[key] == other[key]
        for key in one
    )


def test_no_flipped_byte_is_read_as_something_else(written):
    whole, content = read_checkpoint(written), written.read_bytes()
    found = 0
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        written.write_bytes(damaged)
        try:
            read = read_checkpoint(written)
        except FileError:
            found += 1
            continue
        assert read.card == whole.card, place  # a byte that matters to nobody, such as padding
        assert same(read.state, whole.state), place
        assert same(read.resume, whole.resume), place
    assert found > 0.6 * len(content) / 23


def test_a_flipped_weight_is_named_as_damage(written):
    weights = read_checkpoint(written).state["w"].numpy().tobytes()
    content = bytearray(written.read_bytes())
    content[content.index(weights) + 5] ^= 1
    written.write_bytes(content)
    with pytest.raises(FileError, match=r"last\.pt is damaged: the checksum of its record data/\d+ is wrong"):
        read_checkpoint(written)


def test_every_truncation_is_found(written):
    content = written.read_bytes()
    for length in range(0, len(content), 97):
        written.write_bytes(content[:length])
        with pytest.raises(FileError, match=r"last\.pt"):
            read_checkpoint(written)


def test_checksums_are_written_also_where_a_program_has_turned_them_off(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "last.pt", Checkpoint(CARD, {"w": torch.ones(3)}))
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "last.pt").state["w"].equal(torch.ones(3))
