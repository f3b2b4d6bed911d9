"""Train on a Dataset of your own, fold, and use the model file: python examples/own_dataset.py

The pictures are drawn by the program: circles, squares and triangles of any colour, place and size.
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from torch.utils.data import Dataset

import diracnets

SIDE = 24


def draw(shape: str, seed: int) -> Image.Image:
    """One picture of a shape."""
    rng = random.Random(seed)
    light, dark = ([rng.randrange(low, low + 110) for _ in "RGB"] for low in (145, 0))
    x, y, r = rng.uniform(8, 16), rng.uniform(8, 16), rng.uniform(5, 8)
    image = Image.new("RGB", (SIDE, SIDE), tuple(dark))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(light))
    elif shape == "square":
        pen.rectangle((x - 0.8 * r, y - 0.8 * r, x + 0.8 * r, y + 0.8 * r), fill=tuple(light))
    else:
        pen.polygon(((x - r, y + r), (x + r, y + r), (x, y - r)), fill=tuple(light))
    return image


class Shapes(Dataset):
    """Any Dataset of (image, label) will do: PIL images, arrays, or tensors as torchvision makes them."""

    classes = ("circle", "square", "triangle")  # what `predict` calls them; numbers without this line

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        label = index % len(self.classes)
        return draw(self.classes[label], 10_000 * self.seed + index), label


def main(run: str | Path, epochs: int = 6) -> float:
    """Train in the folder `run`; gives the accuracy of the model file on new pictures."""
    recipe = diracnets.Recipe.load("demo").replaced(model="diracnet-10-0.5", epochs=epochs)
    trained = diracnets.train(recipe, data=(Shapes(600, seed=1), Shapes(150, seed=2)), run=run)

    new = [draw(shape, seed) for shape in Shapes.classes for seed in range(50)]
    answers = diracnets.predict(trained.model_file, new)  # the file alone: it knows size, normalization and classes
    shapes = [shape for shape in Shapes.classes for _ in range(50)]
    right = sum(answer.label == shape for answer, shape in zip(answers, shapes, strict=True))
    print(f"a new triangle: {answers[-1].label}, {answers[-1].probability:.1%}")
    print(f"{right} of {len(new)} new pictures are right")
    return right / len(new)


if __name__ == "__main__":
    main(*sys.argv[1:2] or [Path("runs", "shapes")])
