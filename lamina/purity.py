"""Whether a `forward` does the same arithmetic whenever it is called.

In: a net, and the functions that its loss is made of. Out: a `Reading`: the reason why not, in words, or nothing; and what
they read that somebody may change between two steps, so that a change can be seen. What is recorded once and replayed must
not depend on what a recording does not see: random numbers of python's, the clock, counters that `forward` keeps, a file
that it reads. Code of torch and of Lamina is trusted; a user's is read, instruction by instruction, in every method whose
name appears in what was read before. Reading is careful rather than clever: what it does not understand it calls a reason,
and the net runs as it is written. Called by `lanes`.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import dis
import enum
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_TRUSTED = ("torch", "lamina", "math", "_operator", "operator", "functools", "_functools", "itertools", "collections",
            "_collections", "typing", "einops", "enum", "dataclasses", "contextlib")  # fmt: skip
_BUILTINS = {
    "abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "getattr",
    "hasattr", "int", "isinstance", "issubclass", "iter", "len", "list", "map", "max", "min", "next", "object", "pow",
    "range", "repr", "reversed", "round", "set", "slice", "sorted", "str", "sum", "super", "tuple", "type", "zip",
    "callable", "Ellipsis", "NotImplemented", "__build_class__", "__debug__", "__name__", "staticmethod", "format",
    *(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)),
}  # fmt: skip
_WRITES = {
    "STORE_ATTR": "sets",
    "DELETE_ATTR": "deletes",
    "STORE_GLOBAL": "sets the global",
    "DELETE_GLOBAL": "deletes",
}
_CHANGES = {"append", "extend", "insert", "pop", "popleft", "appendleft", "popitem", "clear", "setdefault", "update",
            "remove", "discard", "register_buffer", "register_parameter", "add_module"}  # fmt: skip
_READS_BACK = {"numpy", "tolist", "item"}  # a recording refuses them as well, with the operation's name
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, enum.Enum, type(None), type(Ellipsis), torch.dtype,
          torch.device, torch.layout, torch.memory_format)  # fmt: skip
_NATIVE = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = [
    table for name, table in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(table, dict)
]
_NOT_CALLED = {"__init__", "__new__", "__post_init__", "__repr__", "__str__", "__setattr__", "__delattr__", "__del__",
               "__setstate__", "__getstate__", "__reduce__", "__reduce_ex__", "__init_subclass__", "__replace__",
               "__class_getitem__", "__set_name__", "__deepcopy__", "__copy__"}  # fmt: skip


class _Found(Exception):
    """Why somebody's code may do other arithmetic the next time."""


def reason(net: nn.Module, functions: Iterable[Callable[..., Any]] = ()) -> str:
    """Why a net, or a function around it, may do other arithmetic the next time; empty where nothing speaks for it."""
    return Reading(net, functions).reason


class Reading:
    """What a net and the functions around it do and read.

    `modules` are all that were met; `tensors` those that are held as plain attributes, globals or in closures.
    """

    def __init__(self, net: nn.Module, functions: Iterable[Callable[..., Any]] = ()):
        self.reason = ""
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self._looks: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}
        self._classes: dict[type, str] = {}
        self._names: set[str] = {"forward"}
        self._all = False  # a method's name is put together while it runs
        try:
            if any(GLOBAL_HOOKS):
                raise _Found("hooks for all modules are set")
            self._module(net, type(net).__name__)
            for function in functions:
                self._callable(function, getattr(function, "__name__", type(function).__name__))
            before = None
            while before != (len(self._names), len(self._classes), self._all):
                before = (len(self._names), len(self._classes), self._all)
                for kind in list(self._classes):
                    self._methods(kind)
        except _Found as found:
            self.reason = str(found)

    def values(self) -> list[Any]:
        """What was read outside of modules, as it is now: equal to what it was before where nothing has changed."""
        return [look() for look in self._looks]

    # What is held

    def _new(self, thing: Any) -> bool:
        """Whether a thing is met for the first time. It is kept, so that its id stays its own."""
        new = id(thing) not in self._seen
        self._seen[id(thing)] = thing
        return new

    def _module(self, net: nn.Module, title: str) -> None:
        for name, module in net.named_modules():
            if not self._new(module):
                continue
            where = type(module).__name__ if module is net else f"{type(module).__name__} at {name!r}"
            if module is net and title:
                where = title
            self.modules.append(module)
            if any(getattr(module, kind, None) for kind in HOOKS):
                raise _Found(f"{where} has hooks")
            if any(hooked(p) for p in module._parameters.values() if p is not None):
                raise _Found(f"a parameter of {where} has hooks")
            if type(module).__module__.startswith("torch._dynamo"):
                raise _Found(f"{where} is compiled already")
            if module.__dict__.get("forward") is not None:
                raise _Found(f"the forward of {where} was replaced")
            self._classes.setdefault(type(module), where)
            for attribute, value in module.__dict__.items():
                if attribute not in _OF_MODULES:
                    self._value(value, f"{where} keeps {attribute}")

    def _value(self, value: Any, title: str) -> None:
        """A value that lasts. title: who holds it, such as "Net keeps table"."""
        if isinstance(value, nn.Module):
            self._module(value, type(value).__name__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, (*_PLAIN, weakref.ref)) or not self._new(value):
            return
        elif isinstance(value, Tensor):
            if hooked(value):
                raise _Found(f"{title}, a tensor with hooks")
            if not isinstance(value, nn.Parameter):
                self.tensors.append(value)
        elif isinstance(value, (list, dict, set, collections.deque, tuple, frozenset, types.MappingProxyType)):
            self._held(value, title)
        elif isinstance(value, ModuleType):
            if value.__name__.split(".")[0] not in _TRUSTED:
                raise _Found(f"{title}, a module that may do anything")
        elif isinstance(value, type):
            self._type(value, title)
        elif callable(value):
            self._callable(value, title)
        elif isinstance(value, torch.Generator):
            raise _Found(f"{title}, a generator of its own")
        elif not _trusted(type(value), ("torch", "lamina")):
            self._object(value, title)

    def _held(self, value: Any, title: str) -> None:
        if type(value).__module__.split(".")[0] not in ("builtins", "collections", "torch") and not isinstance(
            value, tuple
        ):
            raise _Found(f"{title}, a {type(value).__name__} that may change")
        mapping = isinstance(value, (dict, types.MappingProxyType))
        for part in [*value.keys(), *value.values()] if mapping else list(value):
            self._value(part, title)
        if isinstance(value, types.MappingProxyType):
            self._looks.append(lambda: dict(value))
        elif not isinstance(value, (tuple, frozenset)):
            self._looks.append(functools.partial(type(value).copy, value))

    def _object(self, value: Any, title: str) -> None:
        """An object of a class of somebody's own, such as a configuration: its values are read, and its methods."""
        kind = type(value)
        table = getattr(value, "__dict__", None)
        bases = [k for k in kind.__mro__ if k not in (object, types.SimpleNamespace)]
        native = any(isinstance(method, _NATIVE) for base in bases for method in vars(base).values())
        if not isinstance(table, dict) or native:
            raise _Found(f"{title}, a {kind.__name__} that may change")
        self._classes.setdefault(kind, kind.__name__)
        for name, part in table.items():
            self._value(part, f"{title}.{name}")
        self._looks.append(table.copy)

    def _type(self, kind: type, title: str) -> None:
        """A class that code names: one of torch's, a plain tuple or record, or an autograd function."""
        if kind.__module__ == "builtins":
            if kind.__name__ not in _BUILTINS:
                raise _Found(f"{title}, the class {kind.__name__}")
            return
        trusted = _trusted(kind) and not _trusted(kind, ("itertools",)) and kind is not torch.Generator
        if trusted or any(issubclass(known, kind) for known in self._classes):  # super(Net, self), Net.forward(self, x)
            return
        if issubclass(kind, torch.autograd.Function):
            for name in ("forward", "backward", "setup_context", "jvp", "vmap"):
                if isinstance(method := inspect.getattr_static(kind, name, None), staticmethod):
                    self._function(method.__func__, context=True)
        elif not (issubclass(kind, (BaseException, enum.Enum)) or _record(kind)):
            raise _Found(f"{title}, the class {kind.__name__}")
        else:
            self._classes.setdefault(kind, kind.__name__)

    # What is called

    def _callable(self, thing: Any, title: str) -> None:
        """A function, a method, a partial, a loss module or an object that can be called, whichever it is."""
        if isinstance(thing, functools.partial):
            self._callable(thing.func, title)
            self._value(thing.args, title)
            self._value(thing.keywords, title)
        elif inspect.ismethod(thing):
            owner = thing.__self__
            if isinstance(owner, (type, nn.Module)):
                self._value(owner, f"{title} belongs to {type(owner).__name__}")
            self._function(thing.__func__)
            if not isinstance(owner, (type, nn.Module)) and not _trusted(type(owner)):
                self._object(owner, f"{title} belongs to {type(owner).__name__}")
        elif isinstance(thing, nn.Module):
            self._module(thing, type(thing).__name__)
        elif isinstance(thing, FunctionType):
            self._function(thing)
        elif isinstance(thing, type):
            self._type(thing, title)
        elif hasattr(thing, "__wrapped__") and _trusted(type(thing)):  # functools.lru_cache
            self._callable(thing.__wrapped__, title)
        elif isinstance(thing, _NATIVE):
            owner = getattr(thing, "__self__", None)
            where = (getattr(thing, "__module__", None) or "").split(".")[0]
            known = where in _TRUSTED or (where == "builtins" and thing.__name__ in _BUILTINS)
            if not known or not (owner is None or isinstance(owner, (ModuleType, type)) or _trusted(type(owner))):
                raise _Found(f"{title}, whose code cannot be read")
        elif not _trusted(type(thing), ("torch", "lamina", "einops", "_operator", "operator")):
            self._object(thing, title)

    def _methods(self, kind: type) -> None:
        """All methods of a class whose names appear in what was read, and those that python calls by itself."""
        for klass in kind.__mro__:
            if klass is object or _trusted(klass):
                continue
            for name, found in list(vars(klass).items()):
                special = name.startswith("__") and name.endswith("__") and name not in _NOT_CALLED
                if name not in self._names and not special and not (self._all and not name.startswith("__")):
                    continue
                if isinstance(found, (staticmethod, classmethod)):
                    found = found.__func__
                elif isinstance(found, property):
                    found = found.fget
                elif isinstance(found, functools.cached_property):
                    found = found.func
                if isinstance(found, FunctionType):
                    if found.__globals__.get("__name__") != "dataclasses":
                        self._function(found)
                elif not special and not isinstance(found, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                    self._value(found, f"{klass.__name__} keeps {name}")
                    self._looks.append(functools.partial(vars(klass).get, name))

    def _function(self, function: Any, context: bool = False) -> None:
        if not self._new(function):
            return
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if _of(function.__globals__.get("__name__", "")) in _TRUSTED:  # a decorator of torch's calls what it holds
            for cell in cells.values():
                if isinstance(content := _content(cell), (FunctionType, types.MethodType)):
                    self._callable(content, function.__qualname__)
            return
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(default, f"{function.__qualname__} has a default")
        self._code(function.__code__, function.__globals__, cells, function.__qualname__, context)

    def _code(self, code: CodeType, names: dict[str, Any], cells: dict[str, Any], title: str, context: bool) -> None:
        own = _own(code)
        previous: dis.Instruction | None = None
        self._names.update(code.co_names)
        if "getattr" in code.co_names or "methodcaller" in code.co_names or "attrgetter" in code.co_names:
            self._names.update(const for const in code.co_consts if isinstance(const, str))
            self._all = self._all or any(i.opname in ("BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "BINARY_OP")
                                         for i in _instructions(code))  # fmt: skip
        for step in _instructions(code):
            what, kind = step.argval, step.opname
            if kind in _WRITES:
                if not (context and kind == "STORE_ATTR" and _loaded(previous) == code.co_varnames[0]):
                    raise _Found(f"{title} {_WRITES[kind]} {what}")
            elif kind in ("STORE_DEREF", "DELETE_DEREF") and what in cells:
                raise _Found(f"{title} sets {what}, which lasts")
            elif kind in ("STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR"):
                if _container(code, step) not in own:
                    raise _Found(f"{title} assigns to a place in something that may last")
            elif kind == "IMPORT_NAME":
                raise _Found(f"{title} imports while it runs")
            elif kind in ("LOAD_GLOBAL", "LOAD_NAME"):
                self._global(what, names, title)
            elif kind in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF") and what in cells:
                if what != "__class__":  # which super() reads
                    self._value(_content(cells[what]), f"{title} uses {what}")
                    self._looks.append(functools.partial(_content, cells[what]))
            elif kind in ("LOAD_METHOD", "LOAD_ATTR"):
                if what in _CHANGES and _loaded(previous) not in own:
                    raise _Found(f"{title} calls .{what}() on something that may last")
                if what in _READS_BACK:
                    raise _Found(f"{title} reads values back (.{what})")
            if kind != "PUSH_NULL":
                previous = step
        for const in code.co_consts:
            if isinstance(const, CodeType):
                self._code(const, names, cells, title, False)

    def _global(self, name: str, names: dict[str, Any], title: str) -> None:
        if name not in names:
            if name not in _BUILTINS and hasattr(builtins, name):
                raise _Found(f"{title} uses {name}()")
            return
        self._value(names[name], f"{title} uses {name}")
        if not isinstance(names[name], ModuleType):
            self._looks.append(functools.partial(names.get, name))


_OF_MODULES = set(nn.Module().__dict__) - {"training"}


def hooked(tensor: Tensor) -> bool:
    hooks = tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)
    return bool(hooks)


def _of(dotted: str) -> str:
    return dotted.split(".")[0]


def _trusted(kind: Any, rooms: tuple[str, ...] = _TRUSTED) -> bool:
    return _of(getattr(kind, "__module__", None) or "") in rooms


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _record(kind: type) -> bool:
    """A NamedTuple, or a dataclass that only holds what it is given."""
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return True
    plain = dataclasses.is_dataclass(kind) and not any("__post_init__" in vars(k) or "__new__" in vars(k)
                                                       for k in kind.__mro__[:-1])  # fmt: skip
    return plain and kind.__dataclass_params__.init  # type: ignore[attr-defined]


def _loaded(step: dis.Instruction | None) -> str | None:
    """The variable of the function's own that an instruction puts on the stack last."""
    if step is None or not step.opname.startswith(("LOAD_FAST", "STORE_FAST_LOAD_FAST", "LOAD_DEREF")):
        return None
    return step.argval[-1] if isinstance(step.argval, tuple) else step.argval


_MAKES = {"BUILD_LIST", "BUILD_MAP", "BUILD_SET", "BUILD_CONST_KEY_MAP", "LIST_EXTEND", "DICT_UPDATE", "SET_UPDATE",
          "LIST_APPEND", "MAP_ADD", "SET_ADD", "CALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_KW", "CALL_FUNCTION_KW",
          "CALL_FUNCTION_EX"}  # fmt: skip


def _own(code: CodeType) -> set[str]:
    """Variables that hold nothing but what the function has made: lists, dictionaries, sums, and what calls returned."""
    made: set[str] = set()
    others = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    previous: dis.Instruction | None = None
    for step in _instructions(code):
        if step.opname.startswith("STORE_FAST") or step.opname == "STORE_DEREF":
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            one = len(names) == 1 or step.opname == "STORE_FAST_LOAD_FAST"
            (made if one and _makes(previous) else others).update(names[:1] if one else names)
        previous = step
    return made - others


def _makes(step: dis.Instruction | None) -> bool:
    if step is None or step.opname == "BINARY_SUBSCR" or step.argrepr.endswith("="):  # h += x may change what h is
        return False
    return step.opname in _MAKES or step.opname.startswith("BINARY_")


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG", "PRECALL")]


def _container(code: CodeType, store: dis.Instruction) -> str | None:
    """The variable whose place an instruction writes to: what lies on the stack below the index. None: another thing."""
    before = [step for step in _instructions(code) if step.offset < store.offset]
    height, wanted = 0, 2 if store.opname == "STORE_SLICE" else 1  # values that the index takes
    while before and height < wanted:
        step = before.pop()
        if step.opname.startswith(("SWAP", "ROT_", "COPY", "DUP_")):  # out[i] += x
            return None
        height += dis.stack_effect(step.opcode, step.arg if step.opcode >= dis.HAVE_ARGUMENT else None, jump=False)
        if height > wanted:  # both in one instruction
            return step.argval[0] if isinstance(step.argval, tuple) else None
    return _loaded(before[-1]) if before else None
