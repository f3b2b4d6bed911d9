"""`diracnets study`: a question of the paper, answered by one command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg, subcommand

from diracnets.analysis.lens import Lens
from diracnets.analysis.prune import Prune
from diracnets.studies.cifar import Cifar
from diracnets.studies.cost import Cost
from diracnets.studies.depth import Depth
from diracnets.studies.init import Init
from diracnets.studies.signal import Signal


@dataclass(frozen=True)
class Study:
    """Answer a question of the paper: a table, a picture and all numbers, in results/.

    What was stopped goes on where it was when the same command is given again."""

    study: Annotated[
        Annotated[Cifar, subcommand("cifar")]
        | Annotated[Depth, subcommand("depth")]
        | Annotated[Init, subcommand("init")]
        | Annotated[Signal, subcommand("signal")]
        | Annotated[Lens, subcommand("lens")]
        | Annotated[Prune, subcommand("prune")]
        | Annotated[Cost, subcommand("cost")],
        arg(name=""),
    ]

    def execute(self) -> None:
        """Answer it, and say where the answer is."""
        self.study.run(lambda text: print(text, flush=True))
