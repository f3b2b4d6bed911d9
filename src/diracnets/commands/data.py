"""`diracnets data`: prepares and checks sets of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from diracnets.commands.output import note, stdout
from diracnets.data.progress import progress
from diracnets.errors import FileError


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Pack a folder of images into shards: tar files in the WebDataset format, which disks and servers read fast.

    The folder is read as `--data folder` reads it. The images' bytes are not changed. Classes are mixed, so that every
    shard holds some of most. `diracnets train --data shards --data-dir OUT` trains on them."""

    folder: Positional[Path]
    """The folder of images: train/<class>/* and val/<class>/*, or <class>/*."""
    out: Positional[Path]
    """A new folder for train-000000.tar, ..., val-000000.tar, ... and _info.json, which lists them and the classes."""
    shard_images: int = 10_000
    """Images per shard, at most."""
    shard_mb: int = 256
    """Size of a shard in MB (10^6 bytes), at most; a larger image has a shard of its own."""
    seed: int = 0
    """Random seed of the order of the images."""
    force: FlagCreatePairsOff[bool] = False
    """Replace the shards that are in OUT already."""

    def run(self) -> None:
        """Pack, and print what was written."""
        from diracnets.data.pack import pack

        with progress("packing") as report:
            packed = pack(
                self.folder,
                self.out,
                shard_images=self.shard_images,
                shard_bytes=self.shard_mb * 10**6,
                seed=self.seed,
                force=self.force,
                report=report,
            )
        for line in packed.notes:
            note(line)
        for part in packed.parts:
            stdout().print(f"{part.name:<6} {part.images:,} images in {part.shards:,} shards, {part.size:,} bytes")
        stdout().print(f"wrote  {self.out}, {len(packed.classes)} classes", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check that shards written by `diracnets data pack` are all there and unchanged, by the hashes in _info.json."""

    folder: Positional[Path]
    """The folder of the shards."""

    def run(self) -> None:
        """Read all shards, and say that they are whole.

        Raises:
            FileError: one is missing or damaged.
        """
        from diracnets.data.pack import damaged

        with progress("verifying shards") as report:
            wrong = damaged(self.folder, report)
        if wrong:
            raise FileError("; ".join(wrong))
        stdout().print(f"all shards of {self.folder} are there and unchanged", soft_wrap=True)


@dataclass(frozen=True)
class Data:
    """Prepare a set of images for training, and check it."""

    data: Annotated[
        Annotated[Pack, subcommand("pack")] | Annotated[Verify, subcommand("verify")],
        arg(name=""),
    ]

    def execute(self) -> None:
        """Do it, and print the result."""
        self.data.run()
