"""Augmentation of training images, as plain numbers: part of a recipe, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from diracnets.errors import UsageError, did_you_mean, shown

Crop = Literal["none", "pad", "resized"]
Flip = Literal["none", "random", "alternating"]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, in this order: crop, flip, cutout.

    The default changes nothing.

    Attributes:
        crop: "none"; "pad": pad by reflection and crop to the input size at random; "resized": a random crop of
            `min_scale` to 1 of the area and 3/4 to 4/3 of the aspect ratio, resized to the input size.
        pad: pixels that crop "pad" adds on each side.
        min_scale: smallest area of crop "resized", as a fraction of the image.
        flip: horizontal flip. "random" (or True): with probability 1/2 in each epoch; "alternating": a random half of
            the images in the first epoch, the other half in the next, and so on (Jordan 2024); "none" (or False).
        cutout: side in pixels of a square set to the mean colour, centred on a random pixel; 0 for none.

    Raises:
        UsageError: a value is impossible.

    >>> Augmentation(crop="pad", pad=4, flip="random", cutout=8)
    Augmentation(crop='pad', pad=4, min_scale=0.08, flip='random', cutout=8)
    """

    crop: Crop = "none"
    pad: int = 4
    min_scale: float = 0.08
    flip: Flip | bool = "none"
    cutout: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.flip, bool):
            object.__setattr__(self, "flip", "random" if self.flip else "none")
        for name, value, words in (("crop", self.crop, get_args(Crop)), ("flip", self.flip, get_args(Flip))):
            if value not in words:
                hint = did_you_mean(shown(value), words)
                raise UsageError(f"{name} must be one of {', '.join(words)}, not {shown(value)}{hint and '; ' + hint}")
        if not _whole(self.pad) or self.pad < 1:
            raise UsageError(
                f'pad must be a whole number of at least 1 pixel, not {shown(self.pad)} (crop="none" pads nothing)'
            )
        if (
            isinstance(self.min_scale, bool)
            or not isinstance(self.min_scale, int | float)
            or not 0 < self.min_scale <= 1
        ):
            raise UsageError(f"min_scale must be a fraction over 0 and up to 1, not {shown(self.min_scale)}")
        if not _whole(self.cutout) or self.cutout < 0:
            raise UsageError(f"cutout must be a whole number of pixels, 0 for none, not {shown(self.cutout)}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
