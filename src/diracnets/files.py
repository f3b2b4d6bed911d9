"""Files that are written whole or not at all, and logs that grow by whole lines."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diracnets.errors import FileError

try:
    import fcntl
except ImportError:  # on Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn what the system says while something is read into a FileError.

    >>> with reading("list.txt"):
    ...     Path("/nowhere/list.txt").read_text()
    Traceback (most recent call last):
    ...
    diracnets.errors.FileError: cannot read list.txt: No such file or directory
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot read {what}: {error.strerror or error}") from error


@contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Turn what the system says while something is written into a FileError, as `reading` does."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write {what}: {error.strerror or error}") from error


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path next to `path`, which takes `path`'s place when the block ends well and else vanishes.

    Folders on the way are made. A reader sees the old file or the new one, never a part.

    Args:
        path: the file to write.

    Yields:
        The path to write to. It has `path`'s suffix, for libraries that choose a format by it.

    Raises:
        FileError: the folder or file cannot be written, the disk is full.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "results.json"
    >>> with written_whole(target) as part:
    ...     _ = part.write_text("{}")
    >>> target.read_text()
    '{}'
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch(exist_ok=False)
        permissions = stat.S_IMODE(part.stat().st_mode)  # those of any new file
    try:
        with writing(path):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if stat.S_IMODE(part.stat().st_mode) != permissions:  # safetensors' are of their owner alone
                part.chmod(permissions)
            part.replace(path)
    finally:
        with suppress(OSError):  # of a disk that has become read-only
            part.unlink(missing_ok=True)


def remove_parts(path: str | Path) -> None:
    """Remove the temporary files of `written_whole(path)` that processes left behind which were killed meanwhile.

    Call it only where no other process can be writing `path`. What cannot be removed stays.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "last.pt"
    >>> target.with_name(".last-0a1b2c3d.pt").touch()
    >>> remove_parts(target)
    >>> list(target.parent.iterdir())
    []
    """
    path = Path(path)
    name = re.compile(rf"\.{re.escape(path.stem)}-[0-9a-f]{{8}}{re.escape(path.suffix)}")
    with suppress(OSError):
        for part in [found for found in path.parent.iterdir() if name.fullmatch(found.name)]:
            part.unlink()


def keep_also_as(path: str | Path, name: str | Path) -> None:
    """Give a file a second name, which replaces a file of that name. Both stay what they are when one is replaced.

    A hard link, which takes neither time nor space, or a copy on a file system without links.

    Raises:
        FileError: it cannot be done.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a"
    >>> _ = file.write_text("first")
    >>> keep_also_as(file, file.with_name("b"))
    >>> with written_whole(file) as part:
    ...     _ = part.write_text("second")
    >>> file.read_text(), file.with_name("b").read_text()
    ('second', 'first')
    """
    with written_whole(name) as part:
        part.unlink()
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)


@contextmanager
def written_together(path: str | Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder, whose files and folders take their places next to `path` when the
    block ends well, that of `path` last, and else vanish.

    Args:
        path: the file to write; others beside it may be written too.

    Yields:
        The path to write to.

    Raises:
        FileError: a folder or file cannot be written, the disk is full.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "net.xml"
    >>> with written_together(target) as part:
    ...     _ = part.write_text("<net/>"), part.with_suffix(".bin").write_bytes(bytes(4))
    >>> sorted(file.name for file in target.parent.iterdir())
    ['net.bin', 'net.xml']
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with writing(path):
            folder.mkdir(parents=True)
            yield folder / path.name
            files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
            _flush(folder)
            for file in files:
                target = path.with_name(file.name)
                whole = file.is_dir() and target.is_dir()  # a folder can only take the place of an empty one
                _put(file, target, folder / f"{file.name}.old" if whole else None)
    except FileError as error:  # of a file in the folder, whose name says nothing to a user
        raise FileError(str(error).replace(str(folder), str(path.parent))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder next to `path`, which takes `path`'s place when the block ends well and else vanishes.

    Args:
        path: the folder to make.
        replace: whether to replace a folder that is there; else only an empty one is.

    Yields:
        The folder to write to.

    Raises:
        FileError: it cannot be written, the disk is full, or `path` is there.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "shards"
    >>> with written_folder(target) as made:
    ...     _ = (made / "a.tar").write_bytes(bytes(4))
    >>> [file.name for file in target.iterdir()]
    ['a.tar']
    """
    path = Path(path).absolute()
    mark = secrets.token_hex(4)
    made, old = path.with_name(f".{path.name}-{mark}"), path.with_name(f".{path.name}-{mark}.old")
    try:
        with writing(path):
            made.mkdir(parents=True)
            yield made
            _flush(made)
            _put(made, path, old if replace and path.exists() else None)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Wait until all files in a folder are on the disk."""
    for file in (inner for inner in folder.rglob("*") if inner.is_file()):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _put(made: Path, path: Path, old: Path | None) -> None:
    """Move what was made to its place, and what is there before to `old`; or leave all as it was."""
    if old is not None:
        path.rename(old)
    try:
        made.replace(path)
    except OSError:
        if old is not None:
            old.rename(path)
        raise


def size_of(file: Path) -> int:
    """A file's size in bytes.

    Raises:
        FileError: it cannot be looked up.
    """
    with reading(file):
        return file.stat().st_size


@contextmanager
def locked(path: str | Path, *, wait: bool = True) -> Iterator[bool]:
    """Keep other processes out of the same block meanwhile. A process that dies lets go.

    On systems and file systems that have no locks, nobody is kept out.

    Args:
        path: an empty file to lock, which is made and stays.
        wait: for a process that is in the block.

    Yields:
        Whether other processes are kept out; always, with `wait`.

    Raises:
        FileError: it cannot be made.
    """
    with writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        alone = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                alone = False
            except OSError:  # of a file system without locks
                pass
        yield alone
    finally:
        os.close(file)


def append_json(path: str | Path, row: dict[str, Any]) -> None:
    """Add one line of JSON to a file, in one write, so that readers of the file see whole lines.

    Raises:
        FileError: the file cannot be written.
    """
    with writing(path), Path(path).open("ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")
        os.fsync(file.fileno())


def short_number(value: Any, digits: int = 5) -> Any:  # noqa: ANN401
    """A value as results in JSON hold it: a float with few significant digits, None for one that is not finite.

    >>> short_number(1 / 3), short_number(math.inf), short_number("a"), short_number(2)
    (0.33333, None, 'a', 2)
    """
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
