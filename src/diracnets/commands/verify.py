"""`diracnets verify`: is a model file what it was when it was written?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diracnets.commands.output import stdout
from diracnets.errors import FileError


@dataclass(frozen=True)
class Verify:
    """Check a model file: its checksum, its structure, and that it computes what it did when it was written."""

    file: Positional[Path]
    """The model file (.safetensors)."""

    def execute(self) -> None:
        """Print what was found; raise an error where something is wrong."""
        from diracnets.artifacts.load import is_pickled
        from diracnets.artifacts.model_file import verify

        if is_pickled(self.file):
            raise FileError(
                f"{self.file} is a checkpoint, not a model file: fold it first, by `diracnets fold {self.file}`"
            )
        found = verify(self.file)
        stdout().print(
            f"{found.path} is valid: {found.layers} layers, {found.parameters:,} parameters, {found.size:,} bytes\n"
            f"SHA-256 of its contents {found.sha256}\n"
            f"It computes what it did when it was written: outputs of up to {found.probe_scale:.3g} differ by at most "
            f"{found.probe_difference:.1e}",
            soft_wrap=True,
        )
