"""Trained networks: the card of each, and the file that holds its weights, in the package or downloaded once."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diracnets.artifacts.card import ModelCard
from diracnets.download import Checksum, download
from diracnets.errors import FileError, UsageError, did_you_mean
from diracnets.places import cache_folder

FOLDER = Path(__file__).with_name("weights")  # NAME.json for each, and NAME.safetensors for those without a url
_LARGEST = 1 << 28  # bytes of a file whose size is not known; that of a DiracNet-34 has 87 million


@dataclass(frozen=True)
class Weights:
    """One trained network: its card, and the file that holds its weights.

    Args:
        name: what `load` and `create_model(..., pretrained=...)` know it by, such as "diracnet-28-1-cifar10".
        card: of the network, with its architecture; the provenance names the accuracy, license and recipe too.
        accuracy: on the held-out images, 0..1, of the weights as they are in the file.
        license: of the weights.
        sha256: of the file, 64 hexadecimal digits, or the first ones where no more are known.
        size: of the file, bytes, where it is known.
        url: where the file is; None where it comes with the package.
        folded: the file holds the chain, not the network that was trained.
        int8: the file holds the chain in integers, which cannot be trained.

    >>> find_weights("diracnet-28-0.5-digits").model["name"]
    'diracnet-28-0.5'
    """

    name: str
    card: ModelCard
    accuracy: float
    license: str
    sha256: str
    size: int | None = None
    url: str | None = None
    folded: bool = False
    int8: bool = False

    @property
    def model(self) -> Mapping[str, Any]:
        """The arguments of `build_model` that make the network."""
        return self.card.architecture or {}

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values, as they are kept in NAME.json."""
        return {**vars(self), "card": self.card.to_data()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Weights:
        """The weights that `to_data` wrote down.

        Raises:
            UsageError: a card that cannot be, or that does not say which network it is of.
        """
        card = ModelCard.from_data(data["card"])
        if card.architecture is None or card.data is None:
            raise UsageError(f"the card of {data['name']} has no architecture or no data")
        return cls(**{**data, "card": card})

    def file(self) -> Path:
        """The file with the tensors, downloaded to `cache_folder()` if need be, and checked.

        Raises:
            FileError: it is missing or damaged, or cannot be downloaded or written.
        """
        checksum = Checksum("sha256", self.sha256)
        if self.url is None:
            path, remedy = FOLDER / f"{self.name}.safetensors", "install diracnets again"
        else:
            path = cache_folder() / "weights" / f"{self.name}-{self.sha256[:8]}{Path(self.url).suffix}"
            remedy = "delete it to have it downloaded again"
            if not path.exists():
                download(self.url, path, checksum, self.size or _LARGEST)
                return path
        if wrong := checksum.check(path):
            raise FileError(f"{path} is damaged ({wrong}): {remedy}")
        return path


def list_weights(pattern: str = "*") -> list[str]:
    """The names of the trained networks, those in the package and those that are downloaded when asked for.

    Args:
        pattern: a shell pattern that the names have to match.

    >>> list_weights("*-digits")
    ['diracnet-28-0.5-digits']
    """
    return fnmatch.filter(sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json")), pattern)


def find_weights(name: str) -> Weights:
    """What is known of a trained network.

    Args:
        name: one of `list_weights()`.

    Raises:
        UsageError: there is none of that name.

    >>> find_weights("diracnet-28-0.5-digits").card.classes
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    if name not in list_weights():
        hint = did_you_mean(name, list_weights(), f"there are {', '.join(list_weights())}")
        raise UsageError(f"no trained network is called {name!r}: {hint}")
    return Weights.from_data(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def choose_weights(model: str, pretrained: str | bool, num_classes: int | None) -> Weights:
    """The weights that `create_model(model, pretrained=pretrained, num_classes=num_classes)` asks for.

    Args:
        model: the network's name.
        pretrained: the name of weights of that network, or True for the first ones with as many classes, or where none
            have as many, for the first ones.
        num_classes: None for any number.

    Raises:
        UsageError: there are none; the message says which there are.
    """
    known = [weights for weights in map(find_weights, list_weights()) if not weights.int8]
    ours = [weights for weights in known if weights.model["name"] == model]
    there_are = ", ".join(f"{weights.name} ({weights.model['num_classes']} classes)" for weights in ours or known)
    if not ours:
        raise UsageError(f"no weights come with {model}; there are {there_are}")
    if isinstance(pretrained, str):
        ours = [weights for weights in ours if weights.name == pretrained]
        if not ours:
            raise UsageError(f"no weights of {model} are called {pretrained!r}; there are {there_are}")
    for weights in ours:
        if num_classes in (None, weights.model["num_classes"]):
            return weights
    return ours[0]
