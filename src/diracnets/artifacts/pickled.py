"""A file of `torch.save`, looked at before it is loaded: nothing in it may ask for more memory than the file has bytes.

`torch.load(weights_only=True)` runs no code, but some of what it allows takes any amount of memory or time: a
`bytearray` or a tensor of a length that a number states, compressed records, an encoding. Files of weights have no such
things.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterator
from typing import IO

from diracnets.errors import FileError

LONGEST = 1 << 26  # bytes of a pickle without its tensors; 1000 layers and their optimizer have under 2^20
_RECORDS = 1 << 20
_LEGACY_PICKLES = 5  # magic number, version, sizes of integers, content, names of storages
_PLAIN = frozenset(
    {
        *(f"{module} {name}" for module in ("builtins", "__builtin__") for name in ("set", "complex")),
        *(f"collections {name}" for name in ("OrderedDict", "Counter")),
        *(f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
        *(f"torch {name}" for name in ("Size", "device", "float16", "bfloat16", "float32", "float64")),
        *(f"torch {name}" for name in ("int8", "int16", "int32", "int64", "uint8", "bool")),
        *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
        *(f"torch {kind}Storage" for kind in ("Byte", "Bool", "ComplexFloat", "ComplexDouble")),
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
        found = next((name for name in (_in_archive(file, size) if zipped else _in_legacy(file)) if name), None)
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
        for record in records:
            if record.filename.endswith(".pkl"):
                _check_length(record.file_size)
                with archive.open(record) as content:
                    yield from _objects(content)


def _in_legacy(file: IO[bytes]) -> Iterator[str]:
    for _ in range(_LEGACY_PICKLES):
        yield from _objects(file)


def _objects(content: IO[bytes]) -> Iterator[str]:
    """The objects that one pickle asks for; the file is left after it."""
    for opcode, argument, place in pickletools.genops(content):
        _check_length(place or 0)
        if opcode.name in ("INST", "GLOBAL") and argument not in _PLAIN:
            yield str(argument).replace(" ", ".")[:200]
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield "with a name that it computes"


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
