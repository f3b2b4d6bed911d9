"""Whether a resumed run finds the very images of a folder that it began with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.data.tree import composed
from diracnets.errors import UsageError

FOLDER = "folder"  # of other data, the number of images says as much: no one renames them one by one


def fingerprint(data: ImageData) -> str | None:
    """A hash of which images of a folder are trained and validated on: their names below it, wherever it lies.

    Args:
        data: any; None is returned for what is not a folder.
    """
    if data.name != FOLDER:
        return None
    sets = [data.train, data.val, *([] if data.test is None else [data.test])]
    named = [[images.name(number) for number in range(len(images))] for images in sets]
    start = os.path.commonpath([name for names in named for name in names])
    whole = hashlib.blake2b(digest_size=16)
    for names in named:
        below = sorted(composed(Path(name).relative_to(start).as_posix()) for name in names)
        whole.update("\0".join([*below, "\0"]).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def check_same_images(data: ImageData, record: RunRecord) -> None:
    """Refuse other images than those that a run began with, of which there may be as many.

    Args:
        data: that the run is to go on with.
        record: of the run; one of an earlier version may not know its images.

    Raises:
        UsageError: an image was added, removed, renamed or moved to another class.
    """
    if record.images is not None and fingerprint(data) != record.images:
        raise UsageError(
            "these are not the images that the run began with: some were renamed, exchanged or moved to another class "
            "since, or --data-dir is another folder; bring them back, or start a new run from its weights (--from)"
        )
