"""How much signal reaches the last layer of an untrained network, for the paper's and the deep initialization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from diracnets.analysis.layer_signal import LayerSignal, signal
from diracnets.analysis.report import Say, environment_line, markdown_table, write_report
from diracnets.data.load import load_data
from diracnets.errors import UsageError
from diracnets.files import short_number
from diracnets.models.build import build_model
from diracnets.runtime.device import choose_device, seeded
from diracnets.runtime.environment import circumstances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Family = Literal["diracnet", "plain"]
Initialization = Literal["paper", "deep"]
POINTS = 100  # kept of each curve
TITLE = "The signal before training, layer by layer"
QUESTION = "How much of the differences between images, and of the gradient, remains after each layer before training?"
EXPLANATION = """Every row is an untrained network in training mode, with one batch of images.

- *signal left*: how similar the differences between images still are to those after the stem (centred kernel alignment,
  unbiased): 1 for the same, 0 for unrelated. A rotation of the features does not change this number.
- *directions*: the effective number of directions in which the images differ after the last layer.
- *a layer keeps*: the correlation of a layer's output with its input, as a mean over the layers that keep the size.
  *Its ReLU alone* is the correlation of the input with its ReLU. *In theory* is what alpha, beta and the BatchNorm bias
  give for normally distributed activations: `corr(x, relu(x)) / sqrt(1 + (beta / alpha)^2)` for x from N(bias, 1).
  After a ReLU activations are not normal, and the next ReLUs change them less.
- *gradient*: the norm of an image's gradient with respect to the first layer's output, and its ratio to the norm with
  respect to the last layer's.

With a BatchNorm bias of 0, a Dirac layer keeps little: each batch norm centres the activations again, and each ReLU
removes half of them. With a bias of 1, ReLUs after the first change little, and the identity passes the signal on. A
plain network has no identity: with the same bias, it still mixes all channels at every layer."""


def measure_signal(
    depths: Sequence[int],
    width: float,
    families: Sequence[Family],
    initializations: Sequence[Initialization],
    *,
    data: str,
    data_dir: Path | None,
    images: int,
    seed: int,
    device: str,
    out: Path,
    say: Say,
) -> None:
    """Measure an untrained network of each family, initialization and depth, and write signal.json, .md and .png.

    Args:
        depths: numbers of layers, each 6n + 4.
        width: of all networks; 1 has 16, 32 and 64 channels.
        families, initializations: of the networks.
        data, data_dir: the data set whose training images are used, and its folder.
        images: number of images.
        seed: of the networks' random weights.
        device: "auto", "cpu", "cuda" or "mps".
        out: the folder to write to.
        say: takes one line at a time.

    Raises:
        UsageError: no network has this depth or width.
        TrainingError: activations are infinite or NaN.
    """
    if not (depths and families and initializations):
        raise UsageError("nothing to measure: give at least one of --depths, --families and --inits")
    place = choose_device(device)
    loaded = load_data(data, data_dir=data_dir, device=place)
    batch, labels, _ = next(loaded.train.batches(images, epoch=0))
    rows = []
    for family in families:
        for initialization in initializations:
            for depth in depths:
                row = _measure(f"{family}-{depth}-{width:g}", initialization, batch, labels, seed)
                rows.append({"family": family, "depth": depth, **row})
                say(f"{row['model']}, {initialization} initialization: signal left {row['arrived']:.3f}")
    facts = {
        "study": "signal",
        "title": TITLE,
        "question": QUESTION,
        "circumstances": circumstances(place),
        "data": data,
        "images": images,
        "seed": seed,
        "rows": rows,
    }
    say(table(rows))
    write_report(out, facts, page, lambda figure: draw(figure, rows), (11, 7), say)


def _measure(model: str, initialization: Initialization, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    channels, height, width = images.shape[1:]
    with seeded(seed):
        net = build_model(
            model, init=initialization, in_channels=channels, image_size=(height, width), device=images.device
        )
    block = net.groups[0][1]  # type: ignore[index]
    scales = {name: getattr(block.conv, name).mean().item() for name in ("alpha", "beta") if hasattr(block.conv, name)}
    layers = signal(net.train(), images, labels)
    return {
        "model": model,
        "init": initialization,
        **scales,
        "bias": block.bn.bias.mean().item(),
        **_summary(layers),
        "curve": _curve(layers),
    }


def _summary(layers: Sequence[LayerSignal]) -> dict[str, Any]:
    """One number of each kind for a network."""
    kept = [layer.kept for layer in layers if layer.kept is not None]
    alone = [layer.relu_keeps for layer in layers if layer.relu_keeps is not None]
    return {
        "arrived": layers[-1].arrived,
        "dimensions": layers[-1].dimensions,
        "kept": sum(kept) / len(kept),
        "relu_keeps": sum(alone) / len(alone),
        "first_gradient": short_number(layers[0].gradient),
        "last_gradient": short_number(layers[-1].gradient),
    }


def _curve(layers: Sequence[LayerSignal]) -> dict[str, list[float | None]]:
    """The curves of the figure, at most `POINTS` layers evenly over the depth, including the last."""
    step = math.ceil(len(layers) / POINTS)
    numbers = range(len(layers) - 1, -1, -step)[::-1]
    return {
        "layer": [number + 1 for number in numbers],
        "arrived": [short_number(layers[number].arrived) for number in numbers],
        "gradient": [short_number(layers[number].gradient) for number in numbers],
    }


def relu_correlation(bias: float) -> float:
    """The correlation of x with relu(x) for x from N(bias, 1).

    >>> round(relu_correlation(0.0), 4), round(relu_correlation(2.0), 4)
    (0.8564, 0.9973)
    """
    above = math.erfc(-bias / math.sqrt(2)) / 2  # P(x > 0), which is also the covariance of the two
    density = math.exp(-bias * bias / 2) / math.sqrt(2 * math.pi)
    mean = bias * above + density
    variance = (1 + bias * bias) * above + bias * density - mean * mean
    return above / math.sqrt(variance)


def kept_in_theory(alpha: float, beta: float, bias: float) -> float:
    """The correlation of a Dirac layer's output with its input at initialization, for inputs from N(bias, 1)."""
    return relu_correlation(bias) / math.sqrt(1 + (beta / alpha) ** 2)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table with one row per network."""
    columns = [
        "network",
        "init",
        "beta",
        "bias",
        "signal left",
        "directions",
        "a layer keeps",
        "its ReLU alone",
        "in theory",
        "gradient at the first layer",
        "ratio to the last layer's",
    ]
    return markdown_table(columns, (_line(row) for row in rows))


def page(facts: dict[str, Any], *, picture: bool) -> str:
    """The study in Markdown."""
    parts = [f"# {TITLE}", QUESTION, EXPLANATION, table(facts["rows"])]
    if picture:
        parts.append("![Signal left and gradient, layer by layer](signal.png)")
    parts.append(
        f"{facts['images']} images of {facts['data']}, seed {facts['seed']}; {environment_line(facts['circumstances'])}"
    )
    return "\n\n".join(parts)


def draw(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    """Top row: signal left; bottom row: gradient. One column per family and initialization, one line per depth."""
    kinds = list(dict.fromkeys((row["family"], row["init"]) for row in rows))
    depths = sorted({row["depth"] for row in rows})
    grid = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in zip(grid.T, kinds, strict=True):
        for row in (row for row in rows if (row["family"], row["init"]) == kind):
            curve = row["curve"]
            parts = [number / curve["layer"][-1] for number in curve["layer"]]
            color = f"C{depths.index(row['depth'])}"
            column[0].plot(parts, curve["arrived"], color=color, label=f"{row['depth']} layers")
            column[1].plot(parts, [value or math.nan for value in curve["gradient"]], color=color)
        column[0].set_title(f"{kind[0]}, {kind[1]} initialization", fontsize=10)
        column[1].set_yscale("log")
        column[1].set_xlabel("fraction of the depth")
        for axes in column:
            axes.grid(alpha=0.3)
    grid[0][0].set_ylabel("signal left")
    grid[0][0].set_ylim(-0.05, 1.05)
    grid[1][0].set_ylabel("gradient on the output")
    lines, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(depths), fontsize=8)


def _line(row: dict[str, Any]) -> list[str]:
    theory = f"{kept_in_theory(row['alpha'], row['beta'], row['bias']):.3f}" if "beta" in row else ""
    first, last = row["first_gradient"], row["last_gradient"]
    return [
        row["model"],
        row["init"],
        f"{row['beta']:.3f}" if "beta" in row else "",
        f"{row['bias']:.2f}",
        f"{row['arrived']:.3f}",
        f"{row['dimensions']:.1f}",
        f"{row['kept']:.3f}",
        f"{row['relu_keeps']:.3f}",
        theory,
        "overflows" if first is None else f"{first:.2g}",
        f"{first / last:.2g}" if first and last else "",
    ]
