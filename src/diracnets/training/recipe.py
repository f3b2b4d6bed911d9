"""The recipe: all that decides a training run, in one frozen dataclass that loads from and saves to TOML."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from diracnets.data.augmentation import Augmentation
from diracnets.errors import FileError, UsageError, did_you_mean
from diracnets.files import written_whole
from diracnets.training.tables import converted, from_table, to_table, to_toml


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run. Numbers that make no sense are refused with a UsageError.

    >>> recipe = Recipe.load("paper-cifar")
    >>> recipe.lr, recipe.drops, recipe.drop_factor
    (0.1, (60, 120, 160), 0.2)
    """

    model: str = "diracnet-28-1"
    """Network to train: a name that `diracnets models` lists."""
    width: float = 1.0
    """Factor on the network's widths."""
    start: Literal["paper", "deep"] = "paper"
    """How a fresh network starts: as the paper's do, or so that a signal comes through hundreds of layers."""
    init: Literal["normal", "kaiming"] | float | None = None
    """How filters start: N(0, 1), Kaiming normal, or the standard deviation; not given: as `start` has it. It is a
    matter of scale, which Muon keeps: it turns filters and leaves their norms."""
    alpha: float | None = None
    """What the scales of the identity start at; not given: as `start` has it. Ordinary convolutions, given both, start
    with the filters that Dirac ones of these scales have."""
    beta: float | None = None
    """What the scales of the normalized filters start at; not given: as `start` has it."""
    bias: float | None = None
    """What the shifts of the batch norms before a ReLU start at, but the last one, before the classifier, at 0 where
    this is above 4 / sqrt(channels); not given: as `start` has it."""
    data: str = "cifar10"
    """Images to train on: digits, cifar10, cifar100, or folder."""
    image_size: int | None = None
    """Side of the square images in pixels, for folders; not given: what suits the data."""
    first_size: int | None = None
    """Smaller side that training images are scaled down to at first (progressive resizing): a step on 24x24 pixels
    costs a little more than half of one on 32x32. Not given: images keep their size."""
    first_part: float = 0.5
    """Part of the run that trains on images of first_size, 0 to 1."""
    images: int | None = None
    """Train on that many of the images only, the same for every seed and as many of each class; not given: on all."""

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD for all, or for the blocks' filters Muon, whose steps turn all directions of a layer alike."""
    filter_lr: float = 0.24
    """Muon's rate for filters at its highest: the angle in radians by which a step turns each of them."""
    filter_momentum: float = 0.6
    """Muon's momentum for filters."""
    lr: float = 0.1
    """Learning rate of SGD at its highest."""
    scale_lr: float | None = None
    """Learning rate of alpha and beta at its highest, 0 keeps them as they start; not given: lr."""
    stem_lr: float | None = None
    """Learning rate of the stem at its highest, 0 keeps it as it starts and spares its backward pass; not given: lr."""
    classifier_lr: float | None = None
    """Learning rate of the classifier at its highest; not given: lr."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 5e-4
    """Decay of convolution and linear weights; nothing else is decayed."""
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = "step"
    """The rate after the warm-up: constant, with drops, down to zero as a cosine, or in a straight line (one-cycle)."""
    warmup: float = 0.0
    """Part of the run over which the rate first rises in a straight line, 0 to 1."""
    drops: tuple[int, ...] = ()
    """Epochs, counted from 1, at whose start the rate drops (step schedule)."""
    drop_factor: float = 0.2
    """Factor on the rate at each drop."""
    restart_momentum: bool = False
    """Begin with no momentum after each drop, as the authors do."""
    label_smoothing: float = 0.0
    """Part of the target that is spread over all classes, 0 to 1."""
    mixup: float = 0.0
    """Train on sums of two images, with shares of the distribution Beta(mixup, mixup); 0: on single images."""
    clip: float = 0.0
    """Largest norm of the gradient, longer ones are scaled down; 0: any."""
    ema: float = 0.0
    """Decay, a step, of a moving average of the weights, which is then what is evaluated and kept; 0: no average."""
    average_last: float = 0.0
    """Last part of the run over which weights are averaged, 0 to 1; the average is what is kept; 0: no average."""
    fresh_statistics: bool = False
    """Take the batch norms' statistics anew, in float32, from training images before each evaluation, as very deep
    networks need."""
    freeze: bool = False
    """Train the classifier alone, on the features of the network that the run starts from."""
    augment: Augmentation = field(default_factory=Augmentation)
    """How training images are varied."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of convolutions in training; auto: what a short measurement finds fast."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side in memory, which most machines convolve faster."""
    compile: bool = False
    """Compile the network with torch.compile."""
    seed: int = 0
    """What all randomness follows from."""
    deterministic: bool = False
    """Use deterministic algorithms only, also where they are slower."""
    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = converted(hint, getattr(self, name), name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name} is {value}, but must be finite")
            object.__setattr__(self, name, value)
        for name in ("epochs", "eval_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("batch_size", self.batch_size >= 2, "at least 2: one image has no statistics to normalize with")
        for name in ("lr", "filter_lr", "width", "drop_factor"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in ("weight_decay", "mixup", "clip", "seed"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("momentum", "filter_momentum", "warmup", "label_smoothing", "ema"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and less than 1")
        self._require("average_last", 0 <= self.average_last <= 1, "0 to 1")
        self._require("image_size", self.image_size is None or self.image_size >= 1, "at least 1")
        self._require("first_size", self.first_size is None or self.first_size >= 1, "at least 1")
        self._require("first_part", 0 < self.first_part <= 1, "more than 0 and at most 1")
        self._require("images", self.images is None or self.images >= 2, "at least 2")
        for name in ("scale_lr", "stem_lr", "classifier_lr"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 0, "at least 0")
        self._require("init", not isinstance(self.init, float) or self.init > 0, "a standard deviation above 0")
        self._require("seed", self.seed < 2**63, "less than 2**63")
        self._require("drops", all(drop >= 1 for drop in self.drops), "epochs, counted from 1")
        self._require("drops", tuple(sorted(set(self.drops))) == self.drops, "in rising order")
        if self.drops and self.schedule != "step":
            raise UsageError(
                f"drops belong to the step schedule, but the schedule is {self.schedule}; leave the drops empty"
            )
        if self.nesterov and self.momentum == 0:
            raise UsageError("nesterov needs a momentum, but momentum is 0")
        if self.ema and self.average_last:
            raise UsageError(f"ema is {self.ema} and average_last is {self.average_last}, but one of them must be 0")
        if self.first_size is None and self.first_part != Recipe.first_part:
            raise UsageError("first_part is the part that trains on smaller images: give their side as first_size too")
        of_muon = (self.filter_lr, self.filter_momentum)
        if self.optimizer != "muon" and of_muon != (Recipe.filter_lr, Recipe.filter_momentum):
            raise UsageError("filter_lr and filter_momentum are Muon's: leave them out, or take optimizer muon")
        rates = {self.scale_lr, self.stem_lr, self.classifier_lr}
        if self.freeze and (self.optimizer == "muon" or rates != {None} or self.fresh_statistics):
            raise UsageError(
                "freeze trains the classifier alone, at the rate lr: "
                "leave out muon, scale_lr, stem_lr, classifier_lr and fresh_statistics"
            )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise UsageError(f"{name} is {getattr(self, name)}, but must be {wanted}")

    @classmethod
    def load(cls, name: str | Path) -> Recipe:
        """The recipe of that name, or in that TOML file.

        Args:
            name: one of `recipe_names()`, or the path of a file whose name ends in .toml.

        Raises:
            UsageError: no such recipe, an unknown key, a value of a wrong type or an impossible number.
            FileError: the file cannot be read, or is no TOML.
        """
        path = Path(name)
        if path.suffix == ".toml":
            try:
                text = path.read_text(encoding="utf-8-sig")  # as Notepad may save it
            except (OSError, UnicodeDecodeError) as error:
                raise FileError(
                    f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}"
                ) from error
        elif name in recipe_names():
            text = (_shipped() / f"{name}.toml").read_text(encoding="utf-8")
        else:
            hint = did_you_mean(str(name), recipe_names(), f"there are {', '.join(recipe_names())}")
            raise UsageError(f"there is no recipe {str(name)!r}: {hint} (a file's name must end in .toml)")
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FileError(f"the recipe {name} is no TOML: {error}") from error
        return cls.from_table(table, f"recipe {name}")

    @classmethod
    def from_table(cls, table: dict[str, Any], source: str = "recipe") -> Recipe:
        """The recipe with the values of a table (see `table`); keys that are missing keep their defaults."""
        return from_table(cls, table, source)

    def table(self) -> dict[str, Any]:
        """The recipe as plain values, for TOML, JSON or a checkpoint."""
        return to_table(self)

    def settings(self) -> dict[str, Any]:
        """Every setting by its short name, as the flags of the command line have them.

        >>> Recipe().settings()["batch_size"]
        128
        """
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def replaced(self, **settings: object) -> Recipe:
        """This recipe with other values for some settings, given by their short names.

        Raises:
            UsageError: no such setting, or a value that makes no sense.

        >>> Recipe.load("paper-cifar").replaced(model="diracnet-28-1", epochs=10).epochs
        10
        """
        for name in settings:
            if name not in self.settings():
                raise UsageError(f"a recipe has no setting {name!r}; {did_you_mean(name, self.settings(), cutoff=0.0)}")
        return replace(self, **settings)  # type: ignore[arg-type]

    def save(self, path: str | Path) -> None:
        """Write the recipe as TOML; `Recipe.load` of that file gives an equal recipe.

        Raises:
            FileError: the file cannot be written.
        """
        with written_whole(path) as part:
            part.write_text(to_toml(self.table()) + "\n", encoding="utf-8")

    def differences(self, other: Recipe) -> list[str]:
        """What differs in `other`, as "name: mine, not theirs" for each field."""
        return [
            f"{item.name}: {getattr(self, item.name)}, not {getattr(other, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]


def recipe_names() -> list[str]:
    """The recipes that come with the package.

    >>> recipe_names()
    ['best-cifar', 'deep-cifar', 'demo', 'fast-cifar', 'fast-imagenet', 'paper-cifar', 'paper-imagenet', 'sprint-cifar']
    """
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def _shipped() -> resources.abc.Traversable:
    return resources.files("diracnets.training") / "recipes"
