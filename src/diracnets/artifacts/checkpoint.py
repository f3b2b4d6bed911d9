"""The checkpoint: one file with the network to evaluate, its card, and all that resuming its training run needs."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any

import torch
from torch import Tensor

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.checksum import checksums_written, damage_in
from diracnets.artifacts.earlier import card_of_facts
from diracnets.artifacts.pickled import object_in, refused
from diracnets.errors import FileError, TrainingError, UsageError, first_line
from diracnets.files import written_whole
from diracnets.models.build import on_meta
from diracnets.models.network import Network

FORMAT = "diracnets-checkpoint-2"
_PREFIX, _EARLIER = "diracnets-checkpoint-", "diracnets-checkpoint-1"
# of build_model, without the place
_ARGUMENTS = {"name", "num_classes", "in_channels", "image_size", "width", "pool", "init"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        card: of the network; its `architecture` makes the network, its `recipe` is that of the run.
        state: the weights to evaluate, by their names in the network.
        resume: what a run that goes on needs besides, plain values and tensors; None in a checkpoint to evaluate.
    """

    card: ModelCard
    state: Mapping[str, Tensor]
    resume: Mapping[str, Any] | None = None

    def network(self) -> Network:
        """The network with its weights, which it shares with this, and its card, in evaluation mode.

        Raises:
            ValueError: the weights are not exactly those of the architecture.
        """
        architecture = self.card.architecture or {}
        if architecture.get("own"):
            raise ValueError(
                f"it holds the weights of {architecture['name']}, a module of its user's own: make that, then "
                "net.load_state_dict(torch.load(path, weights_only=True)['state'])"
            )
        net = network_with(architecture, self.state)
        attach_card(net, self.card)
        return net


def network_with(architecture: Mapping[str, Any], state: Mapping[str, Any]) -> Network:
    """`build_model(**architecture)` with these tensors, in evaluation mode.

    Raises:
        ValueError: no such network, or the tensors are not exactly its own.
    """
    net = skeleton(architecture, len(state))
    wanted = net.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        tensor = state.get(name)
        if name not in wanted or not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            called = net.config["name"]
            raise ValueError(f"the tensor {name} is missing, left over, or not of the shape that {called} has")
    check_stored(state)
    net.load_state_dict(dict(state), assign=True)
    return net.eval()


def skeleton(architecture: Mapping[str, Any], tensors: int) -> Network:
    """The network of a card from a file that may claim anything, on the meta device: it takes no memory.

    Args:
        architecture: arguments of `build_model`.
        tensors: how many the file has for it; a name cannot ask for many more layers than that, which take long.

    Raises:
        ValueError: no such network.
    """
    depth = re.search(r"-(\d+)", str(architecture.get("name")))
    if depth is not None and int(depth[1]) > 4 + tensors:
        raise ValueError(f"it has {tensors} tensors, too few for a {architecture['name']}")
    if unknown := sorted(architecture.keys() - _ARGUMENTS):
        raise ValueError(f"its architecture has {', '.join(map(repr, unknown))}, which build_model does not take")
    try:
        return on_meta(architecture)
    except (TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"its architecture makes no network: {first_line(error)}") from error


def check_stored(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that claim more elements than are stored, which would make a small file ask for much memory.

    Raises:
        ValueError: one does, or they do together since many are views of the same values.
    """
    claimed, stored = 0, dict[int, int]()
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        size = tensor.numel() * tensor.element_size()
        if not plain or size > tensor.untyped_storage().nbytes():
            raise ValueError(f"the tensor {name} is not stored in full")
        claimed += size
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if claimed > sum(stored.values()):
        raise ValueError("its tensors share their values")


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint with checksums of all that it holds, whole or not at all.

    Args:
        path: the file; one that is there already stays if the writing fails.
        checkpoint: what to write.

    Raises:
        TrainingError: a weight is not finite; such weights are never saved.
        FileError: the file cannot be written.
    """
    if not all_finite(checkpoint.state.values()):
        raise TrainingError(f"weights are infinite or NaN, so that {path} was not written")
    data = {"format": FORMAT, "card": checkpoint.card.to_data(), "state": dict(checkpoint.state)}
    if checkpoint.resume is not None:
        data["resume"] = dict(checkpoint.resume)
    try:
        with written_whole(path) as part, checksums_written():
            torch.save(data, part)
    except RuntimeError as error:  # what torch's writer makes of a full disk
        in_writing = "inline_container" in str(error)  # it then names a line of torch's source, and no reason
        why = f"{disk_usage(Path(path).parent).free:,} bytes are left on it" if in_writing else first_line(error)
        raise FileError(f"cannot write {path}, is the disk full? ({why})") from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint that this or an earlier version wrote, its tensors on the CPU. Nothing in it is executed.

    Raises:
        FileError: there is no such file, it is damaged, or is not a checkpoint of diracnets.
    """
    data = unpickled(path)
    if not is_checkpoint(data):
        raise FileError(f"{path} is not a checkpoint of diracnets")
    return checkpoint_of(path, data)


def is_checkpoint(data: object) -> bool:
    """Is this, unpickled, a checkpoint of this or another version of diracnets?"""
    name = data.get("format") if isinstance(data, Mapping) else None
    return isinstance(name, str) and name.startswith(_PREFIX)


def checkpoint_of(path: str | Path, data: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in what was unpickled from a file.

    Raises:
        FileError: another format, or something is missing or cannot be.
    """
    try:
        if data["format"] == _EARLIER:
            if not isinstance(data["model"], Mapping):
                raise UsageError("its network is not described as it should be")
            card = card_of_facts(data["facts"], architecture=data["model"])
        elif data["format"] == FORMAT:
            card = ModelCard.from_data(data["card"])
        else:
            raise FileError(
                f"{path} has the format {str(data['format'])[:60]!r}, which this diracnets cannot read: upgrade it"
            )
        state, resume = data["state"], data.get("resume")
        if card.architecture is None:
            raise UsageError("its card does not say which network it holds")
        if not isinstance(state, Mapping) or not isinstance(resume, Mapping | None):
            raise UsageError("its weights are not described as they should be")
    except (KeyError, ValueError, TypeError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise FileError(f"{path} does not hold a whole network: {missing}") from error
    return Checkpoint(card, state, resume)


def unpickled(path: str | Path) -> Any:  # noqa: ANN401
    """What `torch.save` wrote to a file, as long as it is tensors, numbers, text and containers of them.

    The checksums of a checkpoint of diracnets are verified. Other files may have been written without true ones.

    Raises:
        FileError: the file is damaged, or holds other Python objects: nothing in it has been executed then.
    """
    try:
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged pickle looks like
            if (name := object_in(file)) is not None:
                raise refused(path, name)
            # Given a path, torch.load would go by its suffix.
            data = torch.load(file, map_location="cpu", weights_only=True)
            damage = damage_in(file) if is_checkpoint(data) else None
    except FileError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class) [`'\"]?([\w.]+\.[\w.]+)", str(error))
        raise refused(path, found[1] if found else None) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # it seeks for what lies before the beginning of a file that was cut off
            raise FileError(f"{path} is damaged: a part of it is missing") from error
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive or pickle raises almost anything
        raise FileError(f"{path} is damaged, or not a file that torch.save wrote: {first_line(error)}") from error
    if damage is not None:
        raise FileError(f"{path} is damaged: {damage}")
    return data


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point tensor among these holds an infinity or NaN.

    >>> all_finite([torch.ones(2), torch.tensor(3)]), all_finite([torch.ones(2) / 0])
    (True, False)
    """
    finite = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(finite).all()) if finite else True
