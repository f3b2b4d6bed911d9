"""Parts of a set that are the same each time, with the same share of every class: one held out, or some to train on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from diracnets.errors import DataError, printable, some_of

_MOST = 1_000_000  # classes without names
HELD_OUT = "one image in five of each class, always the same ones"


def hold_out(
    labels: Sequence[int], keys: Sequence[str], classes: Sequence[str], *, one_in: int = 5
) -> tuple[list[int], list[int]]:
    """Numbers of the images to train on, and of those held out: one in five of each class, rounded, at least one.

    Which ones is decided by a hash of each image's key, so that adding images to a class moves almost none of the
    others. It depends on no seed: a network must never be judged by images that it was trained on.

    Args:
        labels: of all images.
        keys: of all images, unique: a path within the folder, a number.
        classes: names, for the error.
        one_in: hold out one in this many.

    Returns:
        Two sorted lists of numbers.

    Raises:
        DataError: a class has fewer than two images.

    >>> train, held_out = hold_out([0] * 10 + [1] * 5, [str(n) for n in range(15)], ["cat", "dog"])
    >>> len(train), [n // 10 for n in held_out]
    (12, [0, 0, 1])
    """
    members: dict[int, list[int]] = defaultdict(list)
    for number, label in enumerate(labels):
        members[label].append(number)
    if single := [classes[label] for label, numbers in members.items() if len(numbers) < 2]:
        which = f"class {single[0]!r} has" if len(single) == 1 else f"{len(single)} classes have"
        names = f" ({some_of(single)})" if len(single) > 1 else ""
        raise DataError(
            f"{which} one image{names}: at least two are needed to hold one out; add some, or leave the class out"
        )
    held_out: list[int] = []
    for numbers in members.values():
        numbers.sort(key=lambda number: _hash(keys[number]))
        held_out += numbers[: max(1, round(len(numbers) / one_in))]
    chosen = set(held_out)
    return [number for number in range(len(labels)) if number not in chosen], sorted(held_out)


def numbered(labels: Iterable[int]) -> tuple[str, ...]:
    """The classes of labels that are numbers from 0, where no names are known: the numbers, up to the largest.

    Raises:
        DataError: it is so large that these would fill the memory, as one label of a damaged or hostile file can be.

    >>> numbered([0, 2])
    ('0', '1', '2')
    """
    largest = max(labels, default=-1)
    if largest >= _MOST:
        raise DataError(
            f"there is a label of {largest:,}, and without a list of classes labels must be below {_MOST:,}"
        )
    return tuple(map(str, range(largest + 1)))


def wrong_names(classes: Sequence[str]) -> list[str]:
    """What is wrong with the names of classes, which a network carries along and every result prints.

    >>> wrong_names(["cat", "dog", "cat"])
    ['the class cat is listed twice']
    """
    twice = [f"the class {name} is listed twice" for name, count in Counter(classes).items() if count > 1]
    return twice + [
        f"the class {name} has control characters in its name: rename it" for name in classes if name != printable(name)
    ]


def some_of_each(labels: Sequence[int], count: int) -> list[int]:
    """Numbers of `count` images, as many of every class as there are, up to one.

    Which ones depends on their numbers alone. A larger count has the same images and more.

    Args:
        labels: of all images.
        count: how many to choose, from 0 to all.

    Returns:
        A sorted list of numbers.

    >>> [number // 10 for number in some_of_each([0] * 10 + [1] * 10 + [2], 7)]
    [0, 0, 0, 1, 1, 1, 2]
    """
    keys = [_hash(str(number)) for number in range(len(labels))]
    seen: dict[int, int] = defaultdict(int)
    rounds: list[tuple[int, bytes, int]] = []  # in the first one every class has one image, and so on
    for number in sorted(range(len(labels)), key=keys.__getitem__):
        rounds.append((seen[labels[number]], keys[number], number))
        seen[labels[number]] += 1
    return sorted(number for _, _, number in sorted(rounds)[:count])


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape")).digest()
