"""`diracnets export`: a model file becomes a file of another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import say, stdout, table
from diracnets.errors import UsageError


@dataclass(frozen=True)
class Export:
    """Write a network to a file that other runtimes take.

    The exported file is run on test images and compared with the network. It is kept only if they agree."""

    file: Annotated[Positional[Path | None], arg(metavar="MODEL_FILE", help_behavior_hint="")] = None
    """A model file (.safetensors), a checkpoint or run folder, which is folded first, or a name from `diracnets models
    --trained`."""
    to: Annotated[str | None, arg(metavar="FORMAT", help_behavior_hint="")] = None
    """The format; --list shows those that there are."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The file to write; by default the model's name with the suffix of the format."""
    batch: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Take this many images at a time, of one size: all shapes are fixed. By default any number, where the format has
    that, and any height and width, where the network has that too."""
    from_pixels: FlagCreatePairsOff[bool] = False
    """Take pixels, uint8 from 0 to 255, and normalize them in the file."""
    weights_apart: FlagCreatePairsOff[bool] = False
    """c only: write the weights to a .bin file of their own, which the program loads, instead of into the code."""
    plan: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """c only: where activations lie in memory: mixed, row-by-row or in-place; by default what needs least."""
    force: FlagCreatePairsOff[bool] = False
    """Replace files that are there."""
    list: FlagCreatePairsOff[bool] = False
    """Show the formats, what they need, and whether they can be used here."""

    def execute(self) -> None:
        """Export and print what was written, or print the formats."""
        if self.list:
            self._show_formats()
            return
        if self.file is None or self.to is None:
            what = "a model file" if self.file is None else "--to FORMAT"
            raise UsageError(f"{what} is missing: diracnets export MODEL_FILE --to FORMAT; --list shows the formats")
        from diracnets.deploy.export import export

        exported = export(
            network_file(self.file),
            self.to,
            self.out,
            batch=self.batch,
            from_pixels=self.from_pixels,
            force=self.force,
            weights_apart=self.weights_apart,
            plan=self.plan,
        )
        say(str(exported))

    def _show_formats(self) -> None:
        from diracnets.deploy.backend import find, names

        rows = []
        for name in names():
            backend = find(name)
            missing = backend.missing()
            use = "written, but not run" if backend.unrunnable else "yes"
            use = f"no: {missing} is missing" if missing else use
            rows.append(
                [name, backend.summary, backend.suffix, ", ".join(backend.tolerance), backend.extra or "-", use]
            )
        stdout().print(table(["format", "what it is", "suffix", "precisions", "extra", "usable here"], rows))
