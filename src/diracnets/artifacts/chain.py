"""A network's chain with its card, and the model file of it: what remains of a network when it is used."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card, card_of
from diracnets.artifacts.model_file import save
from diracnets.errors import FoldError, UsageError
from diracnets.folding.fold import fold
from diracnets.folding.report import FoldReport
from diracnets.folding.unbranch import UnbranchReport, unbranch
from diracnets.models.network import Network

_NUMBERS = ("max_abs", "max_rel", "max_abs_float64", "max_rel_float64", "parameters_before", "parameters_after")


def to_chain(net: Network, unbranched: bool = False) -> nn.Sequential:
    """Fold a network: its chain on the CPU, with the network's card, which now says how exact the fold is.

    Args:
        net: the network.
        unbranched: whether it has branches, and is to become a chain of more channels, by `unbranch`.

    Raises:
        FoldError: the network has branches, or the chain does not compute the same.
        UsageError: there are no branches to be removed.
    """
    if not net.is_chain and not unbranched:
        raise FoldError(
            f"{net.config['name']} has branches, so that it folds to no chain, which is what a model file holds; "
            "keep the checkpoint, which eval and predict read too, or make a chain with more channels of it by "
            "`diracnets fold --unbranch`"
        )
    if net.is_chain and unbranched:
        raise UsageError(f"{net.config['name']} has no branches: fold it without --unbranch")
    chain = unbranch(deepcopy(net).cpu().eval()) if unbranched else fold(deepcopy(net).cpu().eval())
    report = cast("FoldReport | UnbranchReport", chain.unbranch_report if unbranched else chain.fold_report)
    card = card_of(net)
    if card is not None:
        attach_card(chain, replace(card, fold={name: getattr(report, name) for name in _NUMBERS}))
    return cast(nn.Sequential, chain)


def write_model_file(net: Network, path: Path, unbranched: bool = False) -> nn.Sequential:
    """Fold a network, write the chain with its card to a model file, and give the chain, on the CPU.

    Args:
        net: the network.
        path: of the file.
        unbranched: see `to_chain`.

    Raises:
        UsageError: the network has no card, or no branches to be removed.
        FoldError: the network has branches, or the chain does not compute the same.
        FileError: the file cannot be written.
    """
    chain = to_chain(net, unbranched)
    save(chain, path, card=cast(ModelCard, card_of(chain)))
    return chain
