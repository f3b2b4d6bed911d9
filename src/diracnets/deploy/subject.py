"""What parity and bench measure: any network, by name, file or module, in the form in which it is deployed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diracnets.artifacts.card import ModelCard, card_of, input_size_of
from diracnets.artifacts.load import is_weights, load
from diracnets.errors import DiracNetsError, UsageError, first_line
from diracnets.folding.fold import fold
from diracnets.models.build import build_model
from diracnets.models.integer import IntegerChain
from diracnets.models.names import is_name
from diracnets.models.repvgg import RepVGG, merged
from diracnets.runtime.device import seeded


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to be measured.

    Args:
        name: what to call it.
        model: in evaluation mode: an int8 chain, a float chain, or, where it has branches, with its batch norms folded.
        card: of it; where none is known, with a normalization that says nothing.
        multiply_adds: MACs of one image, in convolutions and matrix products.
        trained: whether it has weights that are worth evaluating.
        note: what could not be done, in a sentence; "" where all was.
    """

    name: str
    model: nn.Module
    card: ModelCard
    multiply_adds: int
    trained: bool
    note: str = ""

    @property
    def is_chain(self) -> bool:
        """Whether it is a float chain."""
        return isinstance(self.model, nn.Sequential)

    @property
    def is_integer(self) -> bool:
        """Whether it is an int8 chain."""
        return isinstance(self.model, IntegerChain)


Given = str | Path | nn.Module | Subject


def subject_of(given: Given, name: str | None = None, input_size: tuple[int, ...] | None = None) -> Subject:
    """A network as it is deployed: folded, the branches of a RepVGG merged.

    Args:
        given: a file or the name of trained weights, which `load` reads; the name of a network, which gets random
            weights; a module of anyone; or what this function gave, which stays as it is.
        name: what to call it; by default what was given.
        input_size: (channels, height, width) of the images of a module that does not say it.

    Raises:
        UsageError: no such network, or the size of its images is not known.
        FileError: the file cannot be read.

    >>> subject = subject_of("repvgg-10-0.25")
    >>> subject.is_chain, subject.trained, subject.card.input_size
    (True, False, (3, 32, 32))
    """
    if isinstance(given, Subject):
        return given if name is None else replace(given, name=name)
    trained = True
    if isinstance(given, nn.Module):
        model, name = given.eval(), name or type(given).__name__
    elif not is_weights(given) and not Path(given).exists() and is_name(str(given)):
        with seeded(0):
            model = build_model(str(given)).eval()
        trained = False
    else:
        model = load(given).eval()
    name = name or str(given)
    card = card_of(model) or _card(name, model, input_size)
    note = ""
    if not isinstance(model, IntegerChain) and not (isinstance(model, nn.Sequential) and card_of(model) is not None):
        try:
            example = torch.zeros(2, *card.input_size)
            model = fold(merged(model) if isinstance(model, RepVGG) else model, example)
        except DiracNetsError as error:
            note = f"{name} is measured as it is, since it does not fold: {error}"
    return Subject(name, model, card, _multiply_adds(name, model, card.input_size), trained, note)


def _card(name: str, model: nn.Module, input_size: tuple[int, ...] | None) -> ModelCard:
    """A card for a network that has none: random images are as good as others for it."""
    size = input_size or input_size_of(model) or getattr(model, "input_size", None)
    if size is None:
        raise UsageError(f"{name} does not say what images it takes: give input_size, such as (3, 224, 224)")
    return ModelCard(tuple(size), mean=(0.5,) * size[0], std=(0.25,) * size[0])


def _multiply_adds(name: str, model: nn.Module, input_size: tuple[int, ...]) -> int:
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(torch.zeros(1, *input_size))
    except RuntimeError as error:
        raise UsageError(f"{name} does not run on images of {input_size}: {first_line(error)}") from error
    return counter.get_total_flops() // 2
