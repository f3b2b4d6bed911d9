"""Takes the files that are wanted, and no others, out of a published archive."""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from diracnets.errors import FileError

_CHUNK = 1 << 18


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Take the named files out of a .tar.gz, all of them or none.

    Only `<folder.name>/<name>` members that are plain files are read, whatever else the archive holds; so nothing can
    be written outside `folder`.

    Args:
        archive: the file.
        folder: where the files go; must not exist.
        names: of the files.

    Raises:
        FileError: the archive is damaged or lacks a file, or the folder cannot be written.
    """
    wanted = {f"{folder.name}/{name}": name for name in names}
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
            whole = Path(place) / folder.name
            whole.mkdir()
            try:
                with tarfile.open(archive) as tar:
                    for member in tar:
                        name = wanted.get(member.name)
                        content = tar.extractfile(member) if name is not None and member.isreg() else None
                        if name is not None and content is not None:
                            _copy(content.read, whole / name)
                            del wanted[member.name]
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise FileError(f"{archive} is damaged: {error}; delete it and try again") from error
            if wanted:
                raise FileError(f"{archive} lacks {', '.join(sorted(wanted))}: it is not the archive as published")
            whole.rename(folder)
    except OSError as error:
        raise FileError(f"cannot unpack {archive} to {folder}: {error.strerror or error}") from error


def _copy(read: Callable[[int], bytes], path: Path) -> None:
    with path.open("xb") as file:
        while piece := read(_CHUNK):
            file.write(piece)
