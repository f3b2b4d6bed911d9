"""What a study looks into: a network from a run, a file or a name, with images that suit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from diracnets.artifacts.card import card_of
from diracnets.artifacts.load import load_as_stored
from diracnets.artifacts.pretrained import list_weights
from diracnets.data.images import ImageData
from diracnets.data.load import load_data
from diracnets.errors import FileError, UsageError
from diracnets.evaluation.own_data import own_data
from diracnets.models.build import build_model
from diracnets.models.integer import IntegerChain
from diracnets.models.names import is_name, parse
from diracnets.runtime.device import choose_device
from diracnets.training.folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """A network, and images of the data that it is for."""

    name: str
    net: nn.Module
    """On the device; in evaluation mode where it is trained, in training mode where it is fresh."""
    data: ImageData
    run: RunFolder | None
    """The run that it comes from, where a run was asked for."""

    def images(self, count: int | None, usual: int) -> tuple[Tensor, Tensor]:
        """So many of the training images, without augmentation, and their labels, on the device.

        They are the same each time, and drawn from all classes.

        Args:
            count: how many; None for `usual`, or all where there are fewer.
            usual: number of images.

        Raises:
            UsageError: less than 4, which say nothing of their differences, or more than there are.
        """
        count = min(usual, len(self.data.train)) if count is None else count
        if not 4 <= count <= len(self.data.train):
            raise UsageError(
                f"images is {count}; {self.data.name} has {len(self.data.train)}, and at least 4 are needed"
            )
        images, labels, _ = next(self.data.train.batches(count, epoch=0))
        device = next(self.net.parameters()).device
        return images.to(device), labels.to(device)


def find_subject(what: str, data: str | None, data_dir: Path | None, device: str) -> Subject:
    """The network that a user means, with its images.

    Args:
        what: the folder of a run (its last checkpoint is taken), a file that `load` reads, the name of trained weights,
            or of a network, which is then fresh. A name goes before a folder without a run.
        data: by default what the network was trained on, and CIFAR-10 for a fresh one.
        data_dir: where the images are; by default where they were for the run that is meant.
        device: "auto", "cpu", "cuda", ...

    Raises:
        UsageError: no such thing, or data that the network is not for.
        FileError, DataError: files or images that cannot be read.
    """
    place, path = choose_device(device), Path(what)
    run = RunFolder(path) if path.is_dir() else None
    if run is not None and not run.last.exists():
        if what not in list_weights() and not is_name(what):
            raise UsageError(f"{path} holds no run: there is no {run.last.name} in it")
        run = None
    if run is None and not path.is_file() and what not in list_weights():
        if not is_name(what) and (path.name != what or path.suffix in (".pt", ".safetensors")):
            raise FileError(f"there is no file or run folder {what}")
        parse(what)  # what is no name is said before any data is looked for
        images = load_data(data or "cifar10", data_dir=data_dir, device=place)
        channels, height, width = images.input_size
        fresh = build_model(
            what, num_classes=len(images.classes), in_channels=channels, image_size=(height, width), device=place
        )
        return Subject(what, fresh.train(), images, None)
    file = path if run is None else run.last
    net = load_as_stored(what if run is None else file).to(place)
    if isinstance(net, IntegerChain):
        raise UsageError(f"{what} is in int8: give the float model file that it was made from")
    images = own_data(file, card_of(net), data=data, data_dir=data_dir, device=place)
    return Subject(path.name if path.exists() else what, net, images, run)
