"""`diracnets verify`: is a model file what it was when it was written?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diracnets.commands.output import stdout
from diracnets.errors import FileError


@dataclass(frozen=True)
class Verify:
    """Check a model file: its hash, its structure, and that it still computes what it did when it was written."""

    file: Positional[Path]
    """The model file (.safetensors)."""

    def execute(self) -> None:
        """Print what was found; an error where something is wrong."""
        from diracnets.artifacts.load import is_checkpoint
        from diracnets.artifacts.model_file import verify

        if is_checkpoint(self.file):
            raise FileError(
                f"{self.file} is a checkpoint, not a model file: fold it first, by `diracnets fold {self.file}`"
            )
        found = verify(self.file)
        stdout().print(
            f"{found.path} is in order: {found.layers} layers, {found.parameters:,} parameters, {found.size:,} bytes\n"
            f"sha256 {found.sha256}\n"
            f"outputs as when it was written: largest difference {found.probe_difference:.1e}, "
            f"largest output {found.probe_scale:.3g}",
            soft_wrap=True,
        )
