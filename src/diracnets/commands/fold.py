"""`diracnets fold`: turns a checkpoint into a model file, and prints how exact the fold is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import say
from diracnets.errors import UsageError
from diracnets.places import check_model_name


@dataclass(frozen=True)
class Fold:
    """Fold a trained network into a chain of ordinary convolutions, and write it to one model file.

    The Dirac parameterization and the batch norms are merged into the convolutions. The network and the chain are run
    on the same inputs, and nothing is written unless they agree."""

    file: Positional[Path]
    """A checkpoint (of diracnets, or a .pt7 file of the paper's authors), a run folder (its best checkpoint), or a name
    from `diracnets models --trained`."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The model file to write; by default the checkpoint's name with the suffix .safetensors, and of a run folder its
    model.safetensors."""
    unbranch: bool = False
    """Of a network with skip-connections make a chain that computes exactly the same, with more channels: `fold` alone
    takes networks without branches."""

    def execute(self) -> None:
        """Fold, write, and print how exact it is."""
        from diracnets.artifacts.card import card_of
        from diracnets.artifacts.chain import write_model_file
        from diracnets.artifacts.load import is_weights, load_as_stored
        from diracnets.models.network import Network

        file = network_file(self.file)
        net = load_as_stored(file)
        if not isinstance(net, Network):
            raise UsageError(f"{file} is already folded; to keep it elsewhere, copy it")
        if card_of(net) is None:
            raise UsageError(
                f"{file} records no input size and normalization, which a model file needs; fold it in Python"
            )
        named = is_weights(file)  # and in a name a dot begins no suffix
        of_run = file != self.file
        beside = file.with_name("model.safetensors") if of_run else file.with_suffix(".safetensors")
        out = self.out or (Path(f"{file}.safetensors") if named else beside)
        if not named and out.exists() and out.samefile(file):
            raise UsageError(f"{out} is the checkpoint itself and would be overwritten; choose another --out")
        check_model_name(out)
        chain = write_model_file(net, out, self.unbranch)
        report = chain.unbranch_report if self.unbranch else chain.fold_report
        say(f"{report}\nwrote       {out}, {out.stat().st_size:,} bytes")
