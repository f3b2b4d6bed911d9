import io
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from diracnets.data import dataset as module
from diracnets.data.augmentation import Augmentation
from diracnets.data.load import load_data
from diracnets.data.memory import MemoryImages
from diracnets.data.stream import StreamedImages
from diracnets.errors import DataError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 10, 3), dtype=np.uint8)
LABELS = [n % 4 for n in range(20)]


class Listed(list):
    """A list of items, with attributes as torchvision's data sets have them."""


def as_items(convert, labels=LABELS):
    return [(convert(image), label) for image, label in zip(PIXELS, labels, strict=True)]


def pixels_of(images):
    """uint8 [N, H, W, C], by number."""
    return np.stack([np.asarray(images.image(n)) for n in range(len(images))])


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda image: image,
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: torch.from_numpy(image).permute(2, 0, 1) / 255,
        lambda image: image / 255,
        lambda image: (image / 255).astype(np.float32),
    ],
    ids=["PIL", "numpy uint8", "tensor uint8", "tensor float", "numpy float64", "numpy float32"],
)
@pytest.mark.parametrize("as_label", [int, np.int64, torch.tensor, lambda label: torch.tensor([label])])
def test_any_kind_of_image_and_label(convert, as_label):
    items = as_items(convert, [as_label(label) for label in LABELS])
    data = load_data((items, items[:4]))
    assert data.input_size == (3, 12, 10)
    assert data.classes == tuple("0123")
    assert data.train.labels.tolist() == LABELS
    assert (pixels_of(data.train) == PIXELS).all()
    assert len(data.val) == 4
    np.testing.assert_allclose(data.mean, PIXELS.mean((0, 1, 2)) / 255, atol=1e-6)
    np.testing.assert_allclose(data.std, PIXELS.std((0, 1, 2)) / 255, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels):
    pixels = torch.rand(20, channels, 8, 8)
    data = load_data(TensorDataset(pixels[:, 0] if channels == 1 else pixels, torch.tensor(LABELS)))
    assert data.input_size == (channels, 8, 8)
    images, _, _ = next(data.train.batches(4, epoch=0, augment=Augmentation(crop="pad", pad=1, flip=True)))
    assert images.shape == (4, channels, 8, 8)


def test_one_dataset_is_split_and_its_class_names_are_kept():
    items = Listed(as_items(Image.fromarray))
    items.classes = ["ant", "bee", "cat", "dog"]
    data = load_data(items)
    assert (len(data.train), len(data.val)) == (16, 4)
    assert data.classes == ("ant", "bee", "cat", "dog")
    assert sorted(data.val.labels.tolist()) == [0, 1, 2, 3]
    names = [data.val.name(n) for n in range(4)]
    assert all(name.startswith("dataset item ") for name in names)
    numbers = [int(name.split()[-1]) for name in names]
    assert (pixels_of(data.val) == PIXELS[numbers]).all()
    assert load_data(Subset(items, list(range(20)))).classes == data.classes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_too_large_for_memory_is_streamed_alike(monkeypatch, workers):
    items = as_items(Image.fromarray)
    memory = load_data(items)
    monkeypatch.setattr(module, "_MEMORY", 1000)
    stream = load_data(items, workers=workers)
    assert isinstance(memory.train, MemoryImages)
    assert isinstance(stream.train, StreamedImages)
    augment = Augmentation(crop="pad", pad=2, flip=True, cutout=3)
    for one, other in zip(
        memory.train.batches(5, epoch=1, augment=augment),
        stream.train.batches(5, epoch=1, augment=augment),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert stream.val.name(0) == memory.val.name(0)
    resized = Augmentation(crop="resized")
    for one, other in zip(*(each.train.batches(5, epoch=1, augment=resized) for each in (memory, stream)), strict=True):
        assert one[0].shape == (len(one[1]), 3, 12, 10)
        assert (one[0] - other[0]).abs().max() <= 1.01 / 255 / min(memory.std)  # by one level of 255, as rounded
        assert one[1].equal(other[1])
    assert multiprocessing.active_children() == []


def test_images_of_many_sizes_need_a_size(picture):
    items = [(picture(20 + n, 30, n), n % 2) for n in range(10)]
    with pytest.raises(DataError, match=r"dataset item 1 has .*\(30, 21\), not \(30, 20\): give image_size"):
        load_data(items)
    assert load_data(items, image_size=32).input_size == (3, 32, 32)
    large = load_data(items, image_size=80, workers=0)
    assert isinstance(large.train, StreamedImages)
    assert next(large.val.batches(9))[0].shape == (2, 3, 80, 80)


def grey(index, images, convert=lambda image: image.convert("L")):
    """The images, one of them grey."""
    return [convert(image) if number == index else image for number, image in enumerate(images)]


@pytest.mark.parametrize("index", [0, 7, 19])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_a_grey_image_among_coloured_ones_makes_the_set_no_less_coloured(index, mode):
    images = grey(index, [Image.fromarray(image) for image in PIXELS], lambda image: image.convert("L").convert(mode))
    data = load_data((list(zip(images, LABELS, strict=True)), as_items(Image.fromarray)))
    assert data.input_size == (3, 12, 10)
    assert [note for note in data.notes if "grey" in note] == [
        "some images are grey and some in colour: all are taken in colour"
    ]
    found = pixels_of(data.train)
    others = [number for number in range(20) if number != index]
    assert (found[others] == PIXELS[others]).all()
    assert (found[index, ..., 0] == found[index, ..., 2]).all()


def test_a_grey_array_among_coloured_ones_becomes_coloured():
    items = [(image[..., :1] if number == 0 else image, number % 4) for number, image in enumerate(PIXELS)]
    data = load_data((items, items))
    assert data.input_size[0] == 3
    assert (pixels_of(data.train)[0] == PIXELS[0, ..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_set_that_is_all_grey_stays_so_and_nothing_is_said(mode):
    data = load_data(as_items(lambda image: Image.fromarray(image).convert("L").convert(mode)))
    assert data.input_size[0] == 1
    assert not any("grey" in note for note in data.notes)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("memory", [1 << 30, 10])
def test_colour_is_never_lost_in_silence(monkeypatch, mode, memory):
    """A single coloured image, among more grey ones than are looked at first, is an error when it is read."""
    monkeypatch.setattr(module, "_LOOKED_AT", 4)
    monkeypatch.setattr(module, "_MEMORY", memory)
    images = [Image.fromarray(image).convert("L") for image in PIXELS]
    images[13] = Image.fromarray(PIXELS[13]).convert(mode)
    items = list(zip(images, LABELS, strict=True))
    with pytest.raises(DataError, match=rf"item 13 is in colour \({mode}\), and .* grey: convert all to one kind"):
        list(load_data((items, items), workers=0).train.batches(4))


def test_tensors_of_other_channels_are_named():
    items = [(torch.rand(4 if number == 5 else 3, 8, 8), number % 2) for number in range(10)]
    with pytest.raises(DataError, match="item 5 has 4 channels, and the others have 3: convert all"):
        load_data(items)


def test_streamed_labels_come_from_targets_without_reading_images(monkeypatch):
    monkeypatch.setattr(module, "_MEMORY", 1000)
    items = Counting(as_items(Image.fromarray))
    items.targets = torch.tensor(LABELS)
    source = module.Items(items, range(20), "dataset")
    assert source.labels() == LABELS
    assert items.reads <= 3
    assert load_data((items, items), workers=0).train.labels.tolist() == LABELS
    part = Subset(items, [3, 4, 9])
    assert load_data((part, part), workers=0).train.labels.tolist() == [LABELS[n] for n in (3, 4, 9)]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("told", "changed"), [(True, [3, 2, 1, 0]), (True, [0, 2, 1, 3]), (False, [3, 2, 1, 0])])
def test_targets_that_are_not_what_the_items_give_are_passed_over(monkeypatch, wrapped, told, changed):
    """Also where the few items that are read to compare happen to agree, if a `target_transform` is set."""
    monkeypatch.setattr(module, "_MEMORY", 1000)
    labels = [changed[label] for label in LABELS]
    items = Listed(as_items(Image.fromarray, labels))
    items.targets = LABELS
    if told:
        items.target_transform = changed.__getitem__
    data = Subset(items, list(range(20))) if wrapped else items
    assert load_data((data, data), workers=0).train.labels.tolist() == labels


class Counting(Listed):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


class Failing(list):
    def __getitem__(self, index):
        if index == 7:
            raise ValueError("no such record")
        return super().__getitem__(index)


class Cut(list):
    def __getitem__(self, index):
        return super().__getitem__(index) if index != 7 else Image.open(io.BytesIO(b"no image"))


GOOD = PIXELS[0]


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (3, UsageError, "int is no map-style Dataset"),
        (iter([]), UsageError, "no map-style Dataset"),
        (([], [], []), UsageError, "one Dataset or a pair of them, not 3"),
        ([], DataError, "the dataset set is empty"),
        ((as_items(np.array), []), DataError, "the validation set is empty"),
        ([GOOD, GOOD], DataError, "dataset item 0 is a ndarray, and should be a pair"),
        ([(GOOD, 0), ("x", 1)], DataError, "the image of dataset item 1 is a str"),
        ([(GOOD, 0), (GOOD, 0.5)], DataError, r"the label of dataset item 1 is 0\.5"),
        ([(GOOD, 0), (GOOD, -1)], DataError, "the label of dataset item 1 is -1"),
        ([(GOOD, 0), (GOOD, torch.tensor([0, 1]))], DataError, "the label of dataset item 1 is tensor"),
        ([(GOOD, 1)] * 4, DataError, "all images have the same label"),
        ([(GOOD, 0), (GOOD.astype(int), 1)], DataError, "item 1 is of int64, and should be of uint8"),
        ([(GOOD, 0), (GOOD / 100, 1)], DataError, r"item 1 has values from 0 to 2\.55.*leave normalization"),
        ([(GOOD, 0), (GOOD * np.nan, 1)], DataError, "item 1 has values from nan"),
        ([(GOOD, 0), (GOOD[0, 0], 1)], DataError, r"item 1 has shape \(3,\)"),
        (
            Failing(as_items(np.array)),
            DataError,
            r"item 7: the Dataset raised ValueError in line \d+ of test_dataset\.py: no such record$",
        ),
        (Cut(as_items(np.array)), DataError, "dataset item 7 is not an image that can be read"),
    ],
)
def test_what_cannot_be_used_is_named(data, error, said):
    with pytest.raises(error, match=said):
        load_data(data)


def test_classes_without_an_image_to_train_on_are_named():
    data = load_data([(GOOD, 0), (GOOD, 0), (GOOD, 3), (GOOD, 3)])
    assert data.classes == ("0", "1", "2", "3")
    assert "classes without an image to train on: 1, 2" in data.notes


def test_labels_beyond_the_class_names():
    items = Listed(as_items(np.array))
    items.classes = ["ant", "bee", "cat"]
    with pytest.raises(DataError, match="the label of dataset item 3 is 3, and there are 3 classes"):
        load_data(items)


def flipped_at_random(image):
    """As torchvision's and albumentations' transforms are: a callable with randomness of its own."""
    return image[:, ::-1].copy() if torch.rand(()) < 0.5 else image


class Transformed:
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return self.transform(PIXELS[index]), LABELS[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_random_transforms_of_a_dataset_stay_random_and_are_said(workers):
    plain, random = Transformed(np.array), Transformed(flipped_at_random)
    data = load_data((random, plain), workers=workers)
    assert isinstance(data.train, StreamedImages)
    assert isinstance(data.val, MemoryImages)
    assert ["not bit-exact" in note for note in data.notes] == [True]
    torch.manual_seed(0)
    epochs = [next(data.train.batches(20, epoch=epoch)) for epoch in range(4)]
    seen = {}
    for images, _, numbers in epochs:
        for image, number in zip(images, numbers.tolist(), strict=True):
            seen.setdefault(number, set()).add(image.numpy().tobytes())
    assert {len(forms) for forms in seen.values()} == {1, 2}
    assert sum("to validate on are transformed" in note for note in load_data(random).notes) == 1
