"""`diracnets parity`: one network on every backend, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import note, stdout, table
from diracnets.errors import UsageError
from diracnets.files import written_whole
from diracnets.places import check_folder

if TYPE_CHECKING:
    from diracnets.deploy.parity import Table


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The options of commands that measure networks on backends."""

    backends: Annotated[tuple[str, ...], arg(metavar="NAME", help_behavior_hint="")] = ()
    """Some of torch, torch.compile and the formats of `diracnets export --list`; by default all."""
    batches: tuple[int, ...] = (1, 16)
    """Images at a time, for the times."""
    rounds: int = 11
    """How often each is timed."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write all numbers to this file, as JSON."""
    markdown: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also write the table to this file, as Markdown."""


@dataclass(frozen=True, kw_only=True)
class Parity(Measured):
    """Run a network on every backend that is installed, and compare answers, time, memory and size.

    Each backend runs in a process of its own, and their runs are interleaved. What cannot be measured here is listed
    with the reason."""

    file: Positional[Path]
    """A model file (.safetensors), a checkpoint or run folder, which is folded first, or a name from `diracnets models
    --trained`."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100, folder, shards or parquet; by default the data the network was trained on."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of the images, or where the shards are; by default the one that the file's training run used."""
    precisions: tuple[str, ...] = ("float32", "bfloat16", "int8")
    """Some of float32, bfloat16 and int8. A float network is turned into int8 as by `diracnets quantize`."""
    images: int = 1000
    """How many of the held-out images to classify."""

    def execute(self) -> None:
        """Measure, print the table, and write the files asked for."""
        import torch

        from diracnets.artifacts.card import card_of
        from diracnets.artifacts.load import load
        from diracnets.deploy.parity import parity
        from diracnets.evaluation.own_data import own_data

        refuse_folders(self.json, self.markdown)
        file = network_file(self.file)
        model = load(file)
        data = own_data(file, card_of(model), data=self.data, data_dir=self.data_dir, device=torch.device("cpu"))
        for line in data.notes:
            note(line)
        found = parity(
            model,
            data,
            name=str(file),
            backends=self.backends or None,
            precisions=self.precisions,
            images=self.images,
            batches=self.batches,
            rounds=self.rounds,
            say=note,
        )
        facts = found.facts
        title = (
            f"{facts['network']} on {facts['images']:,} held-out images of {facts['data']}; in {facts['exact_in']} "
            f"top-1 {facts['exact_top1']:.2%}, outputs up to {facts['largest_output']:.3g}"
        )
        show(found, title, json=self.json, markdown=self.markdown)


def refuse_folders(*files: Path | None) -> None:
    """Raise `UsageError` or `FileError` where a file that is to be written at the end is a folder, or cannot be."""
    for file in filter(None, files):
        if file.is_dir():
            raise UsageError(f"{file} is a folder: name a file in it")
        check_folder(file.parent)


def show(found: Table, title: str, *, json: Path | None, markdown: Path | None) -> None:
    """Print a table, with the reasons for what is not in it, and write the files asked for.

    Raises:
        FileError: a file cannot be written.
    """
    import json as json_module

    from diracnets.analysis.report import environment_line, markdown_table
    from diracnets.deploy.cells import cells, columns, reasons, without_empty

    console = stdout()
    console.print(f"{title}\n", soft_wrap=True)
    measured = [row for row in found.rows if not row.reason]
    if measured:
        console.print(table(*without_empty(columns(measured), cells(measured))))
    for line in reasons(found.rows):
        console.print(f"not measured: {line}", soft_wrap=True)
    if json is not None:
        with written_whole(json) as part:
            part.write_text(json_module.dumps(found.to_data(), indent=2) + "\n", encoding="utf-8")
        note(f"wrote {json}")
    if markdown is not None:
        lines = markdown_table(*without_empty(columns(found.rows), cells(found.rows)))
        around = environment_line(found.facts["circumstances"])
        with written_whole(markdown) as part:
            part.write_text(f"{title}.\n\n{lines}\n\n{found.facts['rounds']} rounds; {around}\n", encoding="utf-8")
        note(f"wrote {markdown}")
