import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from diracnets.artifacts.card import ModelCard
from diracnets.data.images import IMAGENET_MEAN, IMAGENET_STD
from diracnets.errors import UsageError
from diracnets.evaluation.own_data import own_data


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_classes_are_the_same_however_their_letters_are_composed(tmp_path, form):
    """An earlier version took the names of class folders as macOS has them."""
    classes = ("café", "tea")
    for name in classes:
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{number}.png")
    names = tuple(unicodedata.normalize(form, name) for name in classes)
    card = ModelCard((3, 32, 32), IMAGENET_MEAN, IMAGENET_STD, names)
    given = {"data": "folder", "data_dir": tmp_path, "device": torch.device("cpu"), "workers": 0}
    assert own_data(Path("model.safetensors"), card, **given).classes == classes
    other = ModelCard((3, 32, 32), IMAGENET_MEAN, IMAGENET_STD, ("café", "milk"))
    with pytest.raises(UsageError, match="has other classes than folder: 'milk' where folder has 'tea'"):
        own_data(Path("model.safetensors"), other, **given)
