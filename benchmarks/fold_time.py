"""How long a fold takes, its own check included, and how exact it is.

python benchmarks/fold_time.py --out results/fold_time.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diracnets import create_model, fold
from diracnets.runtime.environment import circumstances


def measure(name: str, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    net = create_model(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    net.eval()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        chain = fold(net)
        seconds.append(time.perf_counter() - start)
    report = asdict(chain.fold_report)
    row = {
        "network": name,
        "seconds": round(statistics.median(seconds), 3),
        "rounds": rounds,
        "layers": len(chain),
        **{key: value for key, value in report.items() if isinstance(value, int | float)},
    }
    print(row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["diracnet-28-1", "diracnet-28-10", "diracnet-18", "diracnet-34", "diracnet-400-1"]
    parser.add_argument("--networks", nargs="+", default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [measure(name, arguments.rounds) for name in arguments.networks]
    if arguments.out:
        arguments.out.write_text(json.dumps({"circumstances": circumstances(), "measured": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
