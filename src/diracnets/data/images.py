"""What training and evaluation see of a data set: its facts, and batches of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image
from torch import Tensor

from diracnets.data.augmentation import Augmentation
from diracnets.data.share import WHOLE, Share
from diracnets.data.split import some_of_each
from diracnets.errors import UsageError, some_of

Batch = tuple[Tensor, Tensor, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)


class Images(Protocol):
    """Labelled images, numbered from 0."""

    @property
    def labels(self) -> Tensor:
        """int64 [N], on the CPU."""

    @property
    def skipped(self) -> Mapping[int, str]:
        """Numbers of the images that turned out to be unreadable while training, and why; others stood in for them."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call an image to a user: its file, or "cifar10 test 123"."""

    def image(self, index: int) -> Image.Image:
        """The image as it was before any change, for showing.

        Raises:
            DataError: it cannot be decoded, or has neither 1 nor 3 channels.
        """

    def content(self, numbers: Sequence[int]) -> bytes:
        """A hash of what is in the images of these numbers, in this order: as much of it as takes little time."""

    def select(self, numbers: Sequence[int]) -> Images:
        """The images of these numbers, as a set of its own."""

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> Images:
        """The same images, normalized otherwise: (pixel - mean) / std per channel, of pixels in 0..1."""

    def batches(
        self,
        batch_size: int,
        *,
        epoch: int | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        first: int = 0,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """Batches of (images, labels, indices) on the device; the last one may be smaller.

        Args:
            batch_size: images a batch, of all shares together.
            epoch: None gives every image once, in order and unchanged, for evaluation. A number, from 0, shuffles and
                augments: what comes depends on (seed, epoch, image) alone.
            augment: random changes, where `epoch` is given.
            seed: of the run.
            first: number of the batch to start at, from 0, to go on with an epoch that was interrupted.
            share: the part of every batch to give: one of several processes takes one each. It may hold no image.

        Returns:
            An iterator, as long for every share, of images float32 [B, C, H, W], normalised, channels_last; labels
            int64 [B]; indices int64 [B].

        Raises:
            UsageError: at once, for impossible numbers or an augmentation that does not suit these images.
            DataError: while iterating, for an image that cannot be decoded.
        """


@dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
        name: "cifar10", ...
        classes: names of the classes, in the order of their labels.
        input_size: channels, height and width of the batches' images.
        mean: normalization, per channel, of pixels in 0..1.
        std: normalization, per channel, of pixels in 0..1.
        train: images to train on.
        val: images held out.
        test: where `val` is a part of the training images, those that were held out before, else None.
        notes: a line for each thing that a user should know about how the images were read and split.
    """

    name: str
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Images
    val: Images
    notes: tuple[str, ...] = ()
    test: Images | None = None

    def __repr__(self) -> str:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
        return f"<{self.name}: {counts}, {len(self.classes)} classes, {'x'.join(map(str, self.input_size))}>"

    def summary(self) -> list[str]:
        """What to say before the images are used: the classes, and the notes."""
        return [f"{len(self.classes)} classes: {some_of(self.classes, limit=10)}", *self.notes]

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """This data, normalized as a network wants it: (pixel - mean) / std per channel, of pixels in 0..1.

        >>> from diracnets.data.digits import load_digits
        >>> load_digits().normalized([0.5], [0.5]).mean
        (0.5,)
        """
        train, val = self.train.normalized(mean, std), self.val.normalized(mean, std)
        test = None if self.test is None else self.test.normalized(mean, std)
        return replace(self, mean=tuple(mean), std=tuple(std), train=train, val=val, test=test)

    def selecting_on(self, count: int) -> ImageData:
        """This data with `count` of its training images held out, as many of each class, to validate on instead.

        What was held out before becomes `test`, for one look when all is chosen.

        Raises:
            UsageError: that would leave less than two images to train on.
        """
        labels = self.train.labels.tolist()
        if count > len(labels) - 2:
            raise UsageError(
                f"select_on is {count}, but {self.name} has {len(labels)} images to train on: hold out less"
            )
        chosen = some_of_each(labels, count)
        rest = sorted(set(range(len(labels))) - set(chosen))
        note = (
            f"to validate, instead: {count:,} of the training images (select_on); the others held out are for the end"
        )
        notes = (*self.notes, note)
        return replace(self, train=self.train.select(rest), val=self.train.select(chosen), test=self.val, notes=notes)

    def with_fewer(self, count: int) -> ImageData:
        """This data with `count` of its images to train on, see `some_of_each`; all are held out that were.

        Raises:
            UsageError: there are not so many.
        """
        if count > len(self.train):
            raise UsageError(f"{count} images are asked for, but {self.name} has {len(self.train)} to train on")
        return replace(self, train=self.train.select(some_of_each(self.train.labels.tolist(), count)))
