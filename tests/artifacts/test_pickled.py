import zipfile
from collections import OrderedDict

import pytest
import torch

from diracnets.artifacts.load import load
from diracnets.artifacts.pickled import object_in
from diracnets.errors import FileError


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rewritten(path, compression=zipfile.ZIP_STORED, twice=False):
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records * (2 if twice else 1):
            archive.writestr(name, content)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bytearray, (1 << 40,)),
        (torch.Tensor, (1 << 40,)),
        (torch.storage.UntypedStorage, (1 << 40,)),
        (__import__("_codecs").encode, ("a" * 100, "punycode")),  # whose time grows with the square of the length
    ],
)
def test_what_would_take_any_memory_or_time_is_refused_by_name(function, arguments, zipped, tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": Calls(function, *arguments)}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 2000
    with pytest.raises(FileError, match=rf"bomb\.pt holds the Python object \w+\S*\.{function.__name__}"):
        load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [({"compression": zipfile.ZIP_DEFLATED}, "compressed"), ({"twice": True}, "two of one name")],
)
def test_an_archive_that_is_more_than_its_bytes_is_refused(change, message, tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 16)}, path)
    rewritten(path, **change)
    with pytest.raises(FileError, match=message):
        load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_weights_and_optimizers_consist_of_is_read(zipped, tmp_path):
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int64, torch.bool]
    content = {
        "tensors": OrderedDict((str(kind), torch.zeros(2, dtype=kind)) for kind in kinds),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "others": [1, -(1 << 70), 0.5, True, None, "text", {"a": (1, 2)}, {3}, 1j, torch.Size([2]), torch.float32],
    }
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with path.open("rb") as file:
        assert object_in(file) is None
