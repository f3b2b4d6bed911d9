"""Checksums: `torch.save` stores a CRC-32 with each record of its file, but `torch.load` looks at none of them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import torch

from diracnets.errors import first_line


@contextmanager
def checksums_written() -> Iterator[None]:
    """Let `torch.save` write true checksums within the block, also where a program has turned them off.

    >>> with checksums_written():
    ...     torch.serialization.get_crc32_options()
    True
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def damage_in(file: IO[bytes]) -> str | None:
    """What is wrong with a file that `torch.save` wrote, as the end of a sentence; None where all its checksums hold.

    A flipped bit in any tensor or value, and a file that was cut off, are found.

    Args:
        file: the open file, in any place. It is read from its beginning to its end, and left in any place.

    >>> import io
    >>> file = io.BytesIO()
    >>> with checksums_written():
    ...     torch.save({"w": torch.zeros(100)}, file)
    >>> damage_in(file) is None
    True
    >>> flipped = bytearray(file.getvalue())
    >>> flipped[flipped.index(bytes(400)) + 17] = 1
    >>> damage_in(io.BytesIO(flipped))
    'the checksum of its record data/0 is wrong'
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                return "a record of it is compressed, which torch.save never does"
            wrong = archive.testzip()
    except Exception as error:  # a damaged directory of records makes zipfile raise almost anything
        return first_line(error)
    return None if wrong is None else f"the checksum of its record {wrong.partition('/')[2]} is wrong"
