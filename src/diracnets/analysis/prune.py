"""How many layers does a chain need? Those closest to the identity are removed, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diracnets.analysis.cut import candidates, output_statistics, settle, without
from diracnets.analysis.report import Say, environment_line, markdown_table, write_report
from diracnets.analysis.subject import find_subject
from diracnets.artifacts.card import card_of
from diracnets.artifacts.model_file import save
from diracnets.data.images import ImageData
from diracnets.errors import UsageError
from diracnets.evaluation.metrics import evaluate
from diracnets.files import short_number
from diracnets.folding.fold import fold
from diracnets.places import check_model_name
from diracnets.runtime.environment import circumstances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "How many layers does a trained chain need, if those closest to the identity are removed?"
EXPLANATION = """For each channel, the output of a layer is approximated by a linear function of the input of its ReLU.
*Explained* is the share of the output's variance that these functions explain. The layer that is explained best is
removed, and its linear functions become part of the convolution before it. Then the channels of all convolutions are
scaled and shifted to the means and standard deviations that they had in the whole chain, and all layers are measured
again. Nothing is trained. *Removed* is the name of the layer's convolution in the chain. The number of removed layers
is chosen by the accuracy on training images; the held-out images play no part in any choice."""

_CHOSEN_ON, _MEASURED = 1000, 512  # training images


def prune(
    net: str,
    *,
    most: int | None,
    lose: float,
    choose: int | None,
    write: Path | None,
    data: str | None,
    data_dir: Path | None,
    images: int | None,
    device: str,
    out: Path,
    say: Say,
) -> None:
    """Remove layers, evaluate each chain, choose one, and write prune.json, prune.md and prune.png.

    Args:
        net, data, data_dir, device: see `find_subject`.
        most: remove at most this many layers; None for all that can be removed.
        lose: the accuracy, 0 to 1, that the chosen chain may lose on training images.
        choose: number of training images, the same for each class, on which that loss is measured; None for 1000, or
            all where there are fewer.
        write: the model file to write the chosen chain to.
        images: training images on which the layers are measured; None for 512, or all where there are fewer.
        out: the folder to write to.
        say: takes one line at a time.

    Raises:
        UsageError: there is no such network, it has branches, or a number makes no sense.
        FileError, DataError: files or images that cannot be read or written.
    """
    if most is not None and most < 1:
        raise UsageError(f"most is {most}; at least one layer has to be removed")
    if not 0 <= lose <= 1:
        raise UsageError(f"lose is {lose}; it must be from 0 to 1")
    if choose is not None and choose < 1:
        raise UsageError(f"choose is {choose}; at least one image is needed to choose by")
    if write is not None:
        check_model_name(write)
    subject = find_subject(net, data, data_dir, device)
    if subject.net.training:
        raise UsageError(f"{net} is an untrained network; give a trained one")
    batch, _ = subject.images(images, _MEASURED)
    choice = subject.data.with_fewer(min(_CHOSEN_ON, len(subject.data.train)) if choose is None else choose)
    chain = _chain(subject.net)
    rows: list[dict[str, Any]] = []
    best, kept = chain, 0
    for shorter, row in _shorten(chain, batch, choice, most):
        rows.append(row)
        less = f" without {row['taken']}" if row["taken"] else ""
        say(f"{row['layers']} convolutions{less}: {row['accuracy']:.2%}")
        if row["choice_accuracy"] >= rows[0]["choice_accuracy"] - lose:
            best, kept = shorter, len(rows) - 1
    facts = {
        "study": "prune",
        "title": f"Fewer layers of {subject.name}",
        "question": QUESTION,
        "circumstances": circumstances(batch.device),
        "network": subject.name,
        "data": subject.data.name,
        "images": len(batch),
        "choice_images": len(choice.train),
        "held_out": len(choice.val),
        "lose": lose,
        "kept": kept,
        "rows": rows,
    }
    if write is not None:
        _write(best, subject.net, rows[: kept + 1], write)
        say(f"wrote {write}: {rows[kept]['layers']} convolutions, {rows[kept]['accuracy']:.2%}")
    say(_table(rows))
    write_report(out, facts, page, lambda figure: draw(figure, rows), (7, 4), say)


def page(facts: Mapping[str, Any], *, picture: bool) -> str:
    """The study in Markdown."""
    rows, kept = facts["rows"], facts["kept"]
    parts = [f"# {facts['title']}", QUESTION, EXPLANATION]
    before, after = (f"{100 * rows[index]['accuracy']:.2f}" for index in (0, kept))
    parts.append(
        f"Of {rows[0]['layers']} convolutions, {kept} can be removed with a loss of at most {100 * facts['lose']:g} "
        f"point{'s' * (facts['lose'] != 0.01)} on {facts['choice_images']:,} training images. The accuracy on held-out "
        f"images is {before}% before and {after}% after."
    )
    if picture:
        parts.append("![Accuracy against the number of convolutions](prune.png)")
    parts.append(_table(rows))
    parts.append(
        f"Accuracy on the {facts['held_out']:,} held-out images of {facts['data']}; layers measured on "
        f"{facts['images']:,} training images, their number chosen by the accuracy on {facts['choice_images']:,}; "
        f"{environment_line(facts['circumstances'])}"
    )
    return "\n\n".join(parts)


def draw(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy against the number of convolutions that are left."""
    axes = figure.subplots()
    layers = [row["layers"] for row in rows]
    for kind, label in (("accuracy", "held-out images"), ("choice_accuracy", "training images (used to choose)")):
        axes.plot(layers, [100 * row[kind] for row in rows], marker="o", markersize=3, label=label)
    axes.legend(fontsize=8)
    axes.invert_xaxis()
    axes.set_xlabel("convolutions left")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)


def _chain(net: nn.Module) -> nn.Sequential:
    chain = net if isinstance(net, nn.Sequential) else fold(net)
    if not isinstance(chain, nn.Sequential):
        raise UsageError("this network has branches, and layers can be removed only from a chain")
    return chain


def _shorten(
    chain: nn.Sequential, images: Tensor, data: ImageData, most: int | None
) -> Iterator[tuple[nn.Sequential, dict[str, Any]]]:
    """The chain with its row, then shorter and shorter ones. Layers are measured on the images."""
    wanted = output_statistics(chain, images)
    taken, explained = None, None
    while True:
        yield (
            chain,
            {
                "taken": taken,
                "explained": explained,
                "layers": sum(type(layer).__name__ == "Conv2d" for layer in chain),
                "parameters": sum(parameter.numel() for parameter in chain.parameters()),
                "choice_accuracy": evaluate(chain, data.train).top1,
                "accuracy": evaluate(chain, data.val).top1,
            },
        )
        found = candidates(chain, images)
        if not found or most == 0:
            return
        most = None if most is None else most - 1
        taken, explained = found[0].layer, short_number(found[0].explained)
        chain = without(chain, found[0])
        wanted[found[0].before] = wanted.pop(taken)
        settle(chain, images, wanted)


def _write(chain: nn.Sequential, net: nn.Module, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    card = card_of(net)
    if card is None:
        raise UsageError("the network records no input size and normalization, which a model file needs")
    removed = [row["taken"] for row in rows[1:]]
    provenance = {**card.provenance, "accuracy": rows[-1]["accuracy"], "taken_out": removed}
    save(chain, path, card=replace(card, architecture=None, provenance=provenance, fold={}))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        "convolutions",
        "removed",
        "explained",
        "parameters",
        "accuracy (%)",
        "loss of accuracy",
        "on training images (%)",
    ]
    first = rows[0]["accuracy"]
    lines = [
        [
            row["layers"],
            row["taken"] or "",
            "" if row["explained"] is None else f"{row['explained']:.3f}",
            f"{row['parameters']:,}",
            f"{100 * row['accuracy']:.2f}",
            f"{100 * (first - row['accuracy']):.2f}",
            f"{100 * row['choice_accuracy']:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, lines)
