"""Accuracy of chains in int8 and with fewer bits, by method, on held-out images: results/quantize.json.

    python benchmarks/quantize.py MODEL... --data-dir DIR
    python benchmarks/quantize.py RUN_FOLDER... --data-dir DIR --images 2000 --bits 8 6

A model is a model file, a run folder, a checkpoint or a name. The branches of a RepVGG are merged. "nearest" is what
runtimes' own quantizers do: the weight's nearest integer, and activations that reach as far as on calibration images.
Calibrated on the first 256 training images; nothing is random. Rows that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import nn

from diracnets import evaluate, load_data, quantize
from diracnets.artifacts.network_file import network_file
from diracnets.data.images import ImageData
from diracnets.deploy.integer import rounded_chain
from diracnets.deploy.subject import Subject, subject_of
from diracnets.errors import DiracNetsError, UsageError
from diracnets.files import written_whole
from diracnets.runtime.environment import circumstances

RESULTS = Path(__file__).parents[1] / "results" / "quantize.json"
CALIBRATION = 256
SATURATING = "quantize, may saturate"  # saturation_safe=False
METHODS = [
    ("float32", 32, "channel"),
    *[(method, 8, scales) for scales in ("channel", "tensor") for method in ("nearest", "quantize", SATURATING)],
    *[(method, bits, "channel") for bits in (6, 7, 5, 4) for method in ("nearest", "quantize")],
]


def quantized(subject: Subject, data: ImageData, method: str, bits: int, scales: str) -> nn.Module:
    if method == "float32":
        return subject.model
    if method == "nearest":
        images = next(iter(data.train.select(range(CALIBRATION)).batches(CALIBRATION)))[0]
        return rounded_chain(subject.model, subject.card, images, per_channel=scales == "channel", bits=bits)
    return quantize(
        subject.model,
        data,
        images=CALIBRATION,
        bits=bits,
        per_channel=scales == "channel",
        saturation_safe=method != SATURATING,
        card=subject.card,
    ).chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, help="how many held-out images, the first ones; by default all")
    parser.add_argument("--bits", type=int, nargs="+", help="of the weights; by default 8, 6, 7, 5 and 4")
    arguments = parser.parse_args()
    try:
        for model in arguments.models:
            subject = subject_of(network_file(model))
            card = subject.card
            if card.data is None or card.architecture is None or subject.is_integer:
                raise UsageError(f"{model} does not say which float network it is, trained on what")
            data = load_data(card.data.name, data_dir=arguments.data_dir, download=False)
            val = data.val.select(range(min(arguments.images or len(data.val), len(data.val))))
            epochs = card.provenance.get("epoch")
            for method, bits, scales in METHODS:
                if arguments.bits and bits not in (32, *arguments.bits):
                    continue
                name = f"{card.architecture['name']}-{data.name}"
                key = {"model": name, "epochs": epochs, "method": method, "bits": bits, "scales": scales}
                key["images"] = len(val)
                if any(key.items() <= row.items() for row in rows()):
                    continue
                start = time.perf_counter()
                network = quantized(subject, data, method, bits, scales)
                seconds = time.perf_counter() - start
                add({**key, "top1": evaluate(network, val).top1})
                print(f"{rows()[-1]}, {seconds:.0f} s to quantize", flush=True)
    except DiracNetsError as error:
        parser.exit(1, f"quantize.py: {error}\n")


def rows() -> list[dict[str, Any]]:
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]) if RESULTS.exists() else []


def add(row: dict[str, Any]) -> None:
    with written_whole(RESULTS) as part:
        text = json.dumps({"circumstances": circumstances(), "rows": [*rows(), row]}, indent=2)
        part.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
