"""The state of a run: everything that a step changes, into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import ModuleType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from diracnets.artifacts.checkpoint import network_with
from diracnets.errors import FileError, UsageError, first_line
from diracnets.models.network import Network
from diracnets.runtime.precision import Name, Precision
from diracnets.runtime.ranks import Ranks
from diracnets.training.averaging import Average
from diracnets.training.optimizer import make_optimizer
from diracnets.training.settings import OptimizationSettings


class State:
    """Where a run stands.

    Args:
        optimization: how the weights are optimized.
        net: the network in training, on its device.
        precision: the arithmetic that was chosen.
        steps: batches an epoch.
        shard: whether the network is divided among the processes, see `diracnets.training.sharding`.
        ranks: the processes of the run, if it has several. They differ in `loss_sum`, `correct` and `counted` alone:
            each has those of its own shares, and `totals` gives the sums of all.
    """

    def __init__(
        self,
        optimization: OptimizationSettings,
        net: Network,
        precision: Precision,
        steps: int,
        ranks: Ranks | None = None,
        *,
        shard: bool = False,
    ) -> None:
        self.net = net
        self.device = next(net.parameters()).device
        self.ranks = Ranks(self.device) if ranks is None else ranks
        self._sharding: ModuleType | None = None
        if shard:
            from diracnets.training import sharding  # takes seconds

            self._sharding = sharding
        self.steps = steps
        self.precision = precision
        self.scaler = precision.scaler(self.device)
        self.optimizer = make_optimizer(optimization, net, scaled=self.scaler.is_enabled(), shard=shard)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        """The peak learning rate of each of the optimizer's groups."""
        averaging = optimization.ema_decay or optimization.swa_fraction
        self.average: Average | None = None
        if averaging:
            twin = None if self._sharding is None else self._sharding.twin(net, self.ranks)
            self.average = Average(optimization, net, optimization.epochs * steps, twin)
        self.best = -1.0
        """Highest `score` of an epoch so far."""
        self.history: list[dict[str, Any]] = []
        """The rows of `metrics.jsonl`."""
        self.epoch = 1
        """The epoch at hand, counted from 1; one above the last when all is done."""
        self.begin_epoch(1)

    def begin_epoch(self, epoch: int) -> None:
        """Stand before the first batch of an epoch."""
        self.epoch = epoch
        self.batch = 0
        """Batches done in this epoch."""
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.counted = 0
        """Images in these two sums."""
        self.seen = 0
        """Images in these batches, of all processes."""
        self.seconds = 0.0
        """Time that they took."""

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in what a step found for some of its images, without waiting for the device."""
        self.loss_sum += loss.detach() * len(labels)
        self.counted += len(labels)
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def end_step(self, size: int, seconds: float) -> None:
        """Stand after a batch of `size` images, `seconds` into the epoch."""
        self.seen += size
        self.batch += 1
        self.seconds = seconds

    def running(self) -> tuple[float, float]:
        """Loss and accuracy of this epoch so far; of several processes, those that this one has counted."""
        return float(self.loss_sum) / max(self.counted, 1), int(self.correct) / max(self.counted, 1)

    def totals(self) -> tuple[Tensor, Tensor]:
        """`loss_sum` and `correct` over all processes, each of which has to ask."""
        return self.ranks.total(self.loss_sum), self.ranks.total(self.correct)

    @property
    def evaluated(self) -> Network:
        """The network to evaluate and keep: that with averaged weights once there are any, else the one in training."""
        if self.average is not None and self.average.started():
            return self.average.net
        return self.net

    @property
    def saved(self) -> Network:
        """The network to save for evaluating: `evaluated`, unless its BatchNorm statistics are not its own yet."""
        return self.evaluated if self.average is None or self.average.ready else self.net

    def tensors(self, net: nn.Module) -> Mapping[str, Tensor]:
        """A network's state dict; that of a divided one on the CPU, of the first process alone. All have to ask."""
        return net.state_dict() if self._sharding is None else self._sharding.whole_state(net)

    def whole(self, net: Network, *, everywhere: bool = False) -> Network:
        """A network with all its weights: itself, or if it is divided, a copy on the CPU. All have to ask.

        The copy is that of the first process, and the others get the divided one, unless all are to have it.
        """
        if self._sharding is None:
            return net
        tensors = self._sharding.whole_state(net)
        if everywhere:
            tensors = self.ranks.from_first(lambda: tensors)
        return network_with(net.config, tensors) if tensors else net

    @property
    def divided(self) -> bool:
        """Whether the run's networks are divided among the processes."""
        return self._sharding is not None

    def placed(self, net: Network) -> Network:
        """A whole network as this run evaluates its own: itself, or a divided copy. All have to ask."""
        return net if self._sharding is None else self._sharding.sharded(deepcopy(net), self.ranks)

    def to_data(self) -> dict[str, Any]:
        """All of it, as plain values and tensors: the same for any number of processes, each of which has to ask.

        Of a divided network, the first process alone has the tensors.
        """
        loss_sum, correct = self.totals()
        optimizer = self.optimizer.state_dict()
        if self._sharding is not None:
            optimizer = self._sharding.whole_optimizer_state(optimizer, self.ranks)
        return {
            "net": self.tensors(self.net),
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.tensors(self.average.model),
            "precision": [self.precision.name, self.precision.reason],
            "best": self.best,
            "history": self.history,
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": loss_sum,
            "correct": correct,
            "seen": self.seen,
            "seconds": self.seconds,
            "random": _random_state(self.device),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Take on the state that `to_data` gave, the global random state of torch included.

        Raises:
            UsageError: the state is that of a network with other layers.
            FileError: something is missing or cannot be.
        """
        try:
            self._load(self.net, data["net"])
        except RuntimeError as error:
            raise UsageError(
                f"the run's {self.net.config['name']} has other layers than this version of diracnets gives it: resume "
                "the run with the version that started it, or start it again"
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(error) from error
        try:
            self._restore_rest(data)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise _damaged(error) from error

    def _restore_rest(self, data: dict[str, Any]) -> None:
        self._load_optimizer(data["optimizer"])
        self.scaler.load_state_dict(data["scaler"])
        if self.average is not None:
            self._load(self.average.model, data["average"])
        kinds = {"best": float, "history": list, "epoch": int, "batch": int, "seen": int, "seconds": float}
        for name, kind in kinds.items():
            if not isinstance(data[name], int | float if kind is float else kind):
                raise ValueError(f"its {name} is a {type(data[name]).__name__}")
            setattr(self, name, data[name])
        if self.ranks.first:  # the others' sums begin at 0
            self.loss_sum, self.correct = data["loss_sum"].to(self.device), data["correct"].to(self.device)
            self.counted = self.seen
        torch.set_rng_state(data["random"][0])
        if self.device.type == "cuda" and len(data["random"]) > 1:
            torch.cuda.set_rng_state(data["random"][1], self.device)

    def _load(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        if self._sharding is None:
            net.load_state_dict(tensors)
        else:
            self._sharding.load_whole_state(net, tensors)

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Take on an optimizer's state, whether its network was divided or not: placed and computed as here."""
        groups = self.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        place = _like if self._sharding is None else self._sharding.own_part
        state = {
            number: {
                name: place(value, parameters[number]) if isinstance(value, Tensor) and value.ndim else value
                for name, value in values.items()
            }
            for number, values in saved["state"].items()
        }
        ways: list[dict[str, Any]] = [
            {name: group[name] for name in ("fused", "foreach") if name in group} for group in groups
        ]
        self.optimizer.load_state_dict({**saved, "state": state})
        for group, way in zip(self.optimizer.param_groups, ways, strict=True):
            group.update(way)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of a parameter's shape laid out as that is, as fused operations need it."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


def precision_of(data: Mapping[str, Any]) -> Precision:
    """The arithmetic of the run whose state this is.

    Raises:
        FileError: it is none that there is.
    """
    given = data.get("precision")
    if not isinstance(given, list) or len(given) != 2 or not all(isinstance(each, str) for each in given):
        raise _damaged(ValueError("its precision is not described"))
    if given[0] not in get_args(Name):
        raise _damaged(ValueError(f"a precision of {given[0][:40]!r}"))
    return Precision(*given)


def _damaged(error: Exception) -> FileError:
    what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
    return FileError(f"the checkpoint does not hold the whole state of a run: {what}")


def _random_state(device: torch.device) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]
