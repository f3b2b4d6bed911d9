"""`diracnets models`: lists the networks."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from tyro.conf import FlagCreatePairsOff, Positional

from diracnets.commands.output import stdout, table
from diracnets.errors import UsageError


@dataclass(frozen=True)
class Models:
    """List the networks that can be built by name, with their numbers of parameters.

    Only common sizes are listed. diracnet-N-k, plain-N-k, wrn-N-k, dirac-wrn-N-k and repvgg-N-k exist for every depth
    N = 6n + 4 and any width k. resnet-N and dirac-resnet-N exist for N = 6n + 2, and from 164 on for N = 9n + 2."""

    pattern: Positional[str] = "*"
    """Only names with this word in them, such as resnet, or that match this pattern, such as 'plain-*' or '*-28-*'."""

    trained: FlagCreatePairsOff[bool] = False
    """List trained networks instead; eval, fold, info, predict and train --from take their names."""

    @property
    def _pattern(self) -> str:
        pattern = self.pattern.lower()  # as all names are
        return pattern if set(pattern) & set("*?[") else f"*{pattern}*"

    def execute(self) -> None:
        """Print the table."""
        if self.trained:
            self._show_trained()
            return
        from diracnets.models.listed import PARAMETERS
        from diracnets.models.names import is_name, parse

        names = fnmatch.filter(PARAMETERS, self._pattern)
        if not names:
            if is_name(self.pattern):
                count = f"`diracnets info {self.pattern}` counts it"
                raise UsageError(f"{self.pattern} is not among the listed networks, but can be built: {count}")
            raise UsageError(f"no listed network matches {self.pattern!r}; `diracnets models` lists them all")
        rows = [
            [name, PARAMETERS[name], *(("3x224x224", 1000) if parse(name).imagenet else ("3x32x32", 10))]
            for name in names
        ]
        stdout().print(table(["name", "parameters", "input", "classes"], rows))

    def _show_trained(self) -> None:
        from diracnets.artifacts.pretrained import find_weights, list_weights

        rows = []
        for name in list_weights(self._pattern):
            weights = find_weights(name)
            place = "in the package" if weights.url is None else "downloaded"
            data = weights.card.data.name if weights.card.data else ""
            rows.append([name, data, f"{weights.accuracy:.2%}", weights.license, place])
        if not rows:
            raise UsageError(
                f"no trained network matches {self.pattern!r}; `diracnets models --trained` lists them all"
            )
        stdout().print(table(["name", "data", "accuracy", "license", "file"], rows))
