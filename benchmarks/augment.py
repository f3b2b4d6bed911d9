"""How fast images of CIFAR's size are shuffled, padded, cropped, mirrored, normalised and cut out, without a network.

    python benchmarks/augment.py --threads 2 --out results/augment.json

Whole epochs of 50,000 images of random pixels: the work does not depend on what they show.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from diracnets.data.augmentation import Augmentation
from diracnets.data.memory import MemoryImages
from diracnets.runtime.environment import circumstances

IMAGES = 50_000
AUGMENTATION = Augmentation(crop="pad", pad=4, flip=True, cutout=8)


def measure(images: MemoryImages, batch_size: int, seconds: float, device: torch.device) -> dict[str, object]:
    """Images a second over as many epochs as begin within `seconds`, after one to warm up.

    The rate by processor time, of all threads together, is the one to compare where other programs share the cores.
    """
    rates: list[float] = []
    processor: list[float] = []
    end = time.perf_counter() + seconds
    for epoch in range(1_000_000):
        begun, worked = time.perf_counter(), time.process_time()
        for _ in images.batches(batch_size, epoch=epoch, augment=AUGMENTATION):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if epoch:
            rates.append(len(images) / (time.perf_counter() - begun))
            processor.append(len(images) / (time.process_time() - worked))
        if len(rates) >= 3 and time.perf_counter() > end:
            break
    return {
        "batch_size": batch_size,
        "epochs": len(rates),
        "images_per_second_median": round(statistics.median(rates)),
        "images_per_second_slowest": round(min(rates)),
        "images_per_second_fastest": round(max(rates)),
        "images_per_processor_second_median": round(statistics.median(processor)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # what others were doing when this began
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    images = MemoryImages(pixels, labels, name="noise", mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26], device=device)
    rows = [measure(images, batch_size, arguments.seconds, device) for batch_size in arguments.batch_sizes]
    for row in rows:
        print(json.dumps(row))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "circumstances": circumstances(arguments.device),
            "load_average": load,
            "images": IMAGES,
            "augmentation": vars(AUGMENTATION),
        }
        arguments.out.write_text(json.dumps({**facts, "measured": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
