"""A file of `torch.save`, looked at before it is loaded: nothing in it may ask for more memory than the file has bytes.

`torch.load(weights_only=True)` runs no code, but some of what it allows takes any amount of memory or time: a
`bytearray` or a tensor of a length that a number states, compressed records, an encoding. Files of weights have no such
things.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO

from diracnets.errors import FileError
from diracnets.pickles import opcodes

LONGEST = 1 << 26  # bytes of a pickle without its tensors; 1000 layers and their optimizer have under 2^20
_RECORDS = 1 << 20
_LEGACY_PICKLES = 5  # magic number, version, sizes of integers, content, names of storages
_STORAGES = {
    f"torch {kind}Storage": size
    for size, kinds in {
        1: ("Char", "Byte", "Bool"),
        2: ("Half", "BFloat16", "Short"),
        4: ("Float", "Int"),
        8: ("Double", "Long", "ComplexFloat"),
        16: ("ComplexDouble",),
    }.items()
    for kind in kinds
}  # and the bytes of one of its elements
_PLAIN = frozenset(
    {
        *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
        *(f"collections {name}" for name in ("OrderedDict", "Counter")),
        *(f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
        *(f"torch {name}" for name in ("Size", "device", "float16", "bfloat16", "float32", "float64")),
        *(f"torch {name}" for name in ("int8", "int16", "int32", "int64", "uint8", "bool")),
        *_STORAGES,
        "torch.nn.parameter Parameter",
    }
)


def object_in(file: IO[bytes]) -> str | None:
    """The first Python object that a file asks for and that is no part of tensors, numbers, text and containers.

    Args:
        file: the open file; it is left at its beginning.

    Returns:
        Its name, such as "os.system"; None where there is none.

    Raises:
        ValueError: the file is damaged, or would take more memory than it has bytes.

    >>> import io, torch
    >>> file = io.BytesIO()
    >>> torch.save({"weights": torch.ones(3), "more": bytearray(3)}, file)
    >>> object_in(file)
    '__builtin__.bytearray'
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    try:
        found = next((name for name in (_in_archive(file, size) if zipped else _in_legacy(file, size)) if name), None)
    except (zipfile.BadZipFile, EOFError, OverflowError, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    file.seek(0)
    return found


def _in_archive(file: IO[bytes], size: int) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if len(records) > _RECORDS or len({record.filename for record in records}) < len(records):
            raise ValueError("it has too many records, or two of one name")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("a record of it is compressed, which torch.save never does")
        if sum(record.file_size for record in records) > size:
            raise ValueError("its records are larger than the file")
        sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
        for record in records:
            if record.filename.endswith(".pkl"):
                _check_length(record.file_size)
                with archive.open(record) as content:
                    yield from _objects(content, sizes)


def _in_legacy(file: IO[bytes], size: int) -> Iterator[str]:
    for _ in range(_LEGACY_PICKLES):
        yield from _objects(file, {}, size)


def _objects(content: IO[bytes], sizes: Mapping[str, int], otherwise: int = 0) -> Iterator[str]:
    """The objects that one pickle asks for; the file is left after it.

    Args:
        content: of the pickle.
        sizes: of the records, in bytes.
        otherwise: bytes that a tensor may have which is in no record.
    """
    for name, argument, place in opcodes(content):
        _check_length(place)
        if name in ("INST", "GLOBAL") and argument not in _PLAIN:
            yield str(argument).replace(" ", ".")[:200]
        elif name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield "with a name that it computes"
        elif name == "BINPERSID":
            _check_storage(argument, sizes, otherwise)


def _check_storage(identity: object, sizes: Mapping[str, int], otherwise: int) -> None:
    """Refuse a tensor of more bytes than are stored for it."""
    if not isinstance(identity, tuple) or len(identity) < 5:
        raise ValueError("it refers to something else than tensors")
    _, kind, key, _, elements = identity[:5]
    if kind not in _STORAGES or type(elements) is not int:
        raise ValueError("it refers to something else than tensors")
    if not 0 <= elements * _STORAGES[kind] <= sizes.get(f"data/{key}", otherwise):
        raise ValueError(f"a tensor of {elements} elements is not stored in full")


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise ValueError(f"it describes its tensors in more than {LONGEST >> 20} MiB")


def refused(path: object, name: str | None) -> FileError:
    """The error about a file that holds a Python object."""
    what = f"the Python object {name}" if name else "something else than tensors, numbers and text"
    return FileError(
        f"{path} holds {what}, and is not loaded, since unpickling that could run any code or take any memory; "
        "ask for a model file (.safetensors), or for a state dict of a network of diracnets"
    )
