"""What is to be a module, and is something else."""

from __future__ import annotations

from torch import nn

from diracnets.errors import UsageError, shown


def check_module(model: object, function: str) -> None:
    """Refuse what is no module, before a function fails somewhere within.

    Args:
        model: that a user gave.
        function: the name of the function that it was given to.

    Raises:
        UsageError: it is no module.

    >>> check_module("resnet", "diracify")
    Traceback (most recent call last):
    diracnets.errors.UsageError: diracify takes a torch.nn.Module, not 'resnet': make or load the network first
    """
    if isinstance(model, nn.Module):
        return
    given = f"{shown(model)}: make or load the network first" if isinstance(model, str) else f"a {type(model).__name__}"
    if isinstance(model, tuple):
        given = f"a tuple of {len(model)}: of the pair that diracify gives, for one, the first is the module"
    if isinstance(model, type) and issubclass(model, nn.Module):
        given = f"the class {model.__name__}: make one, {model.__name__}(...)"
    raise UsageError(f"{function} takes a torch.nn.Module, not {given}")
