"""What the Dirac parameterization costs: one training step of a DiracNet beside the same plain network's.

    python benchmarks/step_time.py --out results/step_time.json

Steps of all variants are interleaved and their order turns with every round, so that what else the machine does falls
on all of them alike. The ratio is that of the medians; its quartiles are over the rounds. Also measured: what each
network keeps in memory for its backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from diracnets import create_model, parameter_groups
from diracnets.models import diracnet
from diracnets.nn import dirac
from diracnets.training.environment import circumstances

VARIANTS: dict[str, tuple[str, Callable[..., list[Tensor]] | None]] = {
    "plain": ("plain", None),
    "dirac": ("diracnet", None),
    "dirac, layer by layer": ("diracnet", lambda layers: [layer.effective_weight() for layer in layers]),
    "dirac, composed": (
        "diracnet",
        lambda layers: [dirac._formula(layer.weight, layer.alpha, layer.beta, layer.groups) for layer in layers],
    ),
}


class Step:
    """One variant of a network with its optimizer; calling it does one training step and returns the seconds."""

    def __init__(self, variant: str, size: str, batch: int, precision: str, device: str, compile: bool) -> None:
        family, self.effective_weights = VARIANTS[variant]
        torch.manual_seed(0)
        self.net: nn.Module = create_model(f"{family}-{size}", device=device).to(memory_format=torch.channels_last)
        self.forward = torch.compile(self.net) if compile else self.net
        self.optimizer = torch.optim.SGD(parameter_groups(self.net, 5e-4), lr=0.01, momentum=0.9, fused=True)
        self.images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (batch,), device=device)
        self.device = device
        self.autocast = precision == "bfloat16"

    def loss(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            logits = self.forward(self.images)
        return nn.functional.cross_entropy(logits.float(), self.labels)

    def __call__(self) -> float:
        synchronize = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        with patch.object(diracnet, "effective_weights", self.effective_weights or diracnet.effective_weights):
            synchronize()
            start = time.perf_counter()
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            synchronize()
            return time.perf_counter() - start

    def saved_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, parameters not counted."""
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
            for parameter in self.net.parameters():
                storages.pop(parameter.untyped_storage().data_ptr(), None)
        del loss
        return sum(storages.values())


def measure(
    size: str, batch: int, precision: str, variants: list[str], rounds: int, device: str, compile: bool
) -> dict:
    steps = {variant: Step(variant, size, batch, precision, device, compile) for variant in variants}
    for step in steps.values():
        for _ in range(5):
            step()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for round in range(rounds):
        for turn in range(len(variants)):
            variant = variants[(round + turn) % len(variants)]
            times[variant].append(steps[variant]())
    weights = sum(p.nbytes for p in steps["plain"].net.parameters() if p.ndim == 4)
    plain_saved = steps["plain"].saved_bytes()
    rows = []
    for variant in variants:
        ratios = [mine / plain for mine, plain in zip(times[variant], times["plain"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "variant": variant,
                "step_ms": round_to(1e3 * statistics.median(times[variant])),
                "ratio_of_medians": round_to(statistics.median(times[variant]) / statistics.median(times["plain"])),
                "ratio_quartiles": [round_to(quartiles[0]), round_to(quartiles[2])],
                "saved_beyond_plain_in_weights": round_to((steps[variant].saved_bytes() - plain_saved) / weights),
            }
        )
        print(
            f"{size:>8} {precision:>9} {variant:<22}",
            *(f"{key}={value}" for key, value in rows[-1].items() if key != "variant"),
        )
    return {
        "network": size,
        "batch": batch,
        "precision": precision,
        "compiled": compile,
        "rounds": rounds,
        "variants": rows,
    }


def round_to(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["28-1:128", "34-2:64"], help="size:batch")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [
        measure(
            *network.split(":")[:1],
            int(network.split(":")[1]),
            precision,
            arguments.variants,
            arguments.rounds,
            arguments.device,
            arguments.compile,
        )
        for network in arguments.networks
        for precision in arguments.precisions
    ]
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"circumstances": circumstances(arguments.device), "measured": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
