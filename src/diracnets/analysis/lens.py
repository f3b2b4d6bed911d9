"""A look into one network, layer by layer: alpha and beta by epoch, closeness to the identity, signal and gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diracnets.analysis.layer_signal import signal
from diracnets.analysis.report import Say, environment_line, markdown_table, write_report
from diracnets.analysis.subject import find_subject
from diracnets.evaluation.plots import wrapped
from diracnets.files import short_number
from diracnets.runtime.environment import circumstances
from diracnets.training.scales import LayerScales, layer_scales, read_scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 60  # layers in a table of the page; the JSON has all
EPOCHS = 20  # for which scales are kept, evenly over the run
QUESTION = "How close is each layer to the identity, and how much signal and gradient passes through it?"
SCALES = {  # columns of the table of scales: the name in LayerScales, the name on the page
    "alpha": "alpha",
    "beta": "beta",
    "ratio": "alpha / beta",
    "norm": "norm of W",
    "ratio_by_norm": "alpha / (beta norm)",
    "identity": "identity",
}
KINDS = ("alpha", "beta", "ratio", "ratio_by_norm")  # of scales that are shown by epoch
SIGNAL = {
    "identity": "identity",
    "passed": "ReLU passes",
    "relu_keeps": "ReLU keeps",
    "kept": "layer keeps",
    "arrived": "signal left",
    "dimensions": "directions",
    "std": "deviation",
    "gradient": "gradient",
    "filter_gradient": "gradient of filters",
}
PANELS = {  # of the signal, in the figure
    "identity and signal": ("identity", "kept", "arrived"),
    "what the ReLU does": ("passed", "relu_keeps"),
    "gradients": ("gradient", "filter_gradient"),
}
EXPLANATION = """- *alpha / beta*: the size of the identity relative to that of the normalized filter, in rms.
  It says how close a layer is to the identity: W is normalized, so beta alone is the size of what is added.
- *alpha / (beta norm)*: the same ratio with the norm of W included.
- *identity*: the share of the effective filters' squared norm that lies where the identity has its 1.
- *ReLU passes*: the share of the layer's input above 0. *ReLU keeps*, *layer keeps*: the correlation of the input with
  its own ReLU, and with the layer's output.
- *signal left*: how similar the differences between images still are to those after the stem: 1 for the same, 0 for
  unrelated. *directions*: the effective number of directions in which the images differ.
- *gradient*: the norm of an image's gradient with respect to the layer's output. *gradient of filters*: the norm of the
  batch's gradient with respect to W."""

_USUAL = 64  # training images


def look_into(
    net: str, *, data: str | None, data_dir: Path | None, images: int | None, device: str, out: Path, say: Say
) -> None:
    """Measure the layers of one network, and write lens.json, lens.md and lens.png.

    Args:
        net, data, data_dir, device: see `find_subject`.
        images: number of training images to use; None for 64, or all where there are fewer.
        out: the folder to write to.
        say: takes one line at a time.

    Raises:
        UsageError: there is no such network, or the data does not suit it.
        FileError, DataError: files or images that cannot be read.
        TrainingError: activations that are infinite or NaN.
    """
    subject = find_subject(net, data, data_dir, device)
    batch, labels = subject.images(images, _USUAL)
    history = read_scales(subject.run.scales) if subject.run and subject.run.scales.exists() else {}
    scales = [{**asdict(layer), "ratio_by_norm": layer.ratio_by_norm} for layer in layer_scales(subject.net)]
    facts = {
        "study": "lens",
        "title": f"The layers of {subject.name}",
        "question": QUESTION,
        "circumstances": circumstances(batch.device),
        "network": subject.name,
        "mode": "training" if subject.net.training else "evaluation",
        "data": subject.data.name,
        "images": len(batch),
        "scales": [_short(layer) for layer in scales],
        "signal": [_short(asdict(layer)) for layer in signal(subject.net, batch, labels)],
        "history": followed(history),
    }
    say(page(facts, picture=False))
    write_report(out, facts, page, lambda figure: draw(figure, facts), (12, 7), say)


def _short(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: short_number(value) for name, value in numbers.items()}


def followed(history: Mapping[int, Sequence[LayerScales]]) -> dict[str, Any]:
    """The scales of some epochs, including the first and the last: a list of layers for each epoch and kind."""
    epochs = list(history)
    step = max(1, math.ceil((len(epochs) - 1) / (EPOCHS - 1)))
    some = sorted({*epochs[::step], *epochs[-1:]})
    return {
        "epochs": some,
        **{kind: [[getattr(layer, kind) for layer in history[epoch]] for epoch in some] for kind in KINDS},
    }


def page(facts: Mapping[str, Any], *, picture: bool) -> str:
    """The study in Markdown."""
    parts = [f"# {facts['title']}", QUESTION]
    if picture:
        parts.append("![Scales, identity, signal and gradient by layer](lens.png)")
    parts.append(EXPLANATION)
    for title, columns, rows in (("Scales", SCALES, facts["scales"]), ("Signal", SIGNAL, facts["signal"])):
        if rows:
            parts.append(f"## {title}\n\n{_table(columns, rows)}")
    used = f"{facts['images']} training images of {facts['data']}, in {facts['mode']} mode"
    parts.append(f"{used}; {environment_line(facts['circumstances'])}")
    return "\n\n".join(parts)


def draw(figure: Figure, facts: Mapping[str, Any]) -> None:
    """Top row: scales by layer, one line per epoch, if there are scales. Bottom row: signal and gradient by layer."""
    scales, layers, history = facts["scales"], facts["signal"], facts["history"]
    grid = figure.subplots(2 if scales else 1, 3, squeeze=False)
    if scales:
        epochs = history["epochs"] or [0]
        for axes, kind, style in zip((*grid[0], grid[0][2]), KINDS, ("-", "-", "-", "--"), strict=True):
            lines = history[kind] or [[layer[kind] for layer in scales]]
            for number, (epoch, line) in enumerate(zip(epochs, lines, strict=True), start=1):
                named = history["epochs"] and style == "-" and epoch in (epochs[0], epochs[-1])
                look: dict[str, Any] = {
                    "color": (0.1, 0.3, 0.6),
                    "alpha": 0.2 + 0.8 * (number / len(epochs)),  # the last: not above 1 by rounding
                    "linestyle": style,
                }
                axes.plot(range(1, len(line) + 1), line, label=f"epoch {epoch}" if named else None, **look)
            axes.set_title(SCALES[kind], fontsize=10)
            if history["epochs"]:
                axes.legend(fontsize=8)
        grid[0][2].set_title(f"{SCALES['ratio']}, dashed {SCALES['ratio_by_norm']}", fontsize=10)
        grid[0][2].set_yscale("log")
    for axes, (title, kinds) in zip(grid[-1], PANELS.items(), strict=True):
        axes.set_title(title, fontsize=10)
        for kind in kinds:
            values = [math.nan if layer[kind] is None else layer[kind] for layer in layers]
            if not all(map(math.isnan, values)):
                axes.plot(range(1, len(layers) + 1), values, label=SIGNAL[kind])
        if axes.lines:
            axes.legend(fontsize=8)
    grid[-1][2].set_yscale("log")
    for axes in grid.flat:
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.get_yscale() == "linear":
            _widen(axes)
    title = f"{facts['title']}, on {facts['images']} training images of {facts['data']}"
    figure.suptitle(wrapped(figure, title, fontsize=11), fontsize=11)


def _widen(axes: Axes) -> None:
    """Show at least a thousandth of the values, in numbers that stand for themselves: 1.002, not "+1" and 0.002."""
    low, high = axes.get_ylim()
    missing = max(abs(low), abs(high)) / 1000 - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
    axes.ticklabel_format(axis="y", useOffset=False)


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    step = math.ceil(len(rows) / ROWS)
    lines = [
        [row["layer"], *("" if row[key] is None else f"{row[key]:.3g}" for key in columns)] for row in rows[::step]
    ]
    rest = f"\n\nOne of {step} layers is shown; lens.json has all {len(rows)}." if step > 1 else ""
    return markdown_table(["layer", *columns.values()], lines) + rest
