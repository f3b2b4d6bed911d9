"""Trained networks: what is known about each, and the file that holds it, in the package or downloaded once."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diracnets.artifacts.card import ModelFacts
from diracnets.download import Checksum, download
from diracnets.errors import FileError, UsageError, did_you_mean
from diracnets.models.init import upgraded

FOLDER = Path(__file__).with_name("weights")  # NAME.json for each, and NAME.safetensors for those without a url


@dataclass(frozen=True)
class Weights:
    """The facts of one trained network.

    Args:
        name: what `load` and `build_model(..., pretrained=...)` know it by, such as "diracnet-28-1-cifar10".
        model: the arguments of `build_model` that make the network.
        data: what it was trained on.
        recipe: the recipe by its name, with what differed from it.
        accuracy: on the held-out images, 0..1, of the weights as they are in the file.
        images: how many held-out images that is.
        sha256: of the file, 64 hexadecimal digits, or the first ones where no more are known.
        mean, std: of each channel, for pixels in 0..1.
        licence: of the weights.
        classes: the name of each output, or nothing where they are not known.
        seed, commit: of the training, where they are known.
        size: of the file, bytes, where it is known.
        url: where the file is; None where it comes with the package.
        folded: the file holds the chain, not the network that was trained.
        settings: the whole recipe, as `Recipe.table` gives it.
        note: what else one should know before using it.

    >>> find_weights("diracnet-28-0.5-digits").model["name"]
    'diracnet-28-0.5'
    """

    name: str
    model: Mapping[str, Any]
    data: str
    recipe: str
    accuracy: float
    images: int
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    classes: tuple[str, ...] = ()
    seed: int | None = None
    commit: str | None = None
    size: int | None = None
    url: str | None = None
    folded: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

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
                download(self.url, path, checksum)
                return path
        if wrong := checksum.check(path):
            raise FileError(f"{path} is damaged ({wrong}): {remedy}")
        return path

    def facts(self) -> ModelFacts:
        """The same as the facts that a network carries."""
        height, width = self.model["image_size"]
        known = {
            "seed": self.seed,
            "commit": self.commit,
            "url": self.url,
            "note": self.note,
            "settings": self.settings,
        }
        provenance = {
            "weights": self.name,
            "data": {"name": self.data, "val": self.images},
            "recipe": self.recipe,
            "accuracy": self.accuracy,
            "licence": self.licence,
            **{key: value for key, value in known.items() if value not in (None, "", {})},
        }
        return ModelFacts((self.model["in_channels"], height, width), self.mean, self.std, self.classes, provenance)


def list_weights(pattern: str = "*") -> list[str]:
    """The names of the trained networks, those in the package and those that are downloaded when asked for.

    Args:
        pattern: a shell pattern that the names have to match.

    >>> list_weights("*-digits")
    ['diracnet-28-0.5-digits']
    """
    return fnmatch.filter(sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json")), pattern)


def find_weights(name: str) -> Weights:
    """The facts of a trained network.

    Args:
        name: one of `list_weights()`.

    Raises:
        UsageError: there is none of that name.

    >>> find_weights("diracnet-28-0.5-digits").classes
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    if name not in list_weights():
        hint = did_you_mean(name, list_weights(), f"there are {', '.join(list_weights())}")
        raise UsageError(f"no trained network is called {name!r}: {hint}")
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Weights(**{**facts, "model": upgraded(facts["model"])})


def choose_weights(model: str, pretrained: str | bool, num_classes: int | None) -> Weights:
    """The weights that `build_model(model, pretrained=pretrained, num_classes=num_classes)` asks for.

    Args:
        model: the network's name.
        pretrained: the name of weights of that network, or True for the first ones with as many classes.
        num_classes: None for any number.

    Raises:
        UsageError: there are none; the message says which there are.
    """
    known = [find_weights(name) for name in list_weights()]
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
    raise UsageError(
        f"no weights of {model} tell {num_classes} classes apart; there are {there_are}: "
        "take these without num_classes, then reset_classifier"
    )


def cache_folder() -> Path:
    """Where downloaded weights are kept: $DIRACNETS_HOME, or ~/.cache/diracnets."""
    home = os.environ.get("DIRACNETS_HOME")
    return Path(home) if home else Path.home() / ".cache" / "diracnets"
