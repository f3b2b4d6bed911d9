"""Backends: what a network can be exported to, one file each, found without importing the packages that they need."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from diracnets._version import __version__
from diracnets.artifacts.card import ModelCard
from diracnets.errors import FileError, MissingExtraError, UsageError, did_you_mean, first_line, some_of
from diracnets.models.integer import IntegerChain

KEY = "diracnets"  # under which a format with room for text keeps the description
_HOMES = ("onnx", "openvino", "pt2", "aoti", "executorch", "litert", "coreml", "c")  # files of this folder


@dataclass(frozen=True)
class Options:
    """How a network is exported.

    Args:
        batch: how many images the file takes at a time; None for any number.
        from_pixels: whether it takes pixels, uint8 0..255, and normalizes them itself.
        any_size: whether it takes images of any height and width; else of the card's.
        weights_apart: whether the weights go into a file of their own, where a format has the choice.
        plan: of the memory, where a format has several; None for the one that needs least.
    """

    batch: int | None = None
    from_pixels: bool = False
    any_size: bool = False
    weights_apart: bool = False
    plan: str | None = None


class Run(Protocol):
    """An exported file, loaded by its runtime."""

    def __call__(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[batch, channels, height, width], float32 normalized or uint8 pixels, as exported -> [batch, classes]."""


@dataclass(frozen=True)
class Backend:
    """A format: what it is called, what it needs, how a file of it is written and run.

    Each file of this folder that is one has it as `BACKEND`. Packages that only it needs are imported in its functions.

    Args:
        name: as users write it.
        summary: what it is and where it runs, in a few words.
        suffix: of its (main) file.
        tolerance: for each precision that it can write, "float32" or "int8": the largest difference that is accepted
            between what the file gives and what the network does; for float32 relative to the largest output, for int8
            in steps of the output's scale.
        write: called with the network (a float32 chain or another module, or an `IntegerChain`), its card, the path and
            the options. It writes the file, and beside it whatever belongs to it, with names that begin with the file's
            stem and a dot. `from_pixels` and `any_size` are its to fulfil.
        load: called with the path and the card, gives what runs the file as a user would.
        describes: called with the path, gives the text that `description` made.
        exact: as `load`, where that takes kernels that give up exactness for speed: what the file is compared by.
        extra: what to install, as in `pip install "diracnets[extra]"`; None where nothing is needed.
        packages: modules that have to be there.
        lacks: what else is missing on this machine, such as a compiler, in a few words; "" where nothing is.
        unrunnable: why a file can be written but not run, in a few words; "" where it can be run. It is kept unseen.
        dynamic: whether a file can take any number of images; else it takes 1, if not told otherwise.
        sizes: whether a file can take images of any height and width, where it can take any number.
        branches: whether networks that are no chain can be written.
        takes: the options beyond the first three that it knows, by name; others are refused.
        notes: called with the path, gives what a user should know of a file that was written, in lines of text.
    """

    name: str
    summary: str
    suffix: str
    tolerance: Mapping[str, float]
    write: Callable[[nn.Module, ModelCard, Path, Options], None]
    load: Callable[[Path, ModelCard], Run]
    describes: Callable[[Path], str]
    exact: Callable[[Path, ModelCard], Run] | None = None
    extra: str | None = None
    packages: tuple[str, ...] = ()
    lacks: Callable[[], str] = str
    unrunnable: str = ""
    dynamic: bool = True
    sizes: bool = True
    branches: bool = True
    takes: tuple[str, ...] = ()
    notes: Callable[[Path], str] = lambda path: ""

    def missing(self) -> str:
        """What is missing on this machine to use it, "" where nothing is. No package is imported."""
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return ", ".join(absent) or self.lacks()


def names() -> list[str]:
    """The formats that there are.

    >>> names()[0]
    'onnx'
    """
    return [name for name in _HOMES if importlib.util.find_spec(f"diracnets.deploy.{name}") is not None]


def find(name: str) -> Backend:
    """The backend of that name; what it needs may be missing.

    Raises:
        UsageError: there is none.
    """
    known = names()
    if name not in known:
        raise UsageError(f"there is no format {name!r}: {did_you_mean(name, known, f'there are {some_of(known, 99)}')}")
    backend = importlib.import_module(f"diracnets.deploy.{name}").BACKEND
    assert isinstance(backend, Backend)
    return backend


def usable(name: str) -> Backend:
    """The backend of that name, with its packages imported.

    Raises:
        UsageError: there is none.
        MissingExtraError: what it needs is not installed, or does not work here.
    """
    backend = find(name)
    how = f': pip install "diracnets[{backend.extra}]"' if backend.extra else ""
    for package in backend.packages:
        try:
            with quiet():
                importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{name} needs {error.name or package}, which is not installed{how}") from error
        except Exception as error:  # a package that does not fit another raises anything
            raise MissingExtraError(f"{name} needs {package}, which fails to load: {first_line(error)}") from error
    if lacks := backend.lacks():
        raise MissingExtraError(f"{name} needs {lacks}, which is missing here")
    return backend


def precision_of(network: nn.Module) -> str:
    """In which numbers a network computes when it is exported: "int8" for one of whole numbers, else "float32"."""
    return "int8" if isinstance(network, IntegerChain) else "float32"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of other packages: of what they will change one day, or lack on this system."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def description(card: ModelCard, options: Options, precision: str) -> str:
    """What an exported file says of itself, as JSON: the card, and what goes in."""
    shape = [options.batch or "batch", card.input_size[0], *card.input_size[1:]]
    if options.any_size:
        shape[2:] = ["height", "width"]
    data = {
        "diracnets": __version__,
        "precision": precision,
        "input": {"dtype": "uint8 pixels" if options.from_pixels else "float32 normalized", "shape": shape},
        "card": card.to_data(),
    }
    return json.dumps(data)


def card_in(backend: Backend, path: Path) -> ModelCard:
    """The card in an exported file, or beside it.

    Raises:
        FileError: it has none.
    """
    try:
        return ModelCard.from_data(json.loads(backend.describes(path))["card"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # RecursionError too
        raise FileError(f"{path} holds no model card of diracnets: {first_line(error)}") from error


def beside(path: Path) -> Path:
    """The file of the description, for formats that have no place for it.

    >>> beside(Path("model.tflite")).name
    'model.tflite.json'
    """
    return path.with_name(path.name + ".json")


def described_beside(path: Path) -> str:
    """The text of the file `beside`."""
    return beside(path).read_text(encoding="utf-8")
