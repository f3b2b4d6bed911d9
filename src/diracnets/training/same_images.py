"""Whether a resumed run finds the very images that it began with."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.data.tree import composed
from diracnets.errors import UsageError

FOLDER = "folder"  # of other data, images are known by their numbers
_AGAIN = "start a new run from its weights (--from)"


def check_same_images(data: ImageData, record: RunRecord) -> RunRecord:
    """Refuse other images than those that a run began with, of which there may be as many.

    Args:
        data: that the run is to go on with.
        record: of the run; one of an earlier version may know its images by their names, or not at all.

    Returns:
        The record, with what these images are known by.

    Raises:
        UsageError: an image was added, removed, renamed, exchanged or moved to another class.
    """
    names, contents = fingerprints(data)
    if record.images not in (None, names):
        raise UsageError(
            "these are not the images that the run began with: some were renamed, exchanged or moved to another class "
            f"since, or --data-dir is another folder; bring them back, or {_AGAIN}"
        )
    if record.contents not in (None, contents):
        raise UsageError(
            "these are not the images that the run began with: what is in some, or their labels, was changed since; "
            f"bring them back as they were, or {_AGAIN}"
        )
    return replace(record, images=names, contents=contents)


def fingerprints(data: ImageData) -> tuple[str | None, str]:
    """Hashes of which images are trained and validated on, wherever they lie, and of what is in them.

    The first is of the images' names below their folder, and None of data that is no folder. The second is of their
    labels and, as far as that takes little time, of their content: see `content` of each kind of images.

    Args:
        data: any.
    """
    sets = [data.train, data.val, *([] if data.test is None else [data.test])]
    contents = hashlib.blake2b(digest_size=16)
    if data.name != FOLDER:
        for images in sets:
            contents.update(images.labels.numpy().tobytes())
            contents.update(images.content(range(len(images))))
        return None, contents.hexdigest()
    named = [[images.name(number) for number in range(len(images))] for images in sets]
    common = os.path.commonprefix([name for names in named for name in names])  # noqa: RUF071 - commonpath takes seconds
    start = common.rfind(os.sep) + 1
    whole = hashlib.blake2b(digest_size=16)
    for images, names in zip(sets, named, strict=True):
        # Sorted by composed letters: systems that decompose them may have another order.
        below = sorted((composed(name[start:].replace(os.sep, "/")), number) for number, name in enumerate(names))
        whole.update("\0".join([*(name for name, _ in below), "\0"]).encode("utf-8", "surrogateescape"))
        contents.update(images.content([number for _, number in below]))
    return whole.hexdigest(), contents.hexdigest()
