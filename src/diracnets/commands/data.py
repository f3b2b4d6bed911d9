"""`diracnets data`: prepares and checks sets of images."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from diracnets.commands.output import note, say, stdout
from diracnets.data.progress import progress
from diracnets.errors import DataError, FileError

if TYPE_CHECKING:
    from diracnets.data.pack_images import Packed


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
        _print_packed(packed, self.out)


def _print_packed(packed: Packed, out: Path) -> None:
    for line in packed.notes:
        note(line)
    for part in packed.parts:
        stdout().print(f"{part.name:<6} {part.images:,} images in {part.shards:,} shards, {part.size:,} bytes")
    say(f"wrote  {out}, {len(packed.classes)} classes")


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
        from diracnets.data.packed import damaged

        with progress("verifying shards") as report:
            wrong = damaged(self.folder, report)
        if wrong:
            raise FileError("; ".join(wrong))
        say(f"all shards of {self.folder} are there and unchanged")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look through images before anything is trained on them: decode each, and compare the bytes of all.

    Errors, with exit code 1: images that cannot be decoded; files of a kind that is not read; empty classes, or classes
    that are not in both train and val; the same file under two labels, or both in train and val. Warnings: the same
    file twice in a class, a name that says another format than the content, tiny images."""

    images: Positional[str]
    """A folder of images: train/<class>/* and val/<class>/*, or <class>/*; shards or Parquet files, as --data-dir takes
    them."""
    smallest: int = 16
    """Pixels; images with a shorter side are named as tiny."""
    workers: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Processes that decode; by default one per core, at most 4."""
    json: FlagCreatePairsOff[bool] = False
    """Print everything as JSON."""

    def run(self) -> None:
        """Check, and print all that was found.

        Raises:
            DataError: something is wrong.
        """
        from diracnets.data.check import check
        from diracnets.data.inventory import ERRORS, WARNINGS

        with progress("checking images") as report:
            checked = check(self.images, smallest=self.smallest, workers=self.workers, report=report)
        out = stdout()
        if self.json:
            out.print(dumps(checked.to_data(), indent=2), soft_wrap=True)
        else:
            for line in checked.notes:
                note(line)
            for kind, title in {**ERRORS, **WARNINGS}.items():
                found = [each for each in checked.findings if each.kind == kind]
                if found:
                    say(f"{'error' if kind in ERRORS else 'warning'}: {title} ({len(found):,})")
                for each in found:
                    say(f"  {': '.join(filter(None, (', '.join(each.files), each.text)))}")
            say(f"looked at {checked.images:,} images in {len(checked.counts):,} classes")
        if checked.wrong:
            count = sum(each.error for each in checked.findings)
            raise DataError(
                f"{count:,} error{'s' * (count > 1)} in {self.images}, see above: mend them before training"
            )


@dataclass(frozen=True, kw_only=True)
class Imagenet:
    """Unpack ImageNet (ILSVRC 2012) from its original archives to a folder that --data folder reads, or to shards.

    OUT appears when all is there. After an interruption, the same command goes on behind the last complete class, or
    begins the shards again."""

    train: Positional[Path]
    """ILSVRC2012_img_train.tar: a tar file of one tar file for each class."""
    val: Positional[Path]
    """ILSVRC2012_img_val.tar."""
    devkit: Positional[Path]
    """ILSVRC2012_devkit_t12.tar.gz, which says the classes of the validation images."""
    out: Positional[Path]
    """A new folder for train/<wnid>/*.JPEG, val/<wnid>/*.JPEG and words.txt, which says what the classes are."""
    shards: FlagCreatePairsOff[bool] = False
    """Write shards, as data pack does, instead of 1.3 million files."""
    no_hash: FlagCreatePairsOff[bool] = False
    """Take archives other than the originals too, without looking at their MD5 (of the training images that takes
    minutes)."""

    def run(self) -> None:
        """Unpack, and print how many images there are."""
        from diracnets.data.imagenet import pack_imagenet, unpack_imagenet

        archives = self.train, self.val, self.devkit
        if self.shards:
            with progress("packing") as report:
                packed = pack_imagenet(*archives, self.out, check_hashes=not self.no_hash, report=report)
            _print_packed(packed, self.out)
            return
        with progress("unpacking classes") as report:
            counts = unpack_imagenet(*archives, self.out, check_hashes=not self.no_hash, report=report)
        text = f"{counts['train']:,} images to train on, {counts['val']:,} to validate on"
        say(f"wrote {self.out}: {text}")


@dataclass(frozen=True)
class Data:
    """Prepare a set of images for training, and check it."""

    data: Annotated[
        Annotated[Check, subcommand("check")]
        | Annotated[Pack, subcommand("pack")]
        | Annotated[Verify, subcommand("verify")]
        | Annotated[Imagenet, subcommand("imagenet")],
        arg(name=""),
    ]

    def execute(self) -> None:
        """Do it, and print the result."""
        self.data.run()
