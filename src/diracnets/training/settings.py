"""The settings of a training run in four groups, each checked by itself: model, data, optimization, runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from diracnets.data.augmentation import Augmentation
from diracnets.errors import UsageError
from diracnets.models.init import Init
from diracnets.models.names import Pool
from diracnets.training.tables import converted, short_names

FEW_STEPS = 100  # an epoch, of which running statistics lag a tenth
PHOTOGRAPHS = ("folder", "shards", "parquet")
Schedule = Literal["constant", "step", "cosine", "one-cycle"]


class Settings:
    """What the groups have in common: values of the declared types, and checks that name the setting."""

    def __post_init__(self) -> None:
        """Bring the values to their types, and check them."""
        shorts = short_names(type(self))
        for name, hint in get_type_hints(type(self)).items():
            value = converted(hint, getattr(self, name), shorts[name])
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{shorts[name]} is {value}, but must be finite")
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        """Raise `UsageError` for what makes no sense."""

    def _require(self, names: str, wanted: str, holds: Any) -> None:  # noqa: ANN401
        """Raise `UsageError` where one of the settings is not None and `holds(value)` is false."""
        shorts = short_names(type(self))
        for name in names.split():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise UsageError(f"{shorts[name]} is {value}, but must be {wanted}")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The network, and its initialization."""

    name: str = field(default="diracnet-28-1", metadata={"short": "model"})
    """The network to train: a name that `diracnets models` lists."""
    width: float = 1.0
    """Multiplies the channels of networks that do not have their width in their name."""
    pool: Pool = "max"
    """Pooling between the groups of a chain: max, or average for converters that know no maximum (spiking networks,
    verifiers)."""
    init: Init = field(default_factory=Init)
    """How a fresh network is initialized."""

    def _check(self) -> None:
        self._require("width", "more than 0", lambda value: value > 0)


@dataclass(frozen=True)
class DataSettings(Settings):
    """The images, and their augmentation."""

    name: str = field(default="cifar10", metadata={"short": "data"})
    """Images to train on: digits, cifar10, cifar100, folder, shards or parquet."""
    image_size: int | None = None
    """Side of the square images in pixels, for folders. None: a size that suits the data."""
    num_train: int | None = None
    """Train on only this many images, equally many of each class, the same for every random seed. None: all."""
    select_on: int | None = None
    """Hold out this many training images and validate on them instead of the test images, to choose learning rates and
    epochs. They are equally many of each class, the same for every random seed. None: validate on the test images."""
    skip_unreadable: float = 0.0
    """Largest part of the images of a folder, of shards or of Parquet files that may be left out as they cannot be
    read, 0 to 1. Other than 0, images are decoded before the run, once: all of a folder, and of the others those to
    validate on."""
    progressive_size: int | None = None
    """Progressive resizing: the shorter side that training images are scaled down to in the first part of the run. A
    step on 24x24 pixels costs a little more than half of one on 32x32. None: images keep their size."""
    progressive_fraction: float = 0.5
    """Fraction of the run that trains on images of the progressive size."""
    augment: Augmentation = field(default_factory=Augmentation)
    """How training images are augmented."""

    def _check(self) -> None:
        self._require("image_size progressive_size select_on", "at least 1", lambda value: value >= 1)
        self._require("num_train", "at least 2", lambda value: value >= 2)
        self._require("skip_unreadable", "at least 0 and less than 1", lambda value: 0 <= value < 1)
        self._require("progressive_fraction", "more than 0 and at most 1", lambda value: 0 < value <= 1)
        if self.progressive_size is None and self.progressive_fraction != DataSettings.progressive_fraction:
            raise UsageError(
                "progressive_fraction is the fraction of the run that trains on smaller images: give their side as "
                "progressive_size too"
            )


@dataclass(frozen=True)
class OptimizationSettings(Settings):
    """Optimizer, learning rates, schedule and regularization."""

    epochs: int = 200
    """Passes over the training images."""
    patience: int | None = None
    """Stop early, where the validation accuracy has not risen for this many epochs after the warm-up. The schedule is
    that of all epochs: with cosine and one-cycle the accuracy rises most in the last ones. None: train all epochs."""
    batch_size: int = 128
    """Images per step, of all processes together."""
    accumulate: int = 1
    """Compute the gradient of a step in this many parts, one after the other, to train with less memory. BatchNorm then
    sees the smaller parts."""
    sync_bn: bool = False
    """Normalize with the statistics of all processes' images, so that any number of processes trains alike. Off, each
    normalizes with those of its own share."""
    optimizer: Literal["sgd", "muon"] = "sgd"
    """SGD for all parameters, or Muon for the filters of the blocks and SGD for the others."""
    lr: float = 0.1
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum in SGD."""
    weight_decay: float = 5e-4
    """Weight decay of convolutions and linear layers; nothing else is decayed."""
    muon_lr: float = 0.24
    """Peak learning rate of Muon: the angle in radians by which a step turns each filter."""
    muon_momentum: float = 0.6
    """Momentum of Muon."""
    scale_lr: float | None = None
    """Peak learning rate of alpha and beta; 0 keeps their initial values. None: lr."""
    stem_lr: float | None = None
    """Peak learning rate of the stem; 0 keeps its initial weights, and skips its backward pass. None: lr."""
    classifier_lr: float | None = None
    """Peak learning rate of the classifier. None: lr."""
    schedule: Schedule = "step"
    """The learning rate after the warm-up: constant, multiplied by gamma at each milestone (step), or falling to zero
    as a cosine or in a straight line (one-cycle)."""
    warmup: float = 0.0
    """Fraction of the run over which the learning rate rises linearly to its peak."""
    milestones: tuple[int, ...] = ()
    """Epochs, counted from 1, at whose start the step schedule multiplies the learning rate by gamma."""
    gamma: float = 0.2
    """Factor of the learning rate at each milestone."""
    restart_momentum: bool = False
    """Set the momentum to zero at each milestone, as the authors do."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """How much an image counts in the loss. none: all alike; balanced: inversely to the number of training images of
    its class, so that all classes count alike, and the best epoch is that of the highest balanced accuracy: the mean of
    the classes' own."""
    mixup: float = 0.0
    """Mixup alpha: train on mixtures of two images, whose shares are drawn from Beta(alpha, alpha). 0: no mixup."""
    teacher_weight: float = 0.9
    """With --teacher: how much its answers count in the loss; the labels count for the rest, to 1."""
    temperature: float = 4.0
    """With --teacher: what its logits and the network's are divided by before they are compared."""
    clip_grad: float = 0.0
    """Clip the norm of the gradient at this value. 0: no clipping."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved instead of the
    weights. 0: no average."""
    swa_fraction: float = 0.0
    """Last fraction of the run over which the weights are averaged evenly (stochastic weight averaging); the average is
    evaluated and saved. 0: no average."""
    recalibrate_bn: bool | None = None
    """Recalibrate BatchNorm statistics, in float32 and on training images, before each evaluation; very deep networks
    need it. None: where the data are photographs or an epoch has less than 100 steps, since running statistics lag by
    ten."""
    freeze: bool = False
    """Train only the classifier, on the features of the network given by --from."""

    def _check(self) -> None:
        self._require("epochs patience", "at least 1", lambda value: value >= 1)
        self._require("batch_size", "at least 2: BatchNorm needs more than one image", lambda value: value >= 2)
        self._require("accumulate", "at least 1", lambda value: value >= 1)
        self._require("lr muon_lr gamma temperature", "more than 0", lambda value: value > 0)
        self._require("teacher_weight", "more than 0 and at most 1", lambda value: 0 < value <= 1)
        self._require(
            "weight_decay mixup clip_grad scale_lr stem_lr classifier_lr", "at least 0", lambda value: value >= 0
        )
        self._require(
            "momentum muon_momentum warmup label_smoothing ema_decay",
            "at least 0 and less than 1",
            lambda value: 0 <= value < 1,
        )
        self._require("swa_fraction", "0 to 1", lambda value: 0 <= value <= 1)
        self._require("milestones", "epochs, counted from 1", lambda value: all(epoch >= 1 for epoch in value))
        self._require("milestones", "in rising order", lambda value: tuple(sorted(set(value))) == value)
        if self.milestones and self.schedule != "step":
            raise UsageError(
                f"milestones belong to the step schedule, but schedule is {self.schedule}: give no milestones"
            )
        if self.accumulate > max(1, self.batch_size // 2):
            raise UsageError(
                f"accumulate is {self.accumulate}, but a batch of {self.batch_size} has at most {self.batch_size // 2} "
                "parts: BatchNorm needs more than one image"
            )
        if self.nesterov and self.momentum == 0:
            raise UsageError("nesterov needs a momentum, but momentum is 0")
        if self.ema_decay and self.swa_fraction:
            raise UsageError(
                f"ema_decay is {self.ema_decay} and swa_fraction is {self.swa_fraction}, but one of them must be 0"
            )
        of_muon = (self.muon_lr, self.muon_momentum)
        if self.optimizer != "muon" and of_muon != (OptimizationSettings.muon_lr, OptimizationSettings.muon_momentum):
            raise UsageError("muon_lr and muon_momentum are Muon's: leave them out, or take optimizer muon")
        rates = {self.scale_lr, self.stem_lr, self.classifier_lr}
        if self.freeze and (self.optimizer == "muon" or rates != {None} or self.recalibrate_bn):
            raise UsageError(
                "freeze trains only the classifier, at the learning rate lr: "
                "leave out muon, scale_lr, stem_lr, classifier_lr and recalibrate_bn"
            )

    def recalibrates(self, data: str, steps: int) -> bool:
        """Whether BatchNorm statistics are recalibrated before an evaluation.

        Running statistics with a momentum of 0.1 are those of the last ten steps or so: of other weights than those
        that are evaluated, which in the short epochs of a small set leaves the first networks at chance.

        Args:
            data: the name of the data.
            steps: an epoch.

        >>> OptimizationSettings().recalibrates("cifar10", steps=391), OptimizationSettings().recalibrates("folder", 8)
        (False, True)
        """
        if self.freeze or self.recalibrate_bn is not None:
            return bool(self.recalibrate_bn)
        return steps < FEW_STEPS or data in PHOTOGRAPHS


@dataclass(frozen=True)
class RuntimeSettings(Settings):
    """Precision, compilation, random seed and evaluation."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of convolutions in training. auto: the fastest in a short measurement."""
    channels_last: bool = True
    """Use the channels_last memory format, which is faster on most machines."""
    compile: bool = False
    """Compile the network with torch.compile."""
    seed: int = 0
    """Random seed."""
    deterministic: bool = False
    """Use only deterministic algorithms, even if they are slower."""
    eval_every: int = 1
    """Evaluate every this many epochs, and after the last."""

    def _check(self) -> None:
        self._require("eval_every", "at least 1", lambda value: value >= 1)
        self._require("seed", "0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
