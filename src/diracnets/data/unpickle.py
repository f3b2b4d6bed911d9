"""Reads the pickles that CIFAR is published in without running any code that they may contain."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from diracnets.errors import DataError
from diracnets.pickles import opcodes


def read_pickle(content: bytes, name: str) -> dict[str, Any]:
    """A pickled dictionary of numbers, text, lists of them, and uint8 arrays.

    Every name that the pickle looks up is refused, but for the four that a numpy array is written with; and those are
    answered by stand-ins of this module, so that not even numpy's own functions can be called by a file.

    Args:
        content: the file.
        name: the file's name, for errors.

    Returns:
        The dictionary; keys and texts are str.

    Raises:
        DataError: it is damaged, holds anything else, or asks for code.
    """
    try:
        for _ in opcodes(io.BytesIO(content)):  # which refuses what would take any memory or time
            pass
        found = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(key): _plain(value) for key, value in found.items()}
    except Exception as error:  # a damaged pickle makes the unpickler raise all sorts
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} is not a CIFAR file as published: {reason}") from error


class _Dtype:
    def __init__(self, code: object, *_: object) -> None:
        if code != "u1":
            raise ValueError(f"an array of {code!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Array:
    def __init__(self, *_: object) -> None:
        self.values: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _Dtype) or column_major:
            raise ValueError("an array in an unknown layout")
        buffer = content.encode("latin1") if isinstance(content, str) else content
        if math.prod(shape) != len(buffer):
            raise ValueError(f"an array of shape {shape} in {len(buffer)} bytes")
        self.values = np.frombuffer(buffer, np.uint8).reshape(shape)


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the old pickle formats."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    _STAND_INS: dict[tuple[str, str], object] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encoded,
    }

    def find_class(self, module: str, name: str) -> object:
        """Only what a numpy array is written with."""
        if (module, name) not in self._STAND_INS:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, which is refused")
        return self._STAND_INS[module, name]

    def persistent_load(self, identity: object) -> object:
        """Nothing outside the file."""
        raise pickle.UnpicklingError("it refers to something outside the file")


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
