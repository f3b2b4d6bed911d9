"""`diracnets verify`: checks that a model file is complete and unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diracnets.commands.output import say
from diracnets.errors import FileError


@dataclass(frozen=True)
class Verify:
    """Check a model file: its checksum, its structure, and that its outputs are those recorded when it was written."""

    file: Positional[Path]
    """The model file (.safetensors), a run folder (its model file), or a name from `diracnets models --trained`."""

    def execute(self) -> None:
        """Print the result; raise an error if something is wrong."""
        from diracnets.artifacts.load import is_pickled, is_weights, refuse_names
        from diracnets.artifacts.model_file import verify
        from diracnets.artifacts.pretrained import find_weights

        if is_weights(self.file):
            weights = find_weights(str(self.file))
            stored = weights.file()  # which raises where it is damaged
            say(
                f"{weights.name} is valid: {stored.stat().st_size:,} bytes with the SHA-256 that this version of "
                f"diracnets has on record, {weights.sha256}",
            )
            return
        refuse_names(self.file)
        held = self.file / "model.safetensors"
        file = held if held.is_file() else self.file
        if is_pickled(file):
            raise FileError(f"{file} is a checkpoint, not a model file: fold it first with `diracnets fold {file}`")
        found = verify(file)
        say(
            f"{found.path} is valid: {found.layers} layers, {found.parameters:,} parameters, {found.size:,} bytes\n"
            f"SHA-256 of the contents: {found.sha256}\n"
            f"Outputs match those recorded when it was written: largest difference {found.probe_difference:.1e}, "
            f"for outputs up to {found.probe_scale:.3g}",
        )
