"""The 1,797 handwritten digits that ship with scikit-learn: real images that need no download."""

from __future__ import annotations

import torch

from diracnets.data.images import ImageData
from diracnets.data.memory import MemoryImages
from diracnets.data.split import HELD_OUT, hold_out
from diracnets.errors import MissingExtraError

# Of the images to train on, in 0..1; a test computes them again.
MEAN = (0.3053,)
STD = (0.3759,)


def load_digits(device: torch.device | str = "cpu") -> ImageData:
    """The digits (Alpaydin & Kaynak 1998), 8x8 grey, their 17 levels spread over 0..255; a fifth is held out.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed: run pip install 'diracnets[demo]'"
        ) from error
    found = datasets.load_digits()
    pixels = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8)[..., None]  # [N, 8, 8, 1]
    labels = torch.from_numpy(found.target).long()
    classes = tuple(str(digit) for digit in range(10))
    train, val = hold_out(labels.tolist(), [str(number) for number in range(len(labels))], classes)
    train_set, val_set = (
        MemoryImages(pixels[part], labels[part], name="digit", mean=MEAN, std=STD, device=device, numbers=part)
        for part in (train, val)
    )
    return ImageData("digits", classes, (1, 8, 8), MEAN, STD, train_set, val_set, (f"to validate: {HELD_OUT}",))
