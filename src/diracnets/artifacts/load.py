"""`load`: a network by the name of its weights, or from any file that holds one, told by what the file contains.

Nothing in a file is ever executed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diracnets.artifacts import authors
from diracnets.artifacts.authors import check_backed
from diracnets.artifacts.card import ModelFacts, attach_facts
from diracnets.artifacts.model_file import check_is_file, read
from diracnets.artifacts.pretrained import Weights, find_weights, list_weights
from diracnets.errors import FileError, UsageError, did_you_mean, first_line
from diracnets.models.build import on_meta
from diracnets.models.init import upgraded

CHECKPOINT_FORMAT = "diracnets-checkpoint-1"


def load(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network in a file, or of a trained network's name, in evaluation mode.

    Args:
        path: a model file (gives the chain), a checkpoint of `diracnets train` (gives the network, with averaged
            weights where it averaged), a training checkpoint of the paper's authors (a DiracNet), or a folded network
            with the names of their release (a chain). Or one of `list_weights()` (gives the network, or the chain where
            the weights are folded), unless there is a file of that name.
        device: where to put it.

    Returns:
        The network. Where the file tells input size and normalization, or they are known for it, it has them as its
        attribute `facts`, a `ModelFacts`.

    Raises:
        FileError: there is no such file, it is damaged, or holds something else, such as objects that could run code;
            or weights cannot be downloaded.
        UsageError: there is no such device.

    >>> import tempfile
    >>> from diracnets.artifacts.model_file import save
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), path, facts=ModelFacts((1, 8, 8), mean=(0.5,), std=(0.5,)))
    >>> load(path)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 2])
    """
    path = Path(path)
    if is_weights(path):
        model = load_weights(find_weights(str(path)))
    elif not path.exists() and (hint := did_you_mean(str(path), list_weights(), cutoff=0.8)):
        raise FileError(f"there is no file {path}, and no weights of that name; {hint}")
    else:
        model = _from_file(path)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error


def is_weights(path: str | Path) -> bool:
    """Whether `load` takes this for the name of weights: it is one, and no file is called the same.

    >>> is_weights("diracnet-28-0.5-digits"), is_weights("model.safetensors")
    (True, False)
    """
    return str(path) in list_weights() and not Path(path).is_file()


def load_weights(weights: Weights) -> nn.Module:
    """A trained network in evaluation mode, with its `facts`; the chain, where the weights are folded.

    Raises:
        FileError: the file is missing, damaged, or cannot be downloaded.
    """
    path = weights.file()
    model = _from_file(path) if weights.folded else _from_tensors(path, weights.model)
    attach_facts(model, weights.facts())
    return model


def _from_tensors(path: Path, config: Mapping[str, Any]) -> nn.Module:
    try:
        state = {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
        }
        return _network(dict(config), state)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a whole network: {first_line(error)}") from error


def _from_file(path: Path) -> nn.Module:
    if is_checkpoint(path):
        return _from_checkpoint(path, read_checkpoint(path))
    if _head(path)[8:] == b"{":
        return read(path)
    raise FileError(
        f"{path} is neither a model file (.safetensors) nor a checkpoint that torch.save wrote, or is damaged"
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as `torch.save` begins a file: as a zip archive or a bare pickle.

    Raises:
        FileError: there is no such file, or it is empty.
    """
    return _head(path)[:2] in (b"PK", b"\x80\x02")


def _head(path: Path) -> bytes:
    check_is_file(path)
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def read_checkpoint(path: str | Path) -> Any:  # noqa: ANN401
    """What `torch.save` wrote to a file, as long as it is tensors, numbers, text and containers of them.

    Raises:
        FileError: the file is damaged, or holds other Python objects: nothing in it has been executed then.
    """
    try:
        with Path(path).open("rb") as file:  # given a path, torch.load would go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) [`'\"]?([\w.]+\.[\w.]+)", str(error))
        what = f"the Python object {found[1]}" if found else "something else than tensors, numbers and text"
        raise FileError(
            f"{path} holds {what}, and is not loaded, since unpickling that could run any code; "
            "ask for a .safetensors file or a plain state dict"
        ) from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive or pickle raises almost anything
        raise FileError(f"{path} is damaged, or not a file that torch.save wrote: {first_line(error)}") from error


def _from_checkpoint(path: Path, data: Any) -> nn.Module:  # noqa: ANN401
    try:
        if isinstance(data, Mapping) and str(data.get("format", "")).startswith("diracnets-checkpoint-"):
            return _own(path, data)
        if authors.is_training(data):
            return authors.from_training(data)
        if authors.is_released(data):
            return authors.from_released(data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a whole network: {first_line(error)}") from error
    raise FileError(
        f"{path} holds no network that diracnets knows: no checkpoint of its training or of the paper's authors"
    )


def _own(path: Path, data: Mapping[str, Any]) -> nn.Module:
    if data["format"] != CHECKPOINT_FORMAT:
        raise FileError(
            f"{path} has the format {str(data['format'])[:60]!r}, which this diracnets cannot read: upgrade it"
        )
    config, state = data["model"], data["state"]
    if (
        not isinstance(config, Mapping)
        or not isinstance(state, Mapping)
        or config.keys() & {"pretrained", "device", "dtype"}
    ):
        raise ValueError("its network is not described as it should be")
    if any(int(number) > 4 + len(state) for number in re.findall(r"-(\d+)", str(config.get("name")))[:1]):
        raise ValueError(f"it has {len(state)} tensors, too few for a {config['name']}")
    net = _network(upgraded(config), state)
    if "facts" in data:
        attach_facts(net, ModelFacts.from_data(data["facts"]))
    return net


def _network(config: dict[str, Any], state: Mapping[str, Any]) -> nn.Module:
    """`build_model(**config)` with these tensors, in evaluation mode; ValueError unless they are exactly its own."""
    net = on_meta(config)
    wanted = net.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        tensor = state.get(name)
        if name not in wanted or not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            raise ValueError(f"the tensor {name} is missing, left over, or not of the shape that {config['name']} has")
        check_backed(name, tensor)
    net.load_state_dict(dict(state), assign=True)
    return net.eval()
