"""What a Python function reads of modules, found from its byte code without running it.

Byte code, not source: there is none of what was typed into an interpreter or made by a program.
"""

from __future__ import annotations

import dis
import functools
from dataclasses import dataclass
from types import CodeType

# what may be asked of a tensor without using its numbers
HARMLESS = {
    "device", "dim", "dtype", "element_size", "is_complex", "is_contiguous", "is_cpu", "is_cuda", "is_floating_point",
    "is_meta", "layout", "ndim", "ndimension", "nelement", "new_empty", "new_full", "new_ones", "new_tensor",
    "new_zeros", "numel", "requires_grad", "requires_grad_", "shape", "size", "stride",
}  # fmt: skip
_ALL_PARAMETERS = {"parameters", "named_parameters", "state_dict", "get_parameter", "_parameters"}
_BY_NAME = {"__getattr__", "__getattribute__", "attrgetter", "getattr", "rgetattr", "vars", "__dict__"}
_SILENT = {"CACHE", "COPY_FREE_VARS", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME"}


@dataclass(frozen=True)
class Read:
    """A place where a function uses the `weight`, or all parameters, of something.

    Attributes:
        base: the variable it starts from, or None where the code does not tell.
        path: the attributes and constant indices that lead from there to the module.
        is_global: whether the variable is one of the function's module.
        every: whether all parameters are read, those of the module's parts too.
    """

    base: str | None
    path: tuple[str | int, ...]
    is_global: bool
    every: bool


@functools.cache
def names_in(code: CodeType) -> frozenset[str]:
    """All global names and attributes that a function mentions, functions within it too.

    >>> sorted(names_in((lambda x: len(x.weight)).__code__))
    ['len', 'weight']
    """
    nested = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(code.co_freevars, *nested)


@functools.cache
def variables_in(code: CodeType) -> frozenset[str]:
    """The variables of its module, and of functions around it, that a function mentions.

    >>> sorted(variables_in((lambda x: len(x.weight)).__code__))
    ['len']
    """
    nested = [variables_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    own = (step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL)
    return frozenset(own).union(code.co_freevars, *nested)


@functools.cache
def weight_reads(code: CodeType, nested: bool = False) -> tuple[Read, ...]:
    """Where a function, or one within it, uses the `weight` or all parameters of something.

    >>> weight_reads((lambda self, x: x @ self.parts[0].weight).__code__)
    (Read(base='self', path=('parts', 0), is_global=False, every=False),)
    >>> weight_reads((lambda self, x: x.to(self.conv.weight.dtype)).__code__)
    ()
    """
    reads = []
    steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
    for index, step in enumerate(steps):
        following = steps[index + 1].opname if index + 1 < len(steps) else ""
        if step.opname == "LOAD_CONST" and following != "CALL_KW" and _names_weight(step.argval, code):
            reads.append(Read(None, (), is_global=False, every=False))
        if step.opname not in (*_ATTRIBUTE, "STORE_ATTR"):
            continue
        every, after = step.argval in _ALL_PARAMETERS, index + 1
        while every and after < len(steps) and steps[after].opname == "CALL":  # next(self.parameters()).device
            after += 1
        harmless = after < len(steps) and steps[after].opname in _ATTRIBUTE and steps[after].argval in HARMLESS
        if (every or step.argval == "weight") and not harmless:
            base, path, is_global = _origin(steps, index - 1, nested)
            reads.append(Read(base, path, is_global, every))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            reads += weight_reads(constant, nested=True)
    return tuple(reads)


def _names_weight(constant: object, code: CodeType) -> bool:
    """Whether a constant is the name of a weight, or has it, in a function that gets attributes by name."""
    names = constant if isinstance(constant, tuple) else (constant,)
    return not _BY_NAME.isdisjoint(code.co_names) and any(
        isinstance(name, str) and name.rpartition(".")[2] == "weight" for name in names
    )


def _origin(
    steps: list[dis.Instruction], index: int, nested: bool, depth: int = 0
) -> tuple[str | None, tuple[str | int, ...], bool]:
    """The variable, and what leads on from it, whose value is on the stack after the instruction at `index`."""
    unknown: tuple[None, tuple[()], bool] = (None, (), False)
    path: list[str | int] = []
    calls = 0
    while index >= 0:
        step = steps[index]
        if step.opname in _ATTRIBUTE:
            path.insert(0, step.argval)
        elif step.opname == "BINARY_SUBSCR" or step.argrepr == "[]" or (step.opname == "CALL" and step.arg == 2):
            calls += step.opname == "CALL"  # getattr(self, "0"), as torch.fx writes
            index -= 1
            if steps[index].opname not in ("LOAD_CONST", "LOAD_SMALL_INT"):
                return unknown
            path.insert(0, steps[index].argval)
        elif step.opname in _GLOBAL or step.opname == "LOAD_DEREF" or step.opname.startswith("LOAD_FAST"):
            called = steps[max(0, index - calls) : index]
            if len(called) < calls or not all(each.opname in _GLOBAL and each.argval == "getattr" for each in called):
                return unknown
            name = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
            stores = [place for place, other in enumerate(steps) if _stores(other, name)]
            if not stores:
                is_local = step.opname.startswith("LOAD_FAST")
                return unknown if is_local and nested else (name, tuple(path), step.opname in _GLOBAL)
            if len(stores) > 1 or steps[stores[0]].opname != "STORE_FAST" or depth > 9:
                return unknown
            base, before, is_global = _origin(steps, stores[0] - 1, nested, depth + 1)
            return base, (*before, *path), is_global
        else:
            return unknown
        index -= 1
    return unknown


def _stores(step: dis.Instruction, name: str) -> bool:
    """Whether an instruction gives the variable a value."""
    named = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return step.opname.startswith("STORE_") and step.opname not in ("STORE_ATTR", "STORE_SUBSCR") and name in named
