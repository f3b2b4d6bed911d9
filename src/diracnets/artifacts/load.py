"""`load`: a network by the name of its weights, or from any file that holds one, recognized by its contents.

Nothing in a file is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diracnets.artifacts import authors
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.chain import to_chain
from diracnets.artifacts.checkpoint import Checkpoint, checkpoint_of, is_checkpoint, network_with, unpickled
from diracnets.artifacts.model_file import check_is_file, read
from diracnets.artifacts.network_file import network_file
from diracnets.artifacts.pretrained import Weights, find_weights, list_weights
from diracnets.artifacts.unfold import unfold
from diracnets.errors import FileError, UsageError, did_you_mean, first_line
from diracnets.files import reading
from diracnets.models.init import upgraded
from diracnets.models.names import is_name
from diracnets.models.network import Network, config_of


def load(path: str | Path, device: torch.device | str = "cpu", *, folded: bool | None = None) -> nn.Module:
    """The network in a file, or of a trained network's name, in evaluation mode.

    Args:
        path: one of `list_weights()` (gives the chain), unless there is a file of that name; a run folder (its best
            checkpoint); a model file (gives the
            chain); a checkpoint of `diracnets train` (gives the network, with averaged weights where it averaged); the
            state dict of a network of ours, as `torch.save(net.state_dict(), ...)` writes it (the network); a training
            checkpoint of the paper's authors (a DiracNet), or a folded network of theirs (a chain).
        device: where to put it.
        folded: True gives the chain in any case, False the network, as for training: see `fold` and `unfold`.

    Returns:
        The network. Its attribute `card` is a `ModelCard`, wherever the input size and normalization are known.

    Raises:
        FileError: there is no such file, it is damaged, or holds something else, such as objects that could run code;
            or weights cannot be downloaded.
        UsageError: there is no such device; or what is to be unfolded is not the chain of a network of ours.
        FoldError: what is to be folded has branches.

    >>> import tempfile
    >>> from diracnets.artifacts.model_file import save
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), path, card=ModelCard((1, 8, 8), mean=(0.5,), std=(0.5,)))
    >>> load(path)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 2])
    """
    path = network_file(path)
    model = load_as_stored(path)
    if folded is None:
        folded = not isinstance(model, Network) or (is_weights(path) and model.is_chain)
    if folded and isinstance(model, Network):
        model = to_chain(model)
    elif not folded and not isinstance(model, Network):
        model = unfold(model)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error


def load_as_stored(path: str | Path) -> nn.Module:
    """Like `load`, on the CPU: the chain where a file or the weights of a name hold one, else the network.

    Raises:
        FileError: as `load`.
    """
    path = network_file(path)
    if is_weights(path):
        return load_weights(find_weights(str(path)))
    refuse_names(path)
    return _from_file(path)


def refuse_names(path: Path) -> None:
    """Raise `FileError` where there is no file, and its name is one of a network, nearly one of weights, or a word."""
    if not path.exists() and is_name(str(path)):
        raise FileError(f"there is no file {path}, and the network of that name is not trained: {_trained(str(path))}")
    if not path.exists() and (hint := did_you_mean(str(path), list_weights(), cutoff=0.8)):
        raise FileError(f"there is no file {path}, and no weights of that name; {hint}")
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        there = "`diracnets models --trained` lists those that there are"
        raise FileError(f"there is no file {path}, and no trained network of that name; {there}")


def _trained(name: str) -> str:
    """Where to get the weights of a network from."""
    found = [weights for weights in list_weights() if find_weights(weights).model["name"] == name]
    of_it = f"take {' or '.join(found)}" if found else "`diracnets models --trained` lists those that are"
    return f"{of_it}, or train it by `diracnets train --model {name}`"


def is_weights(path: str | Path) -> bool:
    """Whether `load` takes this for the name of weights: it is one, and no file is called the same.

    >>> is_weights("diracnet-28-0.5-digits"), is_weights("model.safetensors")
    (True, False)
    """
    return str(path) in list_weights() and not Path(path).is_file()


def load_weights(weights: Weights) -> nn.Module:
    """A trained network in evaluation mode, with its card; the chain, where the weights are stored folded.

    Raises:
        FileError: the file is missing, damaged, or cannot be downloaded.
    """
    path = weights.file()
    model = _from_file(path) if weights.folded else _from_tensors(path, weights.card)
    attach_card(model, weights.card)
    return model


def _from_tensors(path: Path, card: ModelCard) -> nn.Module:
    try:
        with reading(path):
            tensors = load_file(path)
        state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        return Checkpoint(card, state).network()
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a whole network: {first_line(error)}") from error


def _from_file(path: Path) -> nn.Module:
    if is_pickled(path):
        return _from_pickled(path)
    if _head(path)[8:] == b"{":
        return read(path)
    raise FileError(
        f"{path} is neither a model file (.safetensors) nor a checkpoint that torch.save wrote, or is damaged"
    )


def is_pickled(path: Path) -> bool:
    """Whether a file begins as `torch.save` begins a file: as a zip archive or a bare pickle.

    Raises:
        FileError: there is no such file, or it is empty.
    """
    return _head(path)[:2] in (b"PK", b"\x80\x02")


def _head(path: Path) -> bytes:
    check_is_file(path)
    with reading(path), path.open("rb") as file:
        return file.read(9)


def _from_pickled(path: Path) -> nn.Module:
    data = unpickled(path)
    try:
        if is_checkpoint(data):
            return checkpoint_of(path, data).network()
        if authors.is_training(data):
            return authors.from_training(data)
        if authors.is_released(data):
            return authors.from_released(data)
        if _is_state_dict(data):
            return _from_state_dict(path, data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a whole network: {first_line(error)}") from error
    raise FileError(
        f"{path} holds no network that diracnets knows: no checkpoint of its training or of the paper's authors"
    )


def _is_state_dict(data: object) -> bool:
    return isinstance(data, Mapping) and len(data) > 0 and all(isinstance(value, Tensor) for value in data.values())


def _from_state_dict(path: Path, state: Mapping[str, Tensor]) -> nn.Module:
    prefix, config = config_of(state)
    if config is None:
        raise FileError(
            f"{path} holds tensors, but does not say of which network: make that network by create_model, then "
            "net.load_state_dict(torch.load(path, weights_only=True))"
        )
    return network_with(upgraded(config), {name.removeprefix(prefix): tensor for name, tensor in state.items()})
