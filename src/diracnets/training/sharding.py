"""A network divided among the processes (FSDP2): each keeps a part of every parameter, and gathers one block at a time.

Imported only where a run asks for it: `torch.distributed.fsdp` takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diracnets.models.build import on_meta
from diracnets.models.network import Network
from diracnets.runtime.ranks import Ranks
from diracnets.training.muon import Muon
from diracnets.training.sync_bn import synchronize_norms


def sharded(net: Network, ranks: Ranks, *, sync_bn: bool = False) -> Network:
    """Divide a network among the processes: each keeps its part of the filters of every layer, on its device.

    Before a block computes, in the forward and in the backward pass, its parameters are gathered; after it, they are
    given up. Gradients are divided as the parameters are. BatchNorm statistics are whole everywhere.

    Args:
        net: on the CPU. It is changed in place; all have the weights of the first process then.
        ranks: the processes, each of which has to call this.
        sync_bn: whether its batch norms take their statistics over all processes.

    Returns:
        The same network.
    """
    for tensor in _tensors(net):
        distributed.broadcast(tensor.detach(), 0, ranks.control)
    _divided(net.to(memory_format=torch.contiguous_format), ranks)  # type: ignore[call-overload]
    if sync_bn:
        synchronize_norms(net)
    return net


def twin(net: Network, ranks: Ranks) -> Network:
    """A copy of a divided network, divided in the same way."""
    made = _divided(on_meta(net.config), ranks)
    made.to_empty(device=ranks.device)
    with torch.no_grad():
        for mine, theirs in zip(_tensors(made), _tensors(net), strict=True):
            mine.copy_(theirs)
    return made


def _divided(net: Network, ranks: Ranks) -> Network:
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    blocks = [block for group in net.groups for block in group.children()]
    for module in (*blocks, net):  # with the network itself, what is in no block
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return net


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    return chain(net.parameters(), net.buffers())


def whole_state(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a divided network, its tensors whole, on the CPU of the first process; nothing on the others.

    Every process has to ask. They are gathered one by one.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(net, options=options))


def load_whole_state(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take on a state dict of whole tensors, which every process has.

    Raises:
        RuntimeError: it is that of another network.
    """
    set_model_state_dict(net, dict(state), options=StateDictOptions(full_state_dict=True))


def whole_optimizer_state(state: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """An optimizer's state dict, its tensors whole, on the CPU of the first process; without them on the others.

    Not by `get_optimizer_state_dict`: where there is no state yet, that takes a step to make some.
    """
    whole: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            full = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            if ranks.first:
                whole.setdefault(number, {})[name] = full
    return {**state, "state": whole}


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as a parameter is."""
    divided = cast(DTensor, like)
    there = whole.to(divided.device).contiguous()
    return distribute_tensor(there, divided.device_mesh, divided.placements, src_data_rank=None)


class ShardedMuon(Muon):
    """Muon on a divided network: each process turns its own filters, by the whole matrix of a layer's gradient.

    That is gathered layer by layer, and orthogonalized by all processes: the same numbers, in the same time, and with
    as much memory besides as one layer takes.
    """

    def _updates(self, gradients: list[Tensor], order: list[int]) -> Iterator[Tensor]:
        for gradient in gradients:
            whole = cast(DTensor, gradient).full_tensor()
            for update in super()._updates([whole], order):
                yield own_part(update, gradient)

    def _own(self, tensor: Tensor) -> Tensor:
        return cast(DTensor, tensor).to_local()
