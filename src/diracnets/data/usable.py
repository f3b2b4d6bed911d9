"""The images of shards or Parquet files that can be used: split where they are not, looked at, and the others named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from diracnets.data.encoded import EncodedImages, EncodedSet
from diracnets.data.image_file import ADVICE
from diracnets.data.progress import Report
from diracnets.data.readable import CHECKED, unreadable
from diracnets.data.split import HELD_OUT, hold_out, wrong_names
from diracnets.errors import DataError, some_of

S = TypeVar("S", bound=EncodedImages)
_NAMED = 10  # of the samples that cannot be used


@dataclass
class Lost:
    """Samples that cannot be used.

    Attributes:
        why: a sentence for each, or for several.
        count: how many there are.
    """

    why: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, why: str, count: int = 1) -> None:
        """One more, or several for the same reason."""
        self.why.append(why)
        self.count += count


def usable(
    sets: Sequence[EncodedSet[S]],
    key: Callable[[str], str],
    lost: Lost,
    *,
    where: str,
    local: bool,
    skip: float,
    workers: int,
    report: Report | None,
) -> tuple[EncodedSet[S], EncodedSet[S]]:
    """The images to train on and those held out, without those that are found to be unreadable.

    Up to 20,000 images on a local disk are looked at: whether each is one, and whole. If any may be left out, those to
    validate on are all decoded, so that accuracies are of the same images each time. What was found good is remembered.

    Args:
        sets: to train on, and held out; or one, of which one image in five of each class is held out.
        key: of an image's name, what decides whether it is held out.
        lost: samples that are known to be unusable; more are added.
        where: the images are, as the user says it.
        local: whether they are on a local disk.
        skip: the largest part of the samples that may be lost, 0 to 1.
        workers: processes that look at the images.
        report: is told how many are looked at, and of how many.

    Raises:
        DataError: more than that are lost, or all of a class; classes have names that no one can tell apart or print.
    """
    if wrong := wrong_names(sets[0].classes):
        raise DataError(f"{where}: {'; '.join(wrong[:_NAMED])}")
    notes = [note for each in sets[:1] for note in each.notes]
    if len(sets) == 1:
        [whole] = sets
        notes.append(f"to validate: {HELD_OUT}")
        keys = [key(whole.source.name(number)) for number in range(len(whole.labels))]
        sets = [whole.select(numbers) for numbers in hold_out(whole.labels, keys, whole.classes)]
    if without := sorted(set(range(len(sets[0].classes))) - set(sets[0].labels)):
        notes.append(f"classes without an image to train on: {some_of(sets[0].classes[each] for each in without)}")
    count = sum(len(each.labels) for each in sets)
    found = []
    for number, each in enumerate(sets):
        bad: dict[int, str] = {}
        if local and count <= CHECKED:
            bad |= unreadable(each.source, where, "whole", workers=workers, report=report)
        if number == 1 and skip:
            bad |= unreadable(each.source, where, "decoded", workers=workers, report=report)
        for why in bad.values():
            lost.add(why.removesuffix(ADVICE))
        found.append(each.select([n for n in range(len(each.labels)) if n not in bad]) if bad else each)
    total = lost.count + sum(len(each.labels) for each in found)
    spare = int(skip * total) - lost.count
    told = ""
    if lost.count:
        told = "; ".join(lost.why[:_NAMED])
        told += f"; and {len(lost.why) - _NAMED} more" if len(lost.why) > _NAMED else ""
        share = f"{lost.count:,} of {total:,} samples ({lost.count / total:.2%})"
        if spare < 0:
            raise DataError(
                f"{share} cannot be used, and {skip:.2%} may be left out: {told}: mend them, or allow more "
                "(--skip-unreadable)"
            )
        notes.append(f"{share} are left out: {told}")
    for before, after in zip(sets, found, strict=True):
        if gone := set(before.labels) - set(after.labels):
            raise DataError(f"no image can be read of class {before.classes[min(gone)]}: {told}")
    train, val = (replace(each, notes=tuple(notes), spare=spare) for each in found)
    return train, val
