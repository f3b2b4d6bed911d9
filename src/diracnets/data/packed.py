"""What `data pack` has written: its list, whether its shards are as they were, and whether they may be replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diracnets.data.progress import Report
from diracnets.data.shard_list import LIST
from diracnets.download import hash_of
from diracnets.errors import FileError, UsageError, some_of
from diracnets.files import reading

FORMAT = "diracnets-shards-1"


def read_list(folder: str | Path) -> dict[str, Any]:
    """The list of a folder of shards that `pack` has made.

    Raises:
        FileError: there is none, or it is not such a list.
    """
    file = Path(folder) / LIST
    try:
        with reading(file):
            found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileError(f"{file} is not a list of shards that `diracnets data pack` wrote")
    return found


def damaged(folder: str | Path, report: Report | None = None) -> list[str]:
    """What is wrong with the shards of a folder that `pack` has made; nothing, if they are as they were.

    Args:
        folder: of the shards.
        report: is told how many shards are read, and of how many.

    Returns:
        A sentence for each shard that is missing or has other bytes.

    Raises:
        FileError: the folder has no list of its shards.
    """
    try:
        shards = [shard for split in read_list(folder)["splits"].values() for shard in split["shards"]]
        named = [(str(shard["file"]), int(shard["bytes"]), str(shard["sha256"])) for shard in shards]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{Path(folder) / LIST} does not list its shards: {error}") from error
    wrong: list[str] = []
    for done, (name, size, sha256) in enumerate(named, 1):
        file = Path(folder) / Path(name).name
        if not file.is_file():
            wrong.append(f"{file} is missing")
        elif file.stat().st_size != size:
            wrong.append(f"{file} has {file.stat().st_size:,} bytes, not {size:,}")
        elif (found := hash_of(file, "sha256")) != sha256:
            wrong.append(f"{file} has other bytes than were packed: sha256 {found}, not {sha256}")
        if report is not None:
            report(done, len(named))
    return wrong


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse a folder that is there, or, with `force`, one that holds anything but packed shards.

    Raises:
        UsageError: it is there, and what to do.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"{out} is there and is not a folder: choose another one")
    names = {file.name for file in out.iterdir()}
    if not names:
        return
    if not force:
        raise UsageError(f"{out} is there already: choose another folder, or replace the shards in it with --force")
    try:
        splits = read_list(out)["splits"].values()
        known = {LIST, *(str(shard[key]) for split in splits for shard in split["shards"] for key in ("file", "index"))}
    except (FileError, KeyError, TypeError, AttributeError):
        known = set()
    if others := sorted(names - known):
        raise UsageError(f"{out} holds more than packed shards ({some_of(others)}), which --force does not replace")
