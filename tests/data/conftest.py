"""Small pictures and image folders that are made for a test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Makes an RGB picture of smooth colours, which lossy formats keep."""
    return _picture


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes images at the given paths, and gives their root."""

    def make(*paths: str) -> Path:
        for seed, path in enumerate(paths):
            file = tmp_path / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            _picture(seed=seed).save(file)
        return tmp_path / "images"

    return make


@pytest.fixture
def split_folder(make_folder: Callable[..., Path]) -> Path:
    """A folder with 12 images in train/ and 4 in val/, of cats and dogs, in six formats."""
    kinds = ["jpg", "png", "webp", "bmp", "gif", "tiff"]
    train = [f"train/{kind}/{n}.{suffix}" for kind in ("cat", "dog") for n, suffix in enumerate(kinds)]
    val = [f"val/{kind}/{n}.png" for kind in ("cat", "dog") for n in range(2)]
    return make_folder(*train, *val)
