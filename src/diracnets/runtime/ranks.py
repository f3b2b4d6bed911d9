"""The processes that train one network together, started by `torchrun`: which one this is, and what it tells others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from diracnets.errors import DataError, DiracNetsError, FileError, TrainingError, UsageError
from diracnets.runtime.device import choose_device
from diracnets.runtime.job import restarts
from diracnets.runtime.meeting import fresh_store

T = TypeVar("T")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what it sets, and we go by
_times_joined = 0


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together, or the only one.

    Every method is called by all ranks, at the same place; for a process that is alone, it does nothing.

    Attributes:
        device: where this process computes.
        rank: number of this process, from 0; rank 0 is the one that writes files and prints.
        count: how many processes there are, on all machines.
        local_rank: number of this process on its machine.
        local_count: how many there are on this machine.
        control: a group for small messages between processors: they never wait for a graphics card.
        store: what the processes know of each other when a connection is lost.

    >>> ranks = Ranks(torch.device("cpu"))
    >>> ranks.first, ranks.total(torch.ones(2)), ranks.highest(3, 0)
    (True, tensor([1., 1.]), [3, 0])
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    control: Any = None
    store: Any = None

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, a new one on the same device; alone, the tensor itself."""
        if self.alone:
            return tensor
        summed = tensor.detach().clone()
        distributed.all_reduce(summed)
        return summed

    def highest(self, *numbers: int) -> list[int]:
        """The highest of all ranks' numbers, each in its place: how ranks agree on what only one may know."""
        if self.alone:
            return list(numbers)
        highest = torch.tensor(numbers)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, self.control)
        return highest.tolist()

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        self.highest(0)  # a barrier would be one of graphics cards, where there are

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks. An error of it ends all of them."""
        if self.alone:
            return make()
        box = [make() if self.first else None]
        distributed.broadcast_object_list(box, 0, self.control)
        return box[0]  # type: ignore[return-value]

    def one_first(self, make: Callable[[], T]) -> T:
        """What each rank makes, after one of its machine has: the others find what that one has downloaded."""
        made = [make()] if self.local_rank == 0 else []
        self.wait()
        return made[0] if made else make()

    def together(self, batches: Iterable[T]) -> Iterator[T]:
        """This rank's batches, which are as many for all; what one rank cannot get, ends all."""
        iterator = iter(batches)
        while True:
            batch, error = fetched(iterator)
            if any(self.highest(error is not None)):
                raise self.shared(error)
            if batch is None:
                return
            yield batch

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on all ranks."""
        if self.alone:
            return [value]
        values: list[T] = [value] * self.count
        distributed.all_gather_object(values, value, self.control)
        return values

    def shared(self, error: DiracNetsError | None) -> DiracNetsError:
        """The error of the first rank that has one, on all ranks, to be raised there."""
        if error is not None and self.alone:
            return error
        errors: list[DiracNetsError | None] = [None] * self.count
        distributed.all_gather_object(errors, error, self.control)
        return next(each for each in errors if each is not None)


ALONE = Ranks(torch.device("cpu"))
"""A process that asks and tells nobody, wherever it computes."""


UNREADABLE = (DataError, FileError)  # what one process may meet in its images


def fetched(iterator: Iterator[T]) -> tuple[T | None, DiracNetsError | None]:
    """The next of some batches, None after the last one, or why it cannot be had.

    >>> fetched(iter([]))
    (None, None)
    """
    try:
        return next(iterator, None), None
    except UNREADABLE as error:
        return None, error


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the other processes, if this is one of several that `torchrun` started; leave them when the block ends.

    An error in one process ends all of them: the others lose their connection, and raise too. All but one of the errors
    get an attribute `silent`, so that one message is printed. Where `torch.distributed` is initialized already, its
    group is used and left as it is.

    Args:
        device: "auto", "cpu" or "cuda"; several processes take a graphics card each, by their number on their machine.
            For a single process, what `choose_device` takes.

    Raises:
        UsageError: there is no such device, or not one for each process of this machine.
        TrainingError: the connection to another process was lost.

    >>> with joined("cpu") as ranks:
    ...     ranks.alone, ranks.device
    (True, device(type='cpu'))
    """
    there = distributed.is_available() and distributed.is_initialized()
    started = set(TORCHRUN) <= set(os.environ)
    if there:
        rank, count = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, count = (_number("RANK", 0), _number("WORLD_SIZE", 1)) if started else (0, 1)
    if count == 1:
        yield Ranks(choose_device(device))
        return
    local_rank, local_count = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", count)
    place = _own_device(device, local_rank, local_count)
    store = None if there else _initialize(place)
    control = distributed.new_group(backend="gloo") if there else None
    ranks = Ranks(place, rank, count, local_rank, local_count, control, store)
    try:
        yield ranks
    except BaseException as error:
        lost = _as_loss(error)
        lost.silent = not _reports(ranks)  # type: ignore[attr-defined]
        if place.type != "cuda":  # there, what hangs in a collective operation would be waited for
            _leave(there)
        if lost is error:
            raise
        raise lost from error
    else:
        with suppress(RuntimeError):  # a rank that has left already
            ranks.wait()
        _leave(there)


def _number(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))


def _own_device(name: str, local_rank: int, local_count: int) -> torch.device:
    """The device of one of the processes of a machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(
            f"device {name!r} is one device, but {local_count} processes compute on this machine: choose auto, cpu or "
            "cuda, which gives each process a graphics card of its own"
        )
    device = choose_device(name)
    if device.type == "cpu":
        return device
    if torch.cuda.device_count() < local_count:
        raise UsageError(
            f"{local_count} processes were started on a machine with {torch.cuda.device_count()} graphics cards: "
            "start one for each (--nproc-per-node gpu), or train on the CPU (--device cpu)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _initialize(device: torch.device) -> Any:  # noqa: ANN401
    """Initialize `torch.distributed`; the store that all processes share."""
    global _times_joined
    _times_joined += 1  # or the second run of a program would meet the addresses that the first one left
    backend, own = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        store, rank, count = next(rendezvous("env://"))
        store = fresh_store(store, rank, count, f"diracnets/{_times_joined}")
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count, device_id=own)
    except RuntimeError as error:
        raise _as_loss(error) from error
    return store


def _leave(there: bool) -> None:
    if not there:
        distributed.destroy_process_group()


def _as_loss(error: BaseException) -> BaseException:
    """The error; where it is that of a collective operation that lost a process, one that says so."""
    words = str(error)
    if isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in words for word in ("gloo", "NCCL", "Connection closed"))
    ):
        done, most = restarts()
        rest = f"all start again, {done + 1} of {most} restarts" if done < most else "resume from the last checkpoint"
        return TrainingError(
            "another process of this run has ended, and with it the run: see its message, or the system's log where it "
            f"was killed; {rest}"
        )
    return error


def _reports(ranks: Ranks) -> bool:
    """Whether this process is the first to leave with an error, and so the one to report it."""
    if ranks.store is None:
        return ranks.first
    try:
        return bool(ranks.store.add("reported", 1) == 1)
    except RuntimeError:  # the process that kept the store has gone
        return ranks.rank == 1
