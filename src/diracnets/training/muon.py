"""Muon for filters: each step turns them by a fixed angle, along a gradient whose directions all count alike.

`torch._foreach_...`, with which torch's own optimizers compute, is not documented. It is used because a loop over the
tensors of hundreds of layers would start that many operations one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import required

from diracnets.runtime.processor import instructions

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic: steep at 0, and about 1 from there on
AMX_ROWS = 128  # of matrices from which on bfloat16 is faster with AMX: at 256 rows, twice as fast
EPS = 1e-12  # the norm up to which a filter has no direction, as in the Dirac normalization


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1: the iteration of Newton and Schulz.

    Five steps of `X <- P X` with `P = a I + b (X X') + c (X X')^2` bring all but the smallest singular values to 0.7 to
    1.2. On CUDA they are taken in bfloat16, and so are those of large matrices, unless in float64, on CPUs with AMX.
    Elsewhere, in float32 or float64, only Gram matrices are iterated on, since `X X'` becomes `P X X' P`, and X is
    multiplied once, by the product of the P. Where a layer keeps its channels, X has nine times as many columns as
    rows, and this takes 0.4 of the operations; less precise products would spoil it.

    Args:
        matrices: [batch, rows, columns].

    Returns:
        The same shape and dtype.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    >>> values = torch.linalg.svdvals(orthogonalized(torch.randn(1, 4, 36)))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x if x.dtype == torch.float64 else x.float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    x = _by_steps(x.bfloat16()) if _suits_bfloat16(x) else _by_gram_matrices(x)
    return (x.mT if tall else x).to(matrices.dtype)


def _suits_bfloat16(x: Tensor) -> bool:
    """Whether all the steps in bfloat16 take less time than the fewer products in float32."""
    amx = x.device.type == "cpu" and x.dtype == torch.float32 and "amx_bf16" in instructions()
    return x.is_cuda or (amx and x.shape[1] >= AMX_ROWS)


def _by_steps(x: Tensor) -> Tensor:
    """The steps as they are written, which bear rounding."""
    for _ in range(STEPS):
        x = _polynomial(x @ x.mT) @ x
    return x


def _by_gram_matrices(x: Tensor) -> Tensor:
    """The same steps, with precise products alone: where the process lets float32 ones be rounded, in float64."""
    dtype = x.dtype
    rounded = x.device.type == "cpu" and torch.get_float32_matmul_precision() != "highest"
    x = x.double() if rounded else x
    gram = x @ x.mT
    product = polynomial = _polynomial(gram)
    for _ in range(STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        product = polynomial @ product
    return (product @ x).to(dtype)


def _polynomial(gram: Tensor) -> Tensor:
    """`a I + b gram + c gram^2`."""
    a, b, c = COEFFICIENTS
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=1, dim2=2).add_(a)
    return polynomial


def _order(filters: Tensor) -> list[int]:
    """The axes of filters in the order of memory, for columns that need no copying; the step is the same in any."""
    strides = filters.stride()
    return [0, *sorted(range(1, filters.ndim), key=lambda axis: -strides[axis])]


def _norms(filters: Tensor) -> Tensor:
    """[out, 1, ...]"""
    norms: Tensor = torch.linalg.vector_norm(filters, dim=tuple(range(1, filters.ndim)), keepdim=True)
    return norms


class Muon(torch.optim.Optimizer):
    """Muon for groups of filters, SGD for all other groups.

    A filter's direction is all that counts after the Dirac normalization or before a batch norm. So each filter keeps
    the norm that it has, and a step is `W <- ||W|| normalize(W / ||W|| - lr U)`, with U the momentum (Nesterov's) of a
    layer's gradient on the directions W / ||W||, taken as a matrix of one row a filter, `orthogonalized` and brought to
    rows of norm about 1. `lr` is then about the angle of the step in radians, as long as the training lasts, and the
    directions take the same path whatever the norms are. Where no norm follows, as at the end of a residual branch, the
    filters' scale stays what it was, also that of trained weights. A filter of norm 1e-12 or less has no direction and
    is left as it is. Filters are not decayed. Layers of one shape are computed together.

    Args:
        groups: dictionaries of "params", with "lr" and "momentum"; those with "filters" True are for Muon, their
            tensors are [out, in, *kernel]. The others may have "nesterov" and "weight_decay".

    Raises:
        ValueError: a group without rate or momentum.

    >>> layer = torch.nn.Conv2d(3, 8, 3)
    >>> optimizer = Muon([{"params": [layer.weight], "filters": True, "lr": 0.1, "momentum": 0.6}])
    >>> layer(torch.randn(2, 3, 8, 8)).square().sum().backward()
    >>> before = layer.weight.detach().flatten(1).norm(dim=1)
    >>> optimizer.step()
    >>> bool(layer.weight.flatten(1).norm(dim=1).allclose(before))
    True
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        needed = {"lr": required, "momentum": required}
        super().__init__(groups, {**needed, "filters": False, "nesterov": False, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for all parameters that have a gradient; `closure`, where given, computes these and the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            if parameters:
                (self._turn if group["filters"] else self._descend)(parameters, gradients, group)
        return loss

    def _turn(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        norms = [self._kept_norms(parameter) for parameter in parameters]
        on_directions = list(torch._foreach_mul(gradients, norms))
        gradients = self._with_momentum(parameters, on_directions, group, nesterov=True)
        alike: dict[object, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for each in zip(parameters, gradients, norms, strict=True):
            alike[(each[0].shape, each[0].dtype, each[0].device, *_order(each[0]))].append(each)
        for layers in alike.values():
            order = _order(layers[0][0])
            updates = self._updates([gradient for _, gradient, _ in layers], order)
            for (parameter, _, norm), update in zip(layers, updates, strict=True):
                rows, columns = update.shape
                step = group["lr"] * max(1.0, rows / columns) ** 0.5
                filters, kept = self._own(parameter).permute(order), self._own(norm)
                directed = kept > EPS
                filters.addcmul_(self._own(update).view_as(filters), kept.where(directed, 0.0), value=-step)
                filters.mul_((kept / _norms(filters).clamp_min(EPS)).where(directed, 1.0))

    def _updates(self, gradients: list[Tensor], order: list[int]) -> Iterable[Tensor]:
        """The orthogonalized gradients of layers of one shape, [rows, columns] each, their axes in that order."""
        return orthogonalized(torch.stack([gradient.permute(order).flatten(1) for gradient in gradients]))

    def _own(self, tensor: Tensor) -> Tensor:
        """What this process has of a tensor: here, where no network is divided, all of it."""
        return tensor

    def _kept_norms(self, filters: Tensor) -> Tensor:
        """The norms that filters keep, [out, 1, ...]: taken once, so that their rounding does not add up."""
        state = self.state[filters]
        if "norms" not in state:
            state["norms"] = _norms(filters)
        norms: Tensor = state["norms"]
        return norms

    def _descend(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["momentum"]:
            gradients = self._with_momentum(parameters, gradients, group, nesterov=group["nesterov"])
        torch._foreach_add_(parameters, gradients, alpha=-group["lr"])

    def _with_momentum(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any], *, nesterov: bool
    ) -> list[Tensor]:
        """Take the gradients into the momenta, and give the directions to step along."""
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=group["momentum"])) if nesterov else momenta
