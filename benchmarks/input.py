"""How fast images are read, decoded and augmented by one worker, against how many a training step takes.

    python benchmarks/input.py --images /tmp/imagenette --out results/input.json

Photographs are written as JPEG of the size that ImageNet has, in pixels and, by grain that is added, in bytes: as an
image folder, as shards and as Parquet. They are read back as for training: a random part, resized, mirrored,
normalized. Rates by processor time are those to compare where other programs share the cores. They are of one process;
workers add up as long as each has a core. The need is the rate of whole training steps, on images that are there.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from timing import WARM_UP, Work

from diracnets.data.augmentation import Augmentation
from diracnets.data.folder import find_images
from diracnets.data.images import IMAGENET_MEAN, IMAGENET_STD, Images
from diracnets.data.load import load_data
from diracnets.data.memory import MemoryImages
from diracnets.data.pack import pack
from diracnets.models.build import build_model
from diracnets.runtime.environment import circumstances

AUGMENTATION = Augmentation(crop="resized", flip=True)
PHOTOGRAPH = (500, 375)
GRAIN, QUALITY = 12, 93  # which give about 110 kB, as ImageNet's images have on average
GPU_RATES = (1_000, 2_500, 5_000, 10_000, 20_000)  # images a second that a network may take on a graphics card


def photographs(folder: Path, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of a folder, equally many of each class, with their class."""
    listing, _ = find_images(folder)
    each = max(2, count // len(listing.classes))
    taken = dict.fromkeys(range(len(listing.classes)), 0)
    for file, label in zip(listing.files, listing.labels, strict=True):
        if taken[label] < each:
            taken[label] += 1
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB").resize(PHOTOGRAPH, Image.Resampling.BICUBIC))
            grain = np.random.default_rng(sum(taken.values())).normal(0, GRAIN, (*pixels.shape[:2], 1))
            yield listing.classes[label], Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def write(folder: Path, source: Path, count: int) -> dict[str, float]:
    """The same photographs as an image folder, as shards and as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[str, list[object]] = {"image": [], "label": []}
    for number, (name, image) in enumerate(photographs(source, count)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        for part in ("train", *["val"] * (number % 8 == 0)):
            file = folder / "folder" / part / name / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(buffer.getvalue())
        rows["image"].append({"bytes": buffer.getvalue(), "path": file.name})
        rows["label"].append(name)
    pack(folder / "folder", folder / "shards")
    (folder / "parquet").mkdir()
    pq.write_table(pa.table(rows), folder / "parquet" / "train.parquet", row_group_size=100)
    pq.write_table(pa.table({k: v[::8] for k, v in rows.items()}), folder / "parquet" / "validation.parquet")
    sizes = [file.stat().st_size for file in (folder / "folder" / "train").rglob("*.jpg")]
    return {"images": len(sizes), "kilobytes_each": round(statistics.mean(sizes) / 1000, 1)}


def reading(images: Images, seconds: float) -> dict[str, float]:
    """Images a second over as many epochs as begin within `seconds`, after one to warm up."""
    rates: list[float] = []
    processor: list[float] = []
    end = time.perf_counter() + seconds
    for epoch in range(1_000_000):
        begun, worked = time.perf_counter(), time.process_time()
        for _ in images.batches(64, epoch=epoch, augment=AUGMENTATION):
            pass
        if epoch:
            rates.append(len(images) / (time.perf_counter() - begun))
            processor.append(len(images) / (time.process_time() - worked))
        if len(rates) >= 3 and time.perf_counter() > end:
            break
    return {
        "epochs": len(rates),
        "images_per_second": round(statistics.median(rates), 1),
        "images_per_processor_second": round(statistics.median(processor), 1),
    }


def stepping(name: str, size: int, batch: int, seconds: float) -> dict[str, float]:
    """Images a second of training steps."""
    net = build_model(name, num_classes=1000, image_size=(size, size))
    work = Work(net, batch, image_size=size, classes=1000)
    for _ in range(WARM_UP):
        work.step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begun = time.perf_counter()
        work.step()
        times.append(time.perf_counter() - begun)
    return {"batch_size": batch, "steps": len(times), "images_per_second": round(batch / statistics.median(times), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs in classes")
    parser.add_argument("--count", type=int, default=512, help="photographs to read")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 224], help="of the network's images")
    parser.add_argument("--model", default="diracnet-18")
    parser.add_argument("--batch-size", type=int, default=32, help="of a training step")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    measured = []
    with tempfile.TemporaryDirectory() as place:
        facts = write(Path(place), arguments.images, arguments.count)
        for size in arguments.sizes:
            need = stepping(arguments.model, size, arguments.batch_size, arguments.seconds)
            rates = {}
            for source in ("folder", "shards", "parquet"):
                data = load_data(source, data_dir=Path(place) / source, image_size=size, workers=0)
                rates[source] = reading(data.train, arguments.seconds)
            pixels = torch.randint(0, 256, (256, size, size, 3), dtype=torch.uint8)
            labels = torch.zeros(256, dtype=torch.int64)
            memory = MemoryImages(pixels, labels, name="memory", mean=IMAGENET_MEAN, std=IMAGENET_STD)
            rates["memory"] = reading(memory, arguments.seconds)
            slowest = min(rates[source]["images_per_processor_second"] for source in ("folder", "shards", "parquet"))
            row = {
                "image_size": size,
                "one_worker": rates,
                "training_step_one_thread": need,
                "cores_for_input_per_core_of_training": round(need["images_per_second"] / slowest, 4),
                "workers_for_a_gpu": {rate: math.ceil(rate / slowest) for rate in GPU_RATES},
            }
            print(json.dumps(row))
            measured.append(row)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "circumstances": circumstances("cpu"),
            "load_average": load,
            "photographs": {"pixels": "x".join(map(str, PHOTOGRAPH)), "grain": GRAIN, "jpeg_quality": QUALITY, **facts},
            "augmentation": vars(AUGMENTATION),
            "model": arguments.model,
            "measured": measured,
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
