"""Whether a `forward` does the same arithmetic whenever it is called.

In: a net, and the functions that its loss is made of. Out: the reason why not, in words, or nothing. What is recorded once
and replayed must not depend on what a recording does not see: random numbers of python's, the clock, counters that
`forward` keeps, a file that it reads. Code of torch and of Lamina is trusted; a user's is read, instruction by instruction.
Reading is careful rather than clever: what it does not understand it calls a reason, and the net runs as it is written.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
from collections.abc import Callable, Iterable
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn

_TRUSTED = ("torch", "lamina", "math", "operator", "functools", "itertools", "collections", "typing", "einops", "enum")
_BUILTINS = {
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "frozenset", "getattr", "hasattr", "int",
    "isinstance", "issubclass", "len", "list", "map", "max", "min", "pow", "range", "repr", "reversed", "round", "set",
    "slice", "sorted", "str", "sum", "super", "tuple", "type", "zip", "NotImplementedError", "RuntimeError", "TypeError",
    "ValueError", "AssertionError", "KeyError", "IndexError", "StopIteration", "__build_class__",
}  # fmt: skip
_WRITES = {
    "STORE_ATTR": "sets",
    "DELETE_ATTR": "deletes",
    "STORE_GLOBAL": "sets the global",
    "DELETE_GLOBAL": "deletes",
}
_CHANGES = {"append", "extend", "insert", "pop", "popleft", "appendleft", "popitem", "clear", "setdefault", "update"}
_PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, range, Tensor)
_READS_BACK = {"numpy", "tolist", "item"}  # a recording refuses them as well, with the operation's name


def reason(net: nn.Module, functions: Iterable[Callable[..., Any]] = ()) -> str:
    """Why a net, or a function around it, may do other arithmetic the next time; empty where nothing speaks for it."""
    seen: set[Any] = set()
    for name, module in net.named_modules():
        where = f"{type(module).__name__}{f' at {name!r}' if name else ''}"
        if hooked := _hooked(module):
            return f"{where} has {hooked}"
        if module.__dict__.get("forward") is not None and not _trusted(module.__dict__["forward"]):
            return f"the forward of {where} was replaced"
        if found := _of_class(type(module), "forward", seen) or _of_attributes(module, where, seen):
            return found
    for function in functions:
        if found := _of(function, seen):
            return found
    return ""


def _hooked(module: nn.Module) -> str:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "hooks" if any(getattr(module, kind, None) for kind in kinds) else ""


def _of_attributes(module: nn.Module, where: str, seen: set[Any]) -> str:
    """What a module keeps that is neither a plain value nor a tensor: functions are read, other objects may change."""
    for name, value in module.__dict__.items():
        if isinstance(value, (*_PLAIN, nn.Module)) or value is None or _trusted(value) or _trusted(type(value)):
            continue
        if not callable(value):
            return f"{where} keeps {name}, a {type(value).__name__} that may change"
        if problem := _of(value, seen):
            return problem
    return ""


def _trusted(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").split(".")[0] in _TRUSTED


def _of_class(kind: type, name: str, seen: set[Any]) -> str:
    """A method that a module's class has, and all that it calls on itself."""
    found = inspect.getattr_static(kind, name, None)
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if isinstance(found, property):
        found = found.fget
    if not inspect.isfunction(found) or _trusted(found) or (kind, name) in seen:
        return ""
    seen.add((kind, name))
    if problem := _of(found, seen):
        return problem
    for attribute in _names(found.__code__):
        if problem := _of_class(kind, attribute, seen):
            return problem
    return ""


def _names(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_names, inner)) if inner else set(code.co_names)


def _of(thing: Any, seen: set[Any]) -> str:
    """A function, a method, a partial, a loss module or a class, whichever it is."""
    if isinstance(thing, functools.partial):
        return _of(thing.func, seen)
    if inspect.ismethod(thing):
        owner = thing.__self__
        return _of_class(owner if isinstance(owner, type) else type(owner), thing.__name__, seen)
    if isinstance(thing, nn.Module):
        return reason(thing) if thing not in seen and not seen.add(thing) else ""  # type: ignore[func-returns-value]
    if thing in seen or _trusted(thing):
        return ""
    if not inspect.isfunction(thing):
        if callable(thing) and not isinstance(thing, type) and "__call__" in vars(type(thing)):
            return _of_class(type(thing), "__call__", seen)
        return f"{getattr(thing, '__name__', type(thing).__name__)} is not a function whose code can be read"
    seen.add(thing)
    cells = inspect.getclosurevars(thing).nonlocals
    return _of_code(thing.__code__, {**thing.__globals__, **cells}, thing.__qualname__, seen)


def _of_code(code: CodeType, names: dict[str, Any], title: str, seen: set[Any]) -> str:
    before: list[dis.Instruction] = []
    for step in dis.get_instructions(code):
        what = step.argval
        if step.opname in _WRITES:
            return f"{title} {_WRITES[step.opname]} {what}"
        if step.opname in ("STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR", "IMPORT_NAME", "YIELD_VALUE"):
            return f"{title} {_WORDS[step.opname]}"
        reads = step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF")
        if reads and (problem := _of_name(what, names, code, title, seen)):
            return problem
        if step.opname in ("LOAD_METHOD", "LOAD_ATTR") and what in _CHANGES and not _on_local(before):
            return f"{title} calls .{what}() on something that lasts"
        if step.opname in ("LOAD_METHOD", "LOAD_ATTR") and what in _READS_BACK:
            return f"{title} reads values back (.{what})"
        before.append(step)
    for const in code.co_consts:
        if isinstance(const, CodeType) and (problem := _of_code(const, names, title, seen)):
            return problem
    return ""


_WORDS = {
    "STORE_SUBSCR": "assigns to an index",
    "STORE_SLICE": "assigns to a slice",
    "DELETE_SUBSCR": "deletes by an index",
    "IMPORT_NAME": "imports while it runs",
    "YIELD_VALUE": "is a generator",
}


def _on_local(before: list[dis.Instruction]) -> bool:
    """Whether the instruction before loaded a variable of the function's own."""
    last = before[-1] if before else None
    return last is not None and last.opname.startswith("LOAD_FAST") and last.argval != "self"


def _of_name(name: str, names: dict[str, Any], code: CodeType, title: str, seen: set[Any]) -> str:
    if name not in names:
        known = name in _BUILTINS or name in code.co_cellvars or not hasattr(builtins, name)
        return "" if known else f"{title} uses {name}()"
    value = names[name]
    if name == "__class__":  # what super() reads
        return ""
    if isinstance(value, ModuleType):
        return "" if value.__name__.split(".")[0] in _TRUSTED else f"{title} uses the module {name}"
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return ""
    if isinstance(value, tuple) and all(isinstance(part, (bool, int, float, str, type(None))) for part in value):
        return ""
    if isinstance(value, type):
        return "" if _trusted(value) or value.__module__ == "builtins" else f"{title} uses the class {name}"
    if callable(value):
        return _of(value, seen)
    return f"{title} uses {name}, a {type(value).__name__} that may change"
