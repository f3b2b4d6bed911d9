"""The authors' files give their networks, whatever their size; nothing in them is ignored or made up."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diracnets.artifacts.load import load
from diracnets.errors import FileError

# a folder with checkpoints that the authors' program wrote, NAME.pt7, and NAME.npz with the logits that it gave
AUTHORS = Path(os.environ.get("DIRACNETS_AUTHORS_FILES", "authors"))

SIZES = {  # stem filters, widths, blocks
    "diracnet-10-0.5": ((8, 3, 3, 3), (8, 16, 32), (2, 2, 2)),
    "diracnet-16-0.25": ((4, 1, 3, 3), (4, 8, 16), (4, 4, 4)),
    "diracnet-10-0.3": ((5, 3, 3, 3), (5, 10, 19), (2, 2, 2)),
    "diracnet-18": ((4, 3, 7, 7), (4, 8, 16, 32), (4, 4, 4, 4)),
    "diracnet-34": ((2, 3, 7, 7), (2, 4, 8, 16), (6, 8, 12, 6)),
}


def training_tensors(stem, widths, depths, classes=7):
    """Random tensors under the names that the authors' program gives them, dense identities included."""

    def bn(name, width):
        return {
            f"{name}.weight": torch.rand(width) + 0.5,
            f"{name}.bias": torch.randn(width),
            f"{name}.running_mean": torch.randn(width),
            f"{name}.running_var": torch.rand(width) + 0.5,
        }

    tensors = {"conv": torch.randn(stem) / math.prod(stem[1:]) ** 0.5, **bn("bn", stem[0])}
    channels = stem[0]
    for g, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for b in range(depth):
            name = f"group{g}.block{b}"
            tensors[f"{name}.conv"] = torch.randn(width, channels, 3, 3)
            tensors[f"{name}.alpha"] = torch.randn(width)
            tensors[f"{name}.beta"] = torch.randn(width)
            tensors |= bn(f"{name}.bn", width)
            tensors[f"eye{width}_{channels}_3_3"] = nn.init.dirac_(torch.empty(width, channels, 3, 3))
            channels = width
    return tensors | {"fc.weight": torch.randn(classes, channels), "fc.bias": torch.randn(classes)}


def training_logits(tensors, depths, x):
    """What the authors' network computes, from PAPER's description of it."""

    def bn(x, name):
        values = [tensors[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values)

    stem = tensors["conv"]
    large = stem.shape[-1] == 7
    x = bn(F.conv2d(x, stem, stride=2 if large else 1, padding=stem.shape[-1] // 2), "bn")
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for g, depth in enumerate(depths):
        x = F.max_pool2d(x, 2) if g else x
        for b in range(depth):
            name = f"group{g}.block{b}"
            w, a, beta = (tensors[f"{name}.{kind}"] for kind in ("conv", "alpha", "beta"))
            delta = nn.init.dirac_(torch.empty_like(w))
            normalized = w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            x = bn(
                F.conv2d(F.relu(x), a.view(-1, 1, 1, 1) * delta + beta.view(-1, 1, 1, 1) * normalized, padding=1),
                f"{name}.bn",
            )
    return F.linear(F.relu(x).mean((2, 3)), tensors["fc.weight"], tensors["fc.bias"])


def released_tensors(stem, widths, depths, classes=7):
    tensors = {
        "features.conv.weight": torch.randn(stem) / math.prod(stem[1:]) ** 0.5,
        "features.conv.bias": torch.randn(stem[0]),
    }
    channels = stem[0]
    for g, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for b in range(depth):
            name = f"features.group{g}.block{b}.conv"
            tensors[f"{name}.weight"] = torch.randn(width, channels, 3, 3) / (9 * channels) ** 0.5
            tensors[f"{name}.bias"] = torch.randn(width)
            channels = width
    return tensors | {"fc.weight": torch.randn(classes, channels), "fc.bias": torch.randn(classes)}


def released_logits(tensors, depths, x):
    stem = tensors["features.conv.weight"]
    large = stem.shape[-1] == 7
    x = F.conv2d(x, stem, tensors["features.conv.bias"], stride=2 if large else 1, padding=stem.shape[-1] // 2)
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for g, depth in enumerate(depths):
        x = F.max_pool2d(x, 2) if g else x
        for b in range(depth):
            name = f"features.group{g}.block{b}.conv"
            x = F.conv2d(F.relu(x), tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)
    return F.linear(F.relu(x).mean((2, 3)), tensors["fc.weight"], tensors["fc.bias"])


def close(found, wanted):
    return (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", SIZES)
def test_training_checkpoint_of_any_size(tmp_path, name):
    stem, widths, depths = SIZES[name]
    tensors = training_tensors(stem, widths, depths)
    torch.save({"params": tensors, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "model.pt7")
    net = load(tmp_path / "model.pt7")
    assert net.config["name"] == name
    assert net.num_classes == 7
    assert not net.training
    x = torch.randn(2, stem[1], 64 if stem[-1] == 7 else 16, 64 if stem[-1] == 7 else 16)
    with torch.inference_mode():
        assert close(net(x), training_logits(tensors, depths, x))
    assert hasattr(net, "card") == (stem[1] == 3)


@pytest.mark.parametrize("name", SIZES)
def test_released_names_of_any_size(tmp_path, name):
    stem, widths, depths = SIZES[name]
    tensors = released_tensors(stem, widths, depths)
    torch.save(tensors, tmp_path / "model.pth")
    chain = load(tmp_path / "model.pth")
    assert type(chain) is nn.Sequential
    assert {type(layer) for layer in chain} == {
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
    }
    x = torch.randn(2, stem[1], 64 if stem[-1] == 7 else 16, 64 if stem[-1] == 7 else 16)
    with torch.inference_mode():
        assert close(chain(x), released_logits(tensors, depths, x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("group1.block0.alpha"), "group1.block0.alpha is missing"),
        (lambda t: t.pop("fc.weight"), "fc.weight is missing"),
        (lambda t: t.pop("group1.block0.conv"), "missing|which no DiracNet has"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra belongs to no layer"),
        (lambda t: t.update({"fc.bias": torch.zeros(3)}), r"fc.bias is \[3\] instead of \[7\]"),
        (lambda t: t.update({"fc.bias": 3}), "fc.bias is missing"),
        (lambda t: t.update({"conv": torch.randn(9, 3, 3, 3)}), "which no DiracNet begins with"),
        (
            lambda t: t.update(
                {"fc.weight": torch.zeros(1).expand(10**12, 32), "fc.bias": torch.zeros(1).expand(10**12)}
            ),
            "not stored in full",
        ),
    ],
)
def test_checkpoint_that_is_not_exactly_a_network(tmp_path, change, message):
    tensors = training_tensors(*SIZES["diracnet-10-0.5"])
    change(tensors)
    torch.save({"params": tensors}, tmp_path / "model.pt7")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "model.pt7")


@pytest.mark.parametrize("name", ["cifar10-diracnet-16-1", "imagenet-diracnet-18-0.125"])
def test_recorded_logits_of_the_authors_program(name):
    if not (AUTHORS / f"{name}.pt7").exists():
        pytest.skip("DIRACNETS_AUTHORS_FILES names no folder with this file")
    net = load(AUTHORS / f"{name}.pt7")
    with np.load(AUTHORS / f"{name}.npz") as recorded:
        inputs, logits = torch.from_numpy(recorded["inputs"]), torch.from_numpy(recorded["logits"])
    with torch.inference_mode():
        difference = (net(inputs) - logits).abs().max()
    assert difference <= 1e-4 * min(1, logits.abs().max())
