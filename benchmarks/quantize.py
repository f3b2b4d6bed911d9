"""Accuracy of chains in int8, by method, on all held-out images: results/quantize.json.

    python benchmarks/quantize.py MODEL... --data-dir DIR

Calibrated on the first 256 training images; nothing is random. Rows that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import nn

from diracnets import evaluate, load, load_data, quantize
from diracnets.artifacts.card import card_of
from diracnets.data.images import ImageData
from diracnets.deploy.integer import rounded_chain
from diracnets.errors import DiracNetsError, UsageError
from diracnets.files import written_whole
from diracnets.runtime.environment import circumstances

RESULTS = Path(__file__).parents[1] / "results" / "quantize.json"
IMAGES = 256
METHODS = [
    ("float32", 32, "channel"),
    ("nearest", 8, "channel"),
    ("nearest", 8, "tensor"),
    ("nearest", 6, "channel"),
    ("quantize", 8, "channel"),
    ("quantize", 8, "tensor"),
    ("quantize", 6, "channel"),
]


def quantized(chain: nn.Module, data: ImageData, method: str, bits: int, scales: str) -> nn.Module:
    card = card_of(chain)
    if card is None:
        raise UsageError("a model without a card: give a model file")
    if method == "float32":
        return chain
    if method == "nearest":
        images = next(iter(data.train.select(range(IMAGES)).batches(IMAGES)))[0]
        return rounded_chain(chain, card, images, per_channel=scales == "channel", bits=bits)
    return quantize(chain, data, images=IMAGES, bits=bits, per_channel=scales == "channel").chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    try:
        for model in arguments.models:
            chain = load(model, folded=True)
            card = card_of(chain)
            if card is None or card.data is None or card.architecture is None:
                raise UsageError(f"{model} does not say which network it is, trained on what")
            data = load_data(card.data.name, data_dir=arguments.data_dir, download=False)
            name = f"{card.architecture['name']}-{data.name}"
            for method, bits, scales in METHODS:
                key = {"model": name, "method": method, "bits": bits, "scales": scales}
                if any(key.items() <= row.items() for row in rows):
                    continue
                start = time.perf_counter()
                network = quantized(chain, data, method, bits, scales)
                seconds = time.perf_counter() - start
                rows.append({**key, "top1": evaluate(network, data.val).top1, "images": len(data.val)})
                print(f"{rows[-1]}, {seconds:.0f} s to quantize", flush=True)
                with written_whole(RESULTS) as part:
                    text = json.dumps({"circumstances": circumstances(), "rows": rows}, indent=2)
                    part.write_text(text + "\n", encoding="utf-8")
    except DiracNetsError as error:
        parser.exit(1, f"quantize.py: {error}\n")


if __name__ == "__main__":
    main()
