"""`diracnets quantize`: turns a chain into int8, and prints how well each layer survives it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from diracnets.artifacts.network_file import network_file
from diracnets.commands.output import note, say, stdout, table
from diracnets.errors import UsageError
from diracnets.places import check_model_name


@dataclass(frozen=True)
class Quantize:
    """Turn a trained network into int8, without training, and write it to a model file.

    Images, weights and activations become 8-bit integers. Channels are scaled between layers so that one step suits all
    of them, and weights are rounded so that each layer's output on real images changes least."""

    file: Annotated[Positional[Path], arg(metavar="MODEL_FILE")]
    """A model file (.safetensors), a checkpoint or run folder, which is folded first, or a name from `diracnets models
    --trained`."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100, folder, shards or parquet, whose training images it is calibrated on; by default the
    data the network was trained on."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of the images, or where the shards are; by default the one that the file's training run used."""
    images: Annotated[int, arg(metavar="N")] = 256
    """How many training images to calibrate on."""
    bits: Annotated[int, arg(metavar="N")] = 8
    """Bits of the weights, 2 to 8. They are stored as int8; activations have 8 bits."""
    per_tensor: FlagCreatePairsOff[bool] = False
    """One scale for all weights of a layer, for kernels that have no scale for each output channel."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The model file to write; by default the model's name with -int8.safetensors."""
    to: Annotated[str | None, arg(metavar="FORMAT", help_behavior_hint="")] = None
    """Also export it, to a file of the same name; `diracnets export --list` shows the formats."""
    force: FlagCreatePairsOff[bool] = False
    """Replace files that are there."""

    def execute(self) -> None:
        """Quantize, write, and print the report."""
        file = network_file(self.file)
        out = self.out or Path(f"{file.with_suffix('') if file.is_file() else file.name}-int8.safetensors")
        if out.exists() and not self.force:
            raise UsageError(f"{out} is there already: choose another --out, or give --force")
        check_model_name(out)
        import torch

        from diracnets.artifacts.card import card_of
        from diracnets.artifacts.load import load
        from diracnets.artifacts.model_file import save
        from diracnets.deploy.backend import usable
        from diracnets.deploy.export import export
        from diracnets.deploy.quantize import quantize
        from diracnets.evaluation.own_data import own_data

        backend = usable(self.to) if self.to else None
        if backend is not None:
            if "int8" not in backend.tolerance:
                raise UsageError(f"{backend.name} cannot be written in int8, only in {' and '.join(backend.tolerance)}")
            if (exported_file := out.with_suffix(backend.suffix)).exists() and not self.force:
                raise UsageError(f"{exported_file} is there already: choose another --out, or give --force")
        chain = load(file, folded=True)
        card = card_of(chain)
        data = own_data(file, card, data=self.data, data_dir=self.data_dir, device=torch.device("cpu"))
        for line in data.notes:
            note(line)
        done = quantize(chain, data, images=self.images, bits=self.bits, per_channel=not self.per_tensor)
        card = card_of(done.chain)
        assert card is not None
        save(done.chain, out, card=card)
        rows = [[row.name, row.filter, f"{row.zeros:.1%}", row.output] for row in done.layers]
        columns = ["layer", "filter, dB", "zeros", "output, dB"]
        stdout().print(table(columns, rows))
        say(
            "\nsignal to noise of each filter without its diagonal, the part of its weights that are now zero, and "
            "signal to noise of each output, with all errors before it\n"
            f"calibrated on {done.images} training images: same class as in float for {done.agreement:.1%} of them\n"
            f"wrote {out}, {out.stat().st_size:,} bytes"
        )
        if backend is not None:
            exported = export(done.chain, backend.name, exported_file, force=self.force)
            say(str(exported))
