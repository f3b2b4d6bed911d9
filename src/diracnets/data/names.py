"""The data that diracnets knows by name, for those who list it without importing torch."""

from __future__ import annotations

DATASET = "dataset"  # what data is called that has no name: a Dataset of one's own
DESCRIPTIONS = {
    "digits": "1,797 handwritten digits, 8x8 grey, shipped with scikit-learn: nothing to download",
    "cifar10": "60,000 photographs of 10 classes, 32x32, the original python files",
    "cifar100": "60,000 photographs of 100 classes, 32x32, the original python files",
    "folder": "your images, as DIR/train/<class>/* and DIR/val/<class>/*, or DIR/<class>/*",
}


def data_names() -> list[str]:
    """Names that `load_data` takes.

    >>> data_names()
    ['digits', 'cifar10', 'cifar100', 'folder']
    """
    return list(DESCRIPTIONS)
