"""The network that a run starts with: fresh, or with the weights of a trained one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diracnets.artifacts.card import ModelCard, TrainedOn, card_of
from diracnets.artifacts.load import load_as_stored
from diracnets.artifacts.unfold import unfold
from diracnets.data.images import ImageData
from diracnets.data.tree import composed
from diracnets.errors import UsageError
from diracnets.models.build import build_model, on_meta
from diracnets.models.integer import IntegerChain
from diracnets.models.network import Network
from diracnets.training.recipe import Recipe
from diracnets.training.settings import PHOTOGRAPHS

UNFOLD_IMAGES = 256  # whose statistics a chain's batch norms get back


def starting_network(recipe: Recipe, data: ImageData, start: nn.Module | str | Path | None = None) -> Network:
    """The recipe's network for the images at hand.

    Args:
        recipe: its model and `freeze` decide.
        data: its image size, channels and classes decide.
        start: trained weights to start from: a network of `build_model`, a chain that one was folded to, a file that
            `load` reads, or a name of trained weights. Where the classes differ, the classifier is a fresh one.

    Returns:
        A network of its own on the CPU. With `freeze`, only the classifier's parameters need a gradient.

    Raises:
        UsageError: the recipe's network is not that of `start`, takes other images, or `freeze` without `start`.
        FileError: `start` is a file that cannot be read.
    """
    channels, height, width = data.input_size
    if start is None:
        if recipe.optimization.freeze:
            raise UsageError("freeze trains the classifier on trained features; give the weights to start from")
        net = build_model(**_arguments(recipe, len(data.classes), data.input_size))
        _freeze(net, recipe)
        return net
    trained = load_as_stored(start) if isinstance(start, str | Path) else start
    if isinstance(trained, nn.Sequential):
        trained = _unfolded(trained, recipe, data)
    if isinstance(trained, IntegerChain):
        raise UsageError("the weights to start from are in int8, which cannot be trained: give the float model file")
    if not isinstance(trained, Network):
        raise UsageError(f"a run can start from a diracnets network or its chain, not from {type(trained).__name__}")
    config = trained.config
    wanted = on_meta(_arguments(recipe, trained.num_classes, (config["in_channels"], height, width)))
    if _sizes(wanted) != _sizes(trained):
        raise UsageError(
            f"the recipe's network is {recipe.model.name} (width {recipe.model.width}), but the weights are those of "
            f"{config['name']} (width {config['width']}); ask for that one, or for other weights"
        )
    pool = config.get("pool", "max")
    if pool != recipe.model.pool:
        raise UsageError(
            f"the recipe's network has {recipe.model.pool} pooling, but the weights are those of one with {pool} "
            f"pooling; ask for pool {pool}, or for other weights"
        )
    if config["in_channels"] != channels:
        raise UsageError(
            f"the weights are for images of {_channels(config['in_channels'])}, but those of {data.name} have "
            f"{channels}: choose others, or in Python start from create_model(NAME, pretrained=True, "
            f"in_channels={channels}), which adapts the first convolution"
        )
    net = build_model(**wanted.config)
    net.load_state_dict(trained.state_dict())
    card = card_of(trained)
    other_classes = card is not None and card.classes and card.classes != data.classes
    if other_classes or net.num_classes != len(data.classes):
        net.reset_classifier(len(data.classes))
    _freeze(net, recipe)
    return net


def following(recipe: Recipe, start: nn.Module | str | Path, asked: Collection[str] = ()) -> Recipe:
    """The recipe with the network of trained weights and, for photographs, the image size that they are made for.

    Args:
        recipe: for the rest.
        start: a network or its chain, a file that `load` reads, or a name of trained weights.
        asked: short names of settings that stay as they are.

    Raises:
        FileError: `start` is a file that cannot be read.

    >>> recipe = following(Recipe.load("fast-imagenet"), "diracnet-28-1-cifar10")
    >>> recipe.model.name, recipe.data.image_size
    ('diracnet-28-1', 32)
    """
    trained = start if isinstance(start, nn.Module) else load_as_stored(start)
    card = card_of(trained)
    found = dict(trained.config if isinstance(trained, Network) else card.architecture or {} if card else {})
    if not found:
        return recipe
    size = found.get("image_size")
    side = max(size) if isinstance(size, Sequence) else size
    settings: dict[str, Any] = {"model": found["name"], "width": found.get("width"), "pool": found.get("pool", "max")}
    if recipe.data.name in PHOTOGRAPHS and side is not None:
        settings["image_size"] = side
    given = {name: value for name, value in settings.items() if name not in asked and value is not None}
    return recipe.replaced(**given)


def with_normalization(data: ImageData, net: nn.Module | None, card: ModelCard | None) -> ImageData:
    """The images, normalized as those that the weights were trained on, where that is known and they fit."""
    card = card_of(net) if net is not None and card is None else card
    if card is None or len(card.mean) != len(data.mean):
        return data
    same = (tuple(card.mean), tuple(card.std)) == (tuple(data.mean), tuple(data.std))
    return data if same else data.normalized(card.mean, card.std)


def followed(data: ImageData, trained: nn.Module) -> str:
    """What a run with these images takes from the weights that it starts from, to be said."""
    card = card_of(trained)
    size = "x".join(map(str, data.input_size[1:]))
    if card is None:
        return f"starts from trained weights, with images of {size}"
    own = "x".join(map(str, card.input_size[1:]))
    images = f"images of {size}" if size == own else f"images of {size}, where the weights were trained on {own}"
    other = card.classes and card.classes != data.classes
    classifier = f"; a new classifier for these {len(data.classes)} classes" if other else ""
    return f"starts from trained weights, and normalizes as they were trained; {images}{classifier}"


def start_name(start: nn.Module | str | Path | None) -> str | None:
    """What a run's files call the weights that it starts from: a file by its name, without its folder.

    >>> start_name("somewhere/best.pt"), start_name(nn.Sequential()), start_name(None)
    ('best.pt', 'Sequential', None)
    """
    if isinstance(start, nn.Module):
        return type(start).__name__
    return None if start is None else Path(start).name


def network_to_resume(card: ModelCard, recipe: Recipe, data: ImageData) -> Network:
    """The network of a checkpoint, its weights still fresh.

    Raises:
        UsageError: the images are not those that the run began with.
    """
    found = TrainedOn(data.name, len(data.train), len(data.val))
    classes = tuple(map(composed, card.classes))  # earlier versions took names as the file system has them
    if (card.data, card.input_size, classes) != (found, data.input_size, data.classes):
        raise UsageError(
            f"these are not the images that the run began with: {_images(found, data.input_size, len(data.classes))} "
            f"instead of {_images(card.data, card.input_size, len(card.classes))}; bring those back, or start a new "
            "run from its weights (--from)"
        )
    if (card.architecture or {}).get("own"):
        raise UsageError(
            "the run trains a module of your own, which no file holds: resume it in Python, by "
            "train(recipe, net=..., run=..., resume=True)"
        )
    net = build_model(**card.architecture or {})
    _freeze(net, recipe)
    return net


def _images(data: TrainedOn | None, input_size: tuple[int, ...], classes: int) -> str:
    name, train, val = ("unknown data", None, None) if data is None else (data.name, data.train, data.val)
    size = "x".join(map(str, input_size))
    return f"{name} with {train} images to train on and {val} held out, of {size} pixels in {classes} classes"


def _arguments(recipe: Recipe, num_classes: int, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """The arguments of `build_model` for the recipe's network."""
    return {
        "name": recipe.model.name,
        "num_classes": num_classes,
        "in_channels": input_size[0],
        "image_size": input_size[1:],
        "width": recipe.model.width,
        "pool": recipe.model.pool,
        "init": recipe.model.init,
    }


def _unfolded(chain: nn.Sequential, recipe: Recipe, data: ImageData) -> Network:
    """The network of a chain; that of the recipe, where it folds to the same layers as the chain's own."""
    images = _some_images(recipe, data)
    own = unfold(chain, images)
    asked = {**own.config, "name": recipe.model.name, "width": recipe.model.width}
    if (asked["name"], asked["width"]) == (own.config["name"], own.config["width"]):
        return own
    try:
        return unfold(chain, images, architecture=asked)
    except UsageError:
        return own  # and it is said that this is another network than the recipe's


def _some_images(recipe: Recipe, data: ImageData) -> Tensor:
    """A few hundred training images, augmented, on the CPU."""
    images, _, _ = next(
        data.train.batches(UNFOLD_IMAGES, epoch=0, augment=recipe.data.augment, seed=recipe.runtime.seed)
    )
    return images.cpu()


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count != 1)}"


def _sizes(net: Network) -> dict[str, torch.Size]:
    """What is built, whatever its name: "diracnet-28-1" and "diracnet-28-1.0" are one network."""
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def _freeze(net: Network, recipe: Recipe) -> None:
    """Let what the recipe keeps as it is need no gradient: all but the classifier, or the stem."""
    if recipe.optimization.freeze:
        net.requires_grad_(False)
        net.fc.requires_grad_(True)
    if recipe.optimization.stem_lr == 0:
        net.stem.requires_grad_(False)
