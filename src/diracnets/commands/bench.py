"""`diracnets bench`: several networks side by side on each backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import note
from diracnets.commands.parity import Measured, refuse_folders, show


@dataclass(frozen=True, kw_only=True)
class Bench(Measured):
    """Time networks side by side on this machine: on each backend that is installed, with memory and size.

    A network by name has random weights. All are measured as they are deployed: folded, the branches of a RepVGG
    merged. Ratios are to the first network, on the same backend and in the same precision."""

    models: Positional[tuple[str, ...]]
    """Names of networks, such as diracnet-18, or of trained ones; model files, checkpoints or run folders."""
    against: Annotated[tuple[str, ...], arg(metavar="MODEL", help_behavior_hint="")] = ()
    """More of them, to compare with."""
    precisions: tuple[str, ...] = ("float32", "int8")
    """Some of float32, bfloat16 and int8."""

    def execute(self) -> None:
        """Measure, print the table, and write the files asked for."""
        from diracnets.deploy.parity import bench

        refuse_folders(self.json, self.markdown)
        found = bench(
            {name: str(network_file(Path(name))) for name in (*self.models, *self.against)},
            backends=self.backends or None,
            precisions=self.precisions,
            batches=self.batches,
            rounds=self.rounds,
            say=note,
        )
        costs = ", ".join(f"{name} {count / 1e6:,.1f} million MACs" for name, count in found.facts["networks"].items())
        show(found, costs, json=self.json, markdown=self.markdown)
