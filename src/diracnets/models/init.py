"""How a network is initialized, as plain numbers: part of a recipe and of a model card, so it imports no torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from diracnets.errors import UsageError, did_you_mean, shown

Scheme = Literal["paper", "deep", "kaiming", "carriers"]
Filters = Literal["normal", "kaiming"] | float
OLD_KEYS = ("start", "alpha", "beta", "bias")  # arguments of `build_model` next to `init` in earlier versions


@dataclass(frozen=True)
class Init:
    """How the blocks of a fresh network are initialized: a scheme, and what differs from it.

    What is None is left to the scheme.

    Raises:
        UsageError: an unknown scheme, or a number that is not finite.

    >>> Init("deep", bias=0.5)
    Init(scheme='deep', filters=None, alpha=None, beta=None, bias=0.5)
    """

    scheme: Scheme = field(default="paper", metadata={"short": "init"})  # its name among a recipe's settings
    """Initialization of the blocks. paper: filters from N(0, 1), alpha 1, beta 0.1, BatchNorm bias 0. kaiming: the same
    with Kaiming normal filters, as in the latest version of the authors' code. deep: lets the signal pass through
    hundreds of blocks. carriers: every other channel carries its input on, as those of deep do, and the others begin as
    ordinary filters do, almost without the identity."""
    filters: Filters | None = None
    """Distribution of the filters: "normal" for N(0, 1), "kaiming" for Kaiming normal, or the standard deviation of a
    normal distribution. None: as init says. The scale of a filter decides how far a step of SGD turns it."""
    alpha: float | None = None
    """Initial alpha of Dirac convolutions. If beta is given too, ordinary convolutions are initialized to the effective
    filters of Dirac convolutions with these scales. None: as init says."""
    beta: float | None = None
    """Initial beta of Dirac convolutions. None: as init says."""
    bias: float | None = None
    """Initial BatchNorm bias before each ReLU. Before the classifier it is 0 if it is above 4 / sqrt(channels). None:
    as init says."""

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            choices = get_args(Scheme)
            hint = did_you_mean(str(self.scheme), choices)
            raise UsageError(f"init is {shown(self.scheme)}; choose one of {', '.join(choices)}{hint and '; ' + hint}")
        if self.filters not in (None, "normal", "kaiming"):
            if not (_is_number(self.filters) and 0 < self.filters <= sys.float_info.max):  # type: ignore[operator]
                raise UsageError(
                    f"init's filters are {shown(self.filters)}; choose normal, kaiming, or a standard deviation above 0"
                )
            object.__setattr__(self, "filters", float(self.filters))
        for name in ("alpha", "beta", "bias"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (_is_number(value) and abs(value) <= sys.float_info.max):
                raise UsageError(f"init's {name} is {shown(value)}; it must be a finite number")
            object.__setattr__(self, name, float(value))

    @classmethod
    def of(cls, init: Init | str | Mapping[str, Any]) -> Init:
        """An initialization from the name of its scheme, or from what `to_data` gave.

        Raises:
            UsageError: an unknown scheme or key, or a value that makes no sense.

        >>> Init.of("kaiming") == Init.of({"scheme": "kaiming"}) == Init("kaiming")
        True
        """
        if isinstance(init, Init):
            return init
        if isinstance(init, Mapping):
            known = [field.name for field in fields(cls)]
            for key in init:
                if key not in known:
                    raise UsageError(f"init has no {shown(key)}; {did_you_mean(shown(key), known, cutoff=0.0)}")
            return cls(**init)
        return cls(init)  # type: ignore[arg-type]

    def to_data(self) -> dict[str, Any]:
        """Plain values of what is not left to the scheme, from which `of` makes the same initialization.

        >>> Init("deep", bias=0.5).to_data()
        {'scheme': 'deep', 'bias': 0.5}
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def from_old(
    start: str | None = None,
    init: str | float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    bias: float | None = None,
) -> Init:
    """The initialization that earlier versions called `start`, `init` (how filters are drawn), alpha, beta and bias.

    >>> from_old("paper", "kaiming"), from_old(init=0.1).filters
    (Init(scheme='kaiming', filters=None, alpha=None, beta=None, bias=None), 0.1)
    """
    scheme, filters = "paper" if start is None else start, init
    if (scheme, filters) == ("paper", "kaiming"):
        scheme, filters = "kaiming", None
    return Init(scheme, filters, alpha, beta, bias)  # type: ignore[arg-type]


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `build_model` as any version wrote them, as those of today.

    Args:
        config: of a checkpoint, a model card or trained weights.

    Raises:
        UsageError: an initialization that there is not.

    >>> upgraded({"name": "diracnet-28-1", "start": "deep", "init": None, "bias": 0.5})
    {'name': 'diracnet-28-1', 'init': {'scheme': 'deep', 'bias': 0.5}}
    """
    rest = {key: value for key, value in config.items() if key not in (*OLD_KEYS, "init")}
    init = config.get("init")
    new = isinstance(init, Mapping | Init) or init in get_args(Scheme)
    if new and not any(key in config for key in OLD_KEYS):
        made = Init.of(init)  # type: ignore[arg-type]
    else:
        made = from_old(init=init, **{key: config.get(key) for key in OLD_KEYS})
    return {**rest, "init": made.to_data()}


def from_arguments(
    init: Init | Mapping[str, Any] | str | float | None,
    start: str | None,
    alpha: float | None,
    beta: float | None,
    bias: float | None,
    stacklevel: int = 3,
) -> Init:
    """The initialization that arguments of `build_model` mean, those of earlier versions with a `DeprecationWarning`.

    Args:
        init: of today, or how filters are drawn.
        start, alpha, beta, bias: of earlier versions.
        stacklevel: of the warning, see `warnings.warn`.

    Raises:
        UsageError: an initialization that there is not.

    >>> from_arguments("deep", None, None, None, None).scheme
    'deep'
    """
    details = {"alpha": alpha, "beta": beta, "bias": bias}
    given = {name: value for name, value in details.items() if value is not None}
    of_filters = init == "normal" or _is_number(init) or (start is not None and init == "kaiming")
    if start is None and not given and not of_filters:
        return Init() if init is None else Init.of(init)  # type: ignore[arg-type]
    if start is not None or of_filters or init is None:
        made = from_old(start, init, **given)  # type: ignore[arg-type]
    else:
        made = replace(Init.of(init), **given)  # type: ignore[arg-type]
    words = ", ".join(f"{name}={value!r}" for name, value in made.to_data().items())
    warnings.warn(
        f"start, alpha, beta, bias and how filters are drawn are parts of init now: give init=Init({words})",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return made


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
