"""Image sets for benchmarks: packed pieces (`NAME.npz`) and image files are unpacked once, into a folder of arrays.

Needs numpy, and Pillow for photographs; no torch, so that worker processes are cheap. A CIFAR piece holds the planes G,
R - G and B - G of its images without loss, predicted from their neighbours (the predictor of JPEG-LS), the residuals in
LZMA2. A piece of photographs holds whole image files one after the other.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

PIECES = {  # of each set, by what they are for
    "cifar10": {"train": ("cifar10-train-a", "cifar10-train-b"), "test": ("cifar10-test",)},
    "cifar100": {"train": ("cifar100-train-a", "cifar100-train-b"), "test": ("cifar100-test",)},
    "imagenette": {"train": ("imagenette-train",), "test": ("imagenette-val",)},
}
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 4, "lp": 0, "pb": 0, "nice_len": 273}]
CHUNK = 250  # photographs that a process decodes at a time


def take_in(folders: Iterable[Path], store: Path, side: int) -> list[str]:
    """Unpack what `folders` have and `store` lacks, several pieces at once.

    Args:
        folders: that hold pieces, or photographs as `imagenette/{train,val}/<class>/*`.
        store: gets a file of arrays for each piece.
        side: of photographs, to which they are squashed if they have another size.

    Returns:
        The names of the pieces that the store has then.
    """
    store.mkdir(parents=True, exist_ok=True)
    names = [name for parts in PIECES.values() for pieces in parts.values() for name in pieces]
    found: dict[str, Path] = {}
    for folder in folders:
        for name in names:
            photographs = folder / "imagenette" / name.removeprefix("imagenette-")
            for place in (folder / f"{name}.npz", photographs):
                if place.exists() and name not in found and not (store / f"{name}.npz").exists():
                    found[name] = place
    if found:
        with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
            waiting = {name: pool.submit(cifar, place) for name, place in found.items() if name.startswith("cifar")}
            for name, place in found.items():
                content = waiting[name].result() if name in waiting else photographs_of(place, side, pool)
                part = store / f".{name}-{os.getpid()}.npz"
                np.savez(part, **content)
                part.replace(store / f"{name}.npz")
    return [name for name in names if (store / f"{name}.npz").exists()]


def load(name: str, part: str, store: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels uint8 [N, H, W, 3], labels int64 [N] and the names of the classes.

    Args:
        name: "cifar10", "cifar100" or "imagenette".
        part: "train" or "test".
        store: that `take_in` filled.

    Raises:
        SystemExit: pieces are missing; the message names them.
    """
    pieces = PIECES[name][part]
    if missing := [piece for piece in pieces if not (store / f"{piece}.npz").exists()]:
        raise SystemExit(f"{name} lacks {', '.join(missing)}: give the folder that has them as --data-dir")
    arrays = [np.load(store / f"{piece}.npz") for piece in pieces]
    pixels, labels = (np.concatenate([array[key] for array in arrays]) for key in ("pixels", "labels"))
    return pixels, labels.astype(np.int64), tuple(arrays[0]["classes"].tolist())


def cifar(path: Path) -> dict[str, Any]:
    """The content of a CIFAR piece, its pixels checked by their SHA-256."""
    with np.load(path) as piece:
        count = int(piece["n"])
        planes: list[np.ndarray] = []
        for key in ("p0", "p1", "p2"):
            inflated = lzma.decompress(piece[key].tobytes(), format=lzma.FORMAT_RAW, filters=FILTERS)
            coded = np.frombuffer(inflated, np.uint8).reshape(count, 32, 32).astype(np.int16)
            residuals = np.where(coded & 1, -((coded + 1) >> 1), coded >> 1).transpose(1, 2, 0)
            planes.append(predicted(residuals, planes[0] if planes else None))
        green = planes[0]
        pixels = np.stack([green + planes[1], green, green + planes[2]], -1).astype(np.uint8)
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1, 3))  # [N, 32, 32, 3]
        if hashlib.sha256(pixels.tobytes()).hexdigest() != str(piece["sha256"]):
            raise SystemExit(f"{path} is damaged: its pixels are not those that were packed")
        return {"pixels": pixels, "labels": piece["y"], "classes": piece["classes"]}


def predicted(residuals: np.ndarray, green: np.ndarray | None) -> np.ndarray:
    """A plane [32, 32, N] of its residuals; with `green`, that of a colour's difference from it."""
    plane = np.zeros_like(residuals)
    for i in range(plane.shape[0]):
        for j in range(plane.shape[1]):
            guess: Any = 0
            if i and j:
                west, north, corner = plane[i, j - 1], plane[i - 1, j], plane[i - 1, j - 1]
                high, low = np.maximum(west, north), np.minimum(west, north)
                guess = np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))
            elif i or j:
                guess = plane[i, j - 1] if j else plane[i - 1, j]
            base = 0 if green is None else green[i, j]  # values are known modulo 256, and colours lie in 0..255
            plane[i, j] = ((guess + residuals[i, j] + base) & 255) - base
    return plane


def photographs_of(place: Path, side: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """The photographs of a piece, or of a folder with one sub-folder a class, decoded by many processes."""
    if place.is_dir():
        names = sorted(folder.name for folder in place.iterdir() if folder.is_dir())
        paths = [(path, label) for label, name in enumerate(names) for path in sorted((place / name).iterdir())]
        files = [path.read_bytes() for path, _ in paths]
        labels, classes = np.array([label for _, label in paths]), np.array(names)
    else:
        with np.load(place) as piece:
            data, offsets, labels, classes = (piece[key] for key in ("data", "offsets", "y", "classes"))
        files = [data[first:last].tobytes() for first, last in pairwise(offsets)]
    chunks = [files[first : first + CHUNK] for first in range(0, len(files), CHUNK)]
    pixels = np.concatenate(list(pool.map(decoded, chunks, [side] * len(chunks))))
    return {"pixels": pixels, "labels": labels, "classes": classes}


def decoded(files: Sequence[bytes], side: int) -> np.ndarray:
    """uint8 [N, side, side, 3] of image files."""
    from PIL import Image

    pictures = (Image.open(io.BytesIO(file)).convert("RGB") for file in files)
    whole = (picture if picture.size == (side, side) else picture.resize((side, side)) for picture in pictures)
    return np.stack([np.asarray(picture) for picture in whole])
