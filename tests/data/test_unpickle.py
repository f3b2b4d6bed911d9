import os
import pickle
import subprocess

import numpy as np
import pytest

from diracnets.data.unpickle import read_pickle
from diracnets.errors import DataError

CONTENT = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 255], b"batch_label": b"one of \xff"}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_numbers_and_texts_come_back(protocol):
    found = read_pickle(pickle.dumps(CONTENT, protocol), "x")
    assert found["data"].tolist() == CONTENT["data"].tolist()
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [1, 2, 255]
    assert found["batch_label"] == "one of ÿ"


class Code:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, eval, subprocess.check_output, np.load, getattr])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_never_run(tmp_path, monkeypatch, call, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data_batch_1 is not a CIFAR file .* asks to run .*refused"):
        read_pickle(pickle.dumps({"data": Code(call, "made")}, protocol), "data_batch_1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "x is not a CIFAR file"),
        (b"hello", "x is not a CIFAR file"),
        (pickle.dumps(CONTENT)[:60], "x is not a CIFAR file"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (pickle.dumps({"data": np.zeros(3)}, 2), "an array of 'f8', not of uint8"),
        (pickle.dumps({"data": np.zeros((2, 3), np.uint8, order="F")}, 2), "unknown layout"),
        (
            pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 2).replace(b"K\x02K\x03", b"K\x02K\x09"),
            "shape .2, 9. in 6",
        ),
    ],
)
def test_what_is_damaged_or_something_else(content, said):
    with pytest.raises(DataError, match=said):
        read_pickle(content, "x")
