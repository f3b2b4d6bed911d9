import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diracnets.data import memory
from diracnets.data.augmentation import Augmentation
from diracnets.data.memory import MemoryImages
from diracnets.errors import DataError, UsageError

AUGMENT = Augmentation(crop="pad", pad=2, flip=True, cutout=3)


def images(count=50, channels=3, **more):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 8, 8, channels), dtype=torch.uint8, generator=generator)
    mean, std = [0.5] * channels, [0.25] * channels
    return MemoryImages(pixels, torch.arange(count) % 7, name="noise", mean=mean, std=std, **more)


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_evaluation_gives_each_image_once_in_order():
    data = images()
    batches = list(data.batches(16))
    assert [len(labels) for _, labels, _ in batches] == [16, 16, 16, 2]
    pixels, labels, indices = joined(batches)
    assert indices.equal(torch.arange(50))
    assert labels.equal(data.labels)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    restored = (pixels * 0.25 + 0.5).mul(255).round().to(torch.uint8)
    assert restored[13].permute(1, 2, 0).numpy().tobytes() == data.image(13).tobytes()


def test_an_epoch_is_shuffled_and_depends_on_seed_and_number_alone():
    data = images()
    pixels, labels, indices = joined(data.batches(16, epoch=2, augment=AUGMENT, seed=1))
    assert indices.sort().values.equal(torch.arange(50))
    assert not indices.equal(torch.arange(50))
    assert labels.equal(data.labels[indices])
    again = joined(data.batches(7, epoch=2, augment=AUGMENT, seed=1))
    assert all(one.equal(other) for one, other in zip((pixels, labels, indices), again, strict=True))
    for other in ({"epoch": 3, "seed": 1}, {"epoch": 2, "seed": 2}):
        assert not indices.equal(joined(data.batches(16, augment=AUGMENT, **other))[2])


@pytest.mark.parametrize("first", [0, 1, 3])
def test_an_interrupted_epoch_goes_on_where_it_stopped(first):
    data = images()
    whole = list(data.batches(16, epoch=0, augment=AUGMENT))
    rest = list(data.batches(16, epoch=0, augment=AUGMENT, first=first))
    assert len(rest) == 4 - first
    assert all(
        a.equal(b) for one, other in zip(whole[first:], rest, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert list(data.batches(16, epoch=0, first=4)) == []


@pytest.mark.parametrize("at_once", [1, 16 * 192, 40 * 192])
def test_how_many_batches_are_made_at_once_does_not_matter(monkeypatch, at_once):
    expected = list(images().batches(16, epoch=0, augment=AUGMENT, first=1))
    monkeypatch.setattr(memory, "_AT_ONCE", at_once)
    found = list(images().batches(16, epoch=0, augment=AUGMENT, first=1))
    assert [len(labels) for _, labels, _ in found] == [16, 16, 2]
    assert all(a.equal(b) for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True))


class Asked(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(),
        Augmentation(crop="pad", pad=2, flip="random", cutout=3),
        Augmentation(crop="resized", flip="alternating"),
    ],
)
def test_a_graphics_card_is_never_waited_for(augment):
    data = images()
    with Asked() as asked:
        for batch in data.batches(16, epoch=1, augment=augment):
            assert len(batch) == 3
    assert "index_select" in asked.names
    # a number or a list of places that is read back, and a tensor that is made of Python's numbers and copied over
    assert not asked.names & {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "lift_fresh_copy"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"batch_size": 16, "first": 5}, "cannot start at batch 5"),
        ({"batch_size": 16, "first": -1}, "cannot start at batch -1"),
        ({"batch_size": 16, "augment": AUGMENT}, "give epoch"),
        ({"batch_size": 16, "epoch": 0, "augment": Augmentation(crop="pad", pad=9)}, "pad 9 is too large"),
    ],
)
def test_wrong_use_is_refused_before_the_first_batch(arguments, said):
    with pytest.raises(UsageError, match=said):
        images().batches(**arguments)


def test_names_and_pictures():
    data = images(3, numbers=[10, 20, 30])
    assert data.name(1) == "noise 20"
    assert data.image(0).mode == "RGB"
    assert images(3, channels=1).image(0).mode == "L"
    with pytest.raises(DataError, match="noise 0 has 2 channels"):
        images(3, channels=2).image(0)


@pytest.mark.parametrize("numbers", [None, [100 + n for n in range(50)]])
def test_a_selection_keeps_images_labels_and_names(numbers):
    data = images(numbers=numbers)
    chosen = data.select([3, 40, 41]).select([2, 0])
    assert len(chosen) == 2
    pixels, labels, _ = joined(chosen.batches(16))
    everything = joined(data.batches(16))
    assert pixels.equal(everything[0][[41, 3]])
    assert labels.equal(everything[1][[41, 3]])
    assert [chosen.name(index) for index in range(2)] == [data.name(41), data.name(3)]
