"""What `unbranch` makes of residual networks: parameters, work and time against the original's, and how exact it is.

python benchmarks/unbranch.py --out results/unbranch.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from timing import Work, interleaved
from torch import nn

from diracnets import create_model, fold, unbranch
from diracnets.runtime.environment import circumstances


def measure(name: str, rounds: int) -> dict[str, object]:
    """One network with random weights and BatchNorm statistics, and its chain."""
    torch.manual_seed(0)
    net = create_model(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    start = time.perf_counter()
    chain = unbranch(net.eval())
    seconds = time.perf_counter() - start
    size = net.input_size[1]
    works = {kind: Work(each, 1, image_size=size) for kind, each in (("network", fold(net)), ("chain", chain))}
    times = interleaved({kind: work.infer for kind, work in works.items()}, rounds, torch.device("cpu"))
    ratios = [after / before for before, after in zip(times["network"], times["chain"], strict=True)]
    report = asdict(chain.unbranch_report)
    row = {
        "network": name,
        "seconds": round(seconds, 1),
        "layers": len(chain),
        **{key: value for key, value in report.items() if isinstance(value, int | float | tuple) and key != "notes"},
        "image_size": size,
        "ms": {kind: round(1000 * statistics.median(each), 2) for kind, each in times.items()},
        "time_ratio": round(statistics.median(ratios), 2),
        "time_ratio_quartiles": [round(each, 2) for each in statistics.quantiles(ratios, n=4)[::2]],
        "rounds": rounds,
    }
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet-18", "resnet-34", "wrn-28-1", "wrn-16-4"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.rounds) for name in arguments.networks]
    if arguments.out:
        content = {
            "compared": "the network with folded batch norms and its chain, one image at a time, float32",
            "circumstances": circumstances(),
            "measured": rows,
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
