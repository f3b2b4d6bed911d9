"""The end of a run: its best network, evaluated, folded and written to the model file."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.chain import to_chain, write_model_file
from diracnets.artifacts.checkpoint import Checkpoint, read_checkpoint
from diracnets.artifacts.model_file import save
from diracnets.errors import FileError, FoldError, UsageError, first_line
from diracnets.folding.fold import fold
from diracnets.models.network import Network
from diracnets.runtime.device import memory_format
from diracnets.training.evaluating import evaluated
from diracnets.training.own import OwnNetwork
from diracnets.training.patience import score, waited
from diracnets.training.run import Run, validated_on


@dataclass(frozen=True)
class Trained:
    """The result of a finished run."""

    run: Path
    """The run folder."""
    net: nn.Module
    """The network with the highest validation accuracy (balanced where the class weights are), that of best.pt, with
    averaged weights where the recipe averages, in evaluation mode."""
    chain: nn.Module | None
    """What the network folds to, on the same device; None if it has branches."""
    accuracy: float
    """Fraction of the validation images that the network gets right, 0 to 1; with `select_on`, of the training images
    that were held out (the last row of `history` then has a test_accuracy too)."""
    history: list[dict[str, Any]]
    """The rows of `metrics.jsonl`, one per epoch."""
    model_file: Path | None
    """The chain, in a file that describes itself; None if there is no chain."""
    epoch: int
    """The epoch after which the network was the best, counted from 1."""

    def __repr__(self) -> str:
        return f"<Trained in {self.run}: accuracy {self.accuracy:.2%} after epoch {self.epoch} of {len(self.history)}>"


def finish(run: Run) -> Trained:
    """Fold the best network, that of best.pt, and write the model file, if it has no branches.

    A run that was validated on training images is first evaluated on the test images, this once.
    """
    history = run.state.history
    net, card = _best(run)
    row = next((row for row in history if row["epoch"] == card.provenance.get("epoch")), history[-1])
    epoch, accuracy = row["epoch"], row["val_accuracy"]
    if run.data.test is not None and history[-1].get("test_epoch") != epoch:
        evaluation = evaluated(run, run.data.test, run.state.placed(net))
        history[-1] |= {"test_loss": evaluation.loss, "test_accuracy": evaluation.top1, "test_epoch": epoch}
        if run.state.ranks.first:
            run.folder.rewrite_metrics(history)
        run.save()
    run.interruption.writes(run.folder.model)
    attach_card(net, card)
    trained = Trained(run.folder.path, net, None, accuracy, history, None, epoch)
    chain, where = _folded(run, net)
    if chain is not None:
        trained = replace(trained, chain=chain.to(next(net.parameters()).device), model_file=run.folder.model)
    if isinstance(net, OwnNetwork):
        attach_card(net.net, card)
        trained = replace(trained, net=net.net)
    tested = f", {history[-1]['test_accuracy']:.2%} on the test images" if run.data.test is not None else ""
    which = f"epoch {epoch} of {run.recipe.optimization.epochs}, the best"
    optimization = run.recipe.optimization
    kind = "balanced validation accuracy" if "val_balanced_accuracy" in row else "validation accuracy"
    if len(history) < optimization.epochs:
        count = waited(optimization, history)
        stopped = f"the {kind} has not risen for {count} epoch{'s' * (count != 1)}"
        run.reporter.say(f"stopped early, after epoch {len(history)} of {optimization.epochs}: {stopped} (patience)")
    plain = f" (and {accuracy:.2%} of all images)" if "val_balanced_accuracy" in row else ""
    run.reporter.say(f"{kind} {score(row):.2%}{plain} on {validated_on(run.data)}{tested}: {which}; {where}")
    if run.state.ranks.first and (pictures := run.folder.pictures()):
        run.reporter.say(pictures)
    return trained


def _folded(run: Run, net: Network) -> tuple[nn.Module | None, str]:
    """What a network folds to, in the model file too, or None; and where the network is, to be said."""
    first, file = run.state.ranks.first, run.folder.model
    if isinstance(net, OwnNetwork):
        try:
            chain = fold(deepcopy(net.net).cpu().eval(), torch.randn(2, *net.input_size))
            if first:
                save(chain, file, card=replace(run.card(net), architecture=None))
        except (FoldError, UsageError) as error:
            return None, f"its weights are in {run.folder.best}, and there is no model file: {first_line(error)}"
        return chain, f"its folded network is in {file}"
    if not net.is_chain:
        name = net.config["name"]
        return None, (
            f"{name} has branches and folds to no chain: the network is in {run.folder.best}, and "
            "`diracnets fold --unbranch` makes a chain with more channels of it"
        )
    return write_model_file(net, file) if first else to_chain(net), f"its folded network is in {file}"


def _best(run: Run) -> tuple[Network, ModelCard]:
    """The network of best.pt in evaluation mode, and its card: on all processes, on the run's device, or on the CPU
    where the run's networks are divided.

    Where that file is gone or damaged, and no epoch is left to replace it, it is the last one.
    """
    state = run.state
    found = state.ranks.from_first(partial(_read_best, run))
    if found is None:
        run.reporter.say(f"{run.folder.best} cannot be read: the last network stands in for the best one")
        return state.whole(state.evaluated.eval(), everywhere=True), run.card(state.evaluated)
    if isinstance(state.net, OwnNetwork):
        own = deepcopy(state.net)
        own.net.load_state_dict(found.state)
        return own.eval(), found.card
    net = found.network()
    if not state.divided:
        layout = memory_format(run.recipe.runtime.channels_last)
        net.to(state.device, memory_format=layout)  # type: ignore[call-overload]
    return net.eval(), found.card


def _read_best(run: Run) -> Checkpoint | None:
    with suppress(FileError):
        return read_checkpoint(run.folder.best)
    return None
