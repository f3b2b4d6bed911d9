import pytest

from diracnets.data.split import hold_out, some_of_each
from diracnets.errors import DataError


def test_a_fifth_of_each_class_and_at_least_one():
    labels = [0] * 100 + [1] * 33 + [2] * 2
    train, held_out = hold_out(labels, [f"image {n}" for n in range(135)], "abc")
    assert sorted(train + held_out) == list(range(135))
    assert [sum(labels[n] == label for n in held_out) for label in range(3)] == [20, 7, 1]
    assert held_out != list(range(20)) + list(range(100, 107)) + [133]


def test_neither_order_nor_new_images_move_the_others():
    keys = [f"image {n}" for n in range(100)]
    held = {keys[n] for n in hold_out([0] * 100, keys, "a")[1]}
    backwards = keys[::-1]
    assert {backwards[n] for n in hold_out([0] * 100, backwards, "a")[1]} == held
    more = [*keys, *(f"new {n}" for n in range(25))]
    later = {more[n] for n in hold_out([0] * 125, more, "a")[1]}
    assert len(held & later) >= 14


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(DataError, match="class 'dog' has one image"):
        hold_out([0, 0, 1], ["a", "b", "c"], ["cat", "dog"])
    with pytest.raises(DataError, match=r"2 classes have one image \(dog, fox\)"):
        hold_out([0, 0, 1, 2], ["a", "b", "c", "d"], ["cat", "dog", "fox"])


def test_some_of_each_class_and_more_of_the_same():
    labels = [number % 3 for number in range(300)] + [3] * 5
    for count in (4, 40, 200, 305):
        chosen = some_of_each(labels, count)
        assert len(chosen) == count
        assert chosen == sorted(set(chosen))
        per_class = [sum(labels[number] == label for number in chosen) for label in range(4)]
        assert max(per_class[:3]) - min(per_class[:3]) <= 1
        assert per_class[3] == min(5, *per_class[:3])
        assert set(some_of_each(labels, count // 2)) <= set(chosen)
    assert some_of_each(labels, 40) != list(range(40))
