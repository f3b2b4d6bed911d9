"""What a symbolic trace does not show: code that may take another way for another input, or in other surroundings."""

from __future__ import annotations

import builtins
import contextlib
import dis
import gc
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
from torch import fx, nn

_TORCH = str(Path(torch.__file__).parent)
_LIBRARY = sysconfig.get_path("stdlib")
_OURS = str(Path(__file__).parent.parent)
_ASKING = {  # functions whose answers change with the surroundings, in modules of torch
    *("is_grad_enabled", "is_inference_mode_enabled", "is_inference", "is_autocast_enabled", "is_fx_tracing"),
    *("is_autocast_cpu_enabled", "is_autocast_cache_enabled", "is_anomaly_enabled", "is_in_onnx_export"),
}
_RANDOM_MODULES = ("random", "secrets", "time", "numpy.random")
_RANDOM = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "normal")
_RANDOM_FUNCTIONS = [getattr(torch, name) for name in _RANDOM]
_CONTEXT_FRAMES = {"decorate_context", "decorate_autocast", "inner"}  # of decorators of torch and contextlib
_MISSING = object()


@dataclass(frozen=True)
class Findings:
    """What the code of one function does that a trace of it does not show.

    Attributes:
        hides: why another call may go another way through it; None where all calls go the traced way.
        effect: what it does besides computing its output, as part of a sentence; None where it does nothing else.
    """

    hides: str | None
    effect: str | None


class Watch:
    """While it is active, looks at each function of a model that is called, and reports what it finds.

    The functions of torch, of the standard library and of this package are trusted.

    Args:
        hidden: called with the reason where a trace does not show all.
        effect: called with what code does besides computing, which only the model's own code can do.
    """

    def __init__(self, hidden: Callable[[str], None], effect: Callable[[str], None]) -> None:
        self.hidden, self.effect = hidden, effect
        self.known: dict[int, tuple[CodeType, Findings]] = {}  # by identity: equal code may have other globals
        self.caught: str | None = None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Watch this thread; debuggers and coverage, which are called by the same means, go on afterwards.

        Garbage is collected afterwards too, since what is called by that is not the model's code.
        """
        before, collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)
            if collects:
                gc.enable()
        if self.caught:
            self.hidden(f"{self.caught} does not let an exception through")

    def _called(self, frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if is_trusted(code):
            if code.co_name in _CONTEXT_FRAMES and "context" in code.co_filename + code.co_name:
                self.effect("a decorator runs part of its forward in a context")
            return None
        if id(code) not in self.known:
            self.known[id(code)] = code, look_at(code, frame.f_globals, _module_of(frame))
        found = self.known[id(code)][1]
        for name in code.co_freevars:
            if _holds_flags(frame.f_locals.get(name)):
                self.hidden(f"{where(code)} reads flags of {name}, so that another call may go another way")
        if found.hides:
            self.hidden(found.hides)
        if found.effect:
            self.effect(found.effect)
            frame.f_trace_lines = False
            return self._inside
        return None

    def _inside(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:  # noqa: ANN401
        if event == "exception" and not issubclass(argument[0], StopIteration | GeneratorExit):
            self.caught = where(frame.f_code)
        return self._inside


def look_at(code: CodeType, names: dict[str, Any], own: str | None) -> Findings:
    """Look for decisions by anything but the values that flow and the attributes of modules.

    Args:
        code: of a function.
        names: its global names.
        own: its argument that is a module, such as "self"; what is asked of it is no secret.

    >>> def forward(self, x):
    ...     return x if x is None or type(x) is list else self.conv(x)
    >>> "asks for a type" in look_at(forward.__code__, globals(), "self").hides
    True
    """
    steps = list(dis.get_instructions(code))
    names_of = [step.opname for step in steps]
    stored = {step.argval for step in steps if step.opname == "STORE_ATTR"}
    loaded = {step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    hides: list[str] = []
    if any(name.startswith("MATCH_") for name in names_of):
        hides.append("matches patterns")
    if names_of.count("PUSH_EXC_INFO") > names_of.count("WITH_EXCEPT_START"):
        hides.append("catches exceptions")
    if stored & loaded:
        hides.append(f"changes {', '.join(sorted(stored & loaded))}, which it reads")
    hides += [reason for value, then, name in _global_values(steps, names) if (reason := _why(value, then, name, own))]
    effects = ["runs part of it in a context"] if "WITH_EXCEPT_START" in names_of else []
    effects += ["prints"] if any(value is print for value, *_ in _global_values(steps, names)) else []
    effects += ["stores something"] if stored or "STORE_GLOBAL" in names_of else []
    return Findings(
        f"{where(code)} {hides[0]}, so that another call may go another way" if hides else None,
        f"{where(code)} {effects[0]}" if effects else None,
    )


def is_trusted(code: CodeType) -> bool:
    """Whether a function is torch's, the standard library's or this package's, whose networks fold as they are."""
    path = code.co_filename
    return path.startswith((_TORCH, _OURS)) or (
        path.startswith((_LIBRARY, "<frozen ")) and "site-packages" not in path and "dist-packages" not in path
    )


def where(code: CodeType) -> str:
    """A function's name and place, for reasons."""
    return f"{code.co_name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def may_be_none(code: CodeType) -> set[str]:
    """The arguments that a function compares with None."""
    steps = list(dis.get_instructions(code))
    found = set()
    for step, then, after in zip(steps, steps[1:], [*steps[2:], None], strict=False):
        compared = then.opname == "LOAD_CONST" and then.argval is None and after is not None and after.opname == "IS_OP"
        if step.opname.startswith("LOAD_FAST") and (compared or then.opname.endswith(("IF_NONE", "IF_NOT_NONE"))):
            found.add(step.argval)
    return found & set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def _module_of(frame: FrameType) -> str | None:
    code = frame.f_code
    first = code.co_varnames[0] if code.co_argcount else None
    return first if first is not None and isinstance(frame.f_locals.get(first), nn.Module) else None


def _global_values(
    steps: list[dis.Instruction], names: dict[str, Any]
) -> Iterator[tuple[object, list[dis.Instruction], str]]:
    """What global names, and attributes of them, stand for, with the instructions that follow, and their names."""
    for index, step in enumerate(steps):
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        value, name = names.get(step.argval, getattr(builtins, step.argval, _MISSING)), step.argval
        following = index + 1
        yield value, steps[following:], name
        while steps[following].opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attribute = steps[following].argval
            value = inspect.getattr_static(value, attribute, _MISSING)
            name, following = f"{name}.{attribute}", following + 1
            yield value, steps[following:], name


def _holds_flags(value: object) -> bool:
    """Whether a container that may change holds a bool."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list | set) and any(isinstance(flag, bool) for flag in value)


def _why(value: object, then: list[dis.Instruction], name: str, own: str | None) -> str | None:
    """Why a global value hides something from a trace, as part of a sentence."""
    following = then[0].opname
    if value is type or value is callable or value is fx.Proxy:
        asks_own = own is not None and then[0].argval == own and following.startswith("LOAD_FAST")
        return None if asks_own else "asks for a type"
    if (value is None or isinstance(value, bool)) and name != "TYPE_CHECKING":
        return f"reads the flag {name}"
    if _holds_flags(value):
        return f"reads flags of {name}"
    compared = "JUMP" in following or any(step.opname in ("COMPARE_OP", "CONTAINS_OP", "IS_OP") for step in then[:2])
    if compared and value is not _MISSING and not callable(value):
        return f"decides by {name}"
    if callable(value) and getattr(value, "__name__", "") in _ASKING:
        return f"asks {name}"
    if value is os.environ or value is os.getenv:
        return "reads the environment"
    if isinstance(value, ModuleType) and value.__name__ in _RANDOM_MODULES:
        return f"uses {name}"
    if any(value is function for function in _RANDOM_FUNCTIONS):
        return "draws random numbers"
    return None


class WatchedProxy(fx.Proxy):
    """A value in a trace that reports to its tracer, by the method `asked`, when code asks for its type.

    `isinstance` looks at `__class__` of what is of no given type; `hasattr` and `getattr` are called, while the code of
    `x.shape` is not.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        _tell(self.tracer, sys._getframe(1))
        return fx.Proxy

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        frame = sys._getframe(1)
        operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        if ("CALL" in operation) and not is_trusted(frame.f_code):
            _tell(self.tracer, frame)
        return WatchedAttribute(self, k)


class WatchedAttribute(WatchedProxy, fx.proxy.Attribute):
    """An attribute of a value in a trace, which is one too."""


def _tell(tracer: Any, frame: FrameType) -> None:  # noqa: ANN401
    code = frame.f_code
    if code.co_filename.startswith(_TORCH):
        if code.co_name != "is_tensor" or frame.f_back is None:
            return
        code = frame.f_back.f_code
    if not code.co_filename.startswith(_OURS):
        tracer.asked(f"{where(code)} asks for the type of a value, so that another input may go another way")
