from pathlib import Path

import pytest
import torch

from diracnets.data.load import DESCRIPTIONS, data_names, load_data
from diracnets.errors import UsageError


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("cifar11", {}, "no data named 'cifar11', only digits, .* shards, parquet; did you mean cifar1"),
        ("mnist", {}, "no data named 'mnist', only"),
        ("folder", {}, r"the folder \(--data-dir\)"),
        (
            "folder",
            {"data_dir": Path("https://example.com/pets")},
            r"^https://example\.com/pets is a URL, which is not",
        ),
        ("cifar10", {"data_dir": "https://example.com"}, r"^https://example\.com is a URL, which is not fetched"),
        ("digits", {"image_size": 32}, "the images of digits have 8 pixels, not 32"),
        ("digits", {"image_size": 0}, "at least 1 pixel, not 0"),
        ("digits", {"workers": -2}, "must be 0 or more, not -2"),
    ],
)
def test_wrong_use(name, arguments, said):
    with pytest.raises(UsageError, match=said):
        load_data(name, **arguments)


def test_every_name_has_a_description():
    assert all(DESCRIPTIONS[name] for name in data_names())


def test_a_folder_has_imagenets_normalization_and_size(split_folder):
    data = load_data("folder", data_dir=str(split_folder), workers=0)
    assert data.input_size == (3, 224, 224)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.dtype == torch.int64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_a_cuda_device_gets_the_same_batches(split_folder, name):
    from diracnets.data.augmentation import Augmentation

    augment = Augmentation(crop="pad", pad=2, flip=True, cutout=3)
    here, there = (
        next(load_data(name, data_dir=split_folder, device=device).train.batches(9, epoch=1, augment=augment))
        for device in ("cpu", "cuda")
    )
    assert all(part.device.type == "cuda" for part in there)
    torch.testing.assert_close(here[0], there[0].cpu(), atol=1e-6, rtol=0)
    assert here[2].equal(there[2].cpu())


def test_fewer_images_are_as_many_of_each_class_and_all_are_held_out():
    data = load_data("digits")
    fewer = data.with_fewer(105)
    counts = fewer.train.labels.bincount()
    assert (len(fewer.train), int(counts.min()), int(counts.max())) == (105, 10, 11)
    assert len(fewer.val) == len(data.val)
    with pytest.raises(UsageError, match="digits has 1438"):
        data.with_fewer(1439)
