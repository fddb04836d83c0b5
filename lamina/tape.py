"""Arithmetic recorded once, below autograd, and replayed.

In: a function of no arguments that reads tensors which stay where they are (a batch's columns, parameters, buffers) and
computes others from them, gradients included. Out: a `Tape`: the same kernels on the same memory in the same order, so the
same bits, without modules, autograd or allocation in between. For small nets that is most of a step.

    operations, (value, gradients) = record(step)            # runs it once
    tape = Tape(operations, [value, *gradients])
    x.copy_(other); tape.replay(); tape.given                # and again, with other values in x

While it runs, every operation of ATen is seen with its tensors. A view of memory that stays is made once and never again;
an operation with a kernel that writes into given memory writes into an arena, where memory is used again as soon as nobody
needs what it holds; any other operation makes its result anew, and the recorded tensors are pointed at it. Random draws
are drawn anew, from the same generator.

A tape knows shapes and flow of its recording, and nothing else. `record` refuses what it can see (values read by Python,
shapes that depend on values); what it cannot see, such as a counter in `forward`, or `tolist()`, is the caller's to exclude:
see `purity`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.quicker import add_rows

aten = torch.ops.aten
Span = tuple[int, torch.dtype, int, tuple[int, ...], tuple[int, ...]]  # storage, dtype, offset, size, stride

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_CONSTANT = 4096  # numbers: what a function makes of constants at each call is no larger
_LONGEST = 5_000  # operations
_ALIGN = 64  # bytes: a cache line, and the widest vector register

# How much they give, or what they do, depends on values that they read themselves, without a tag that says so.
_READING = {aten._pack_padded_sequence.default, aten._ctc_loss.default, aten._ctc_loss.Tensor}
# What a tensor lies on must not change on the way.
_MOVING = {aten.set_, aten.resize_, aten.resize_as_}


class Unrecordable(Exception):
    """Why a function cannot be replayed, in words that complete "it ..."."""


@dataclass
class Operation:
    """One operation of ATen as it was seen."""

    function: Any  # an OpOverload
    run: Any  # what was called in its place, where the caller wanted that; else the same
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: list[Tensor]
    made: list[int]  # storages that it brought into being

    def tensors(self) -> list[Tensor]:
        return _tensors(self.arguments, self.keywords)


def _leaves(*values: Any) -> list[Any]:
    """What is in tuples, lists and dictionaries, in order; torch's own walk takes ten times as long."""
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _leaves(*value)
        elif isinstance(value, dict):
            found += _leaves(*value.values())
        else:
            found.append(value)
    return found


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in _leaves(*values) if isinstance(leaf, Tensor)]


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same tuples, lists and dictionaries, of what a function makes of each leaf."""
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(_mapped(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    return function(value)


def draws(operation: Operation) -> bool:
    """Whether it takes random numbers."""
    return torch.Tag.nondeterministic_seeded in operation.function.tags


def storage(tensor: Tensor) -> int:
    """Which piece of memory a tensor lies on, for as long as somebody holds that."""
    return tensor.untyped_storage()._cdata


def span(tensor: Tensor) -> Span:
    """Which numbers of that memory are a tensor's, and in which order."""
    return (storage(tensor), tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


class _Recorder(TorchDispatchMode):
    """Runs every operation and keeps it, with all its tensors: so no storage's address is ever used twice."""

    def __init__(self, instead: dict[Any, Any], device: str) -> None:
        super().__init__()
        self._device = device
        self.operations: list[Operation] = []
        self.refused: Unrecordable | None = None  # kept, since the function may catch what it was told
        self._instead = instead
        self._seen: set[int] = set()
        self._made: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._kept(function, args, kwargs or {})
        except Unrecordable as why:
            self.refused = self.refused or why
            raise

    def _kept(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(function, torch._ops.OpOverload) or function.namespace not in ("aten", "prims"):
            raise Unrecordable(f"calls an operation that is not torch's own ({function})")
        if _reads_values(function, args):
            raise Unrecordable(f"reads values to decide what comes next ({function})")
        turned = torch.Tag.inplace_view in function.tags
        if function.overloadpacket in _MOVING or (turned and storage(args[0]) not in self._made):
            raise Unrecordable(f"changes the shape or the memory of a tensor in place ({function})")
        if turned:  # what was recorded of it before keeps the shape of that time
            return function(*args, **kwargs)
        if function is aten.promote_types.default:  # of types alone
            return function(*args, **kwargs)
        for tensor in _tensors(args, kwargs):
            self._check(tensor, function)
            self._seen.add(storage(tensor))
        arguments, keywords = _mapped(_as_now, (args, kwargs))
        run = self._instead.get(function, function)
        # What Python has made, such as torch.tensor(0.0), comes in here. It is copied, so that it can be had anew.
        result = args[0].clone() if function is aten.lift_fresh.default else run(*args, **kwargs)
        leaves = _leaves(result)
        results = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(leaf is not None and not isinstance(leaf, Tensor) for leaf in leaves):
            raise Unrecordable(f"reads a number back ({function})")
        if isinstance(result, (tuple, list)) and any(isinstance(part, (tuple, list)) for part in result):
            raise Unrecordable(f"gets lists of tensors beside others ({function})")
        for tensor in results:
            self._check(tensor, function)
        made = list(dict.fromkeys(key for key in map(storage, results) if key not in self._seen))
        self._seen.update(made)
        self._made.update(made)
        self.operations.append(Operation(function, run, arguments, keywords, [*map(_as_now, results)], made))
        return result

    def _check(self, tensor: Tensor, function: Any) -> None:
        plain = type(tensor) in _PLAIN and tensor.layout == torch.strided
        if not plain or tensor.is_complex() or tensor.is_nested or tensor.is_quantized:
            kind = f"{type(tensor).__name__} of {tensor.dtype} and layout {tensor.layout}"
            raise Unrecordable(f"works on a {kind} ({function})")
        if tensor.device.type != self._device:
            raise Unrecordable(f"works on {tensor.device} ({function})")


def _as_now(leaf: Any) -> Any:
    """A tensor of the same memory that keeps its shape whatever becomes of the other."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _reads_values(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether what comes out, in kind or number, depends on values."""
    if function is aten.index.Tensor:  # by masks; by integers it does not
        return any(part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1])
    told = torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags
    return told or function in _READING


# Torch wraps this method so that the compiler leaves it alone, and imports the compiler for that: a second, when first called.
_Recorder.__torch_dispatch__ = inspect.unwrap(_Recorder.__torch_dispatch__)  # type: ignore[method-assign]


def record(
    function: Callable[[], Any], instead: dict[Any, Any] | None = None, device: str = "cpu"
) -> tuple[list[Operation], Any]:
    """Run a function, and give what it did and what it returned. Raises Unrecordable.

    instead: functions to call in the place of operations, now and at every replay; those that can write their result into
    given memory take it as `out`. device: the type of device on which all of it must happen. A `Tape` can be made of what
    happens on the CPU.
    """
    recorder = _Recorder(instead or {}, device)
    try:
        with recorder:
            result = function()
    except Exception as error:
        if recorder.refused in (None, error):
            raise
        raise recorder.refused from error  # which the function has put into words of its own
    if recorder.refused is not None:
        raise recorder.refused
    if len(recorder.operations) > _LONGEST:
        raise Unrecordable(f"takes {len(recorder.operations):,} operations, which spend their time in themselves")
    return recorder.operations, result


def flow(operations: Iterable[Operation], known: Container[int] = ()) -> list[Any]:
    """What two recordings of the same function must have in common: operations, shapes, and which result goes where.

    Storages are told by when they were made. Of those that came from outside, the `known` ones by their address, since
    what is in them is read anew by every replay; any other was made by Python, is kept as it is, and told by its values.
    """
    made: dict[int, int] = {}

    def mark(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            key, *rest = span(leaf)
            if key not in made and key not in known:
                return ("constant", repr(leaf.tolist()) if leaf.numel() <= _CONSTANT else key, *rest)
            return ("made", made[key], *rest) if key in made else ("given", key, *rest)
        return repr(leaf)  # NaN is not equal to itself, and 0.0 equal to -0.0 and to False

    found = []
    for operation in operations:
        before = [mark(leaf) for leaf in _leaves(operation.arguments, operation.keywords)]
        for key in operation.made:
            made[key] = len(made)
        found.append((str(operation.function), before, [mark(result) for result in operation.results]))
    return found


# --- From operations to calls -----------------------------------------------------------------------------------------


def _writes_into(function: Any) -> Any:
    """The overload of an operation that writes into given tensors with a kernel of its own; None where there is none.

    Torch generates the missing ones: they compute as before and copy, so they are of no use here.
    """
    if function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags or function in _RESIZING:
        return None
    expected = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        if torch.Tag.generated in overload.tags or not any(a.is_out for a in arguments):
            continue
        if [(a.name, str(a.type)) for a in arguments if not a.is_out] == expected:
            return overload
    return None


# Their kernels for given memory make it larger first, for all numbers, and smaller again, for their mean. All others of torch
# 2.13 that its own samples of operations reach were compared with what they stand for, to the bit, in 1 and 2 threads.
_RESIZING = {aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.soft_margin_loss.default,
             aten.binary_cross_entropy.default}  # fmt: skip


def _nothing() -> None:
    """In place of an operation that only asks for memory."""


def _copy(out: Tensor, source: Tensor) -> None:
    out.copy_(source)


def _pool_backward(gradient: Tensor, *arguments: Any, grad_input: Tensor) -> None:
    """Torch's own change of layout inside this kernel is eight times slower than the one before it."""
    if not gradient.is_contiguous() or grad_input.is_contiguous():
        gradient_as_wanted = gradient
    else:
        gradient_as_wanted = gradient.contiguous(memory_format=torch.channels_last)
    aten.max_pool2d_with_indices_backward.grad_input._op(gradient_as_wanted, *arguments, grad_input=grad_input)


def _embedding(weight: Tensor, indices: Tensor, *_: Any, out: Tensor) -> None:
    """Rows of a table, as torch's own looks them up, which has no kernel that writes into given memory."""
    torch.index_select(weight, 0, indices.reshape(-1), out=out.view(-1, out.shape[-1]))


def _embedding_backward(
    gradient: Tensor, indices: Tensor, rows: int, padding: int, by_count: bool, *, out: Tensor
) -> None:
    """The gradient of a table, to the bits of torch's own."""
    add_rows(out, indices.reshape(-1), gradient.reshape(-1, gradient.shape[-1]), padding)


def _ours(operation: Operation) -> Callable[..., None] | None:
    """A kernel of ours that writes into given memory, to the same bits; None where torch's is taken."""
    if operation.run is not operation.function:  # called in the place of torch's
        return operation.run if "out" in inspect.signature(operation.run).parameters else None
    if operation.function is aten.embedding.default:
        return _embedding
    if operation.function is aten.embedding_dense_backward.default and not operation.arguments[4]:
        exact = operation.results[0].dtype in (torch.float32, torch.float64)  # in others torch rounds every sum
        return _embedding_backward if exact else None
    return None


@dataclass
class _Call:
    """One call of the tape; `into` are the tensors it writes, where it has a kernel for that."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: list[Tensor]
    made: list[int]
    static: bool  # it writes its results into memory that it is given
    uses: set[int]  # storages
    name: str  # of the operation


def _calls(operations: list[Operation]) -> list[_Call]:
    """What must be done again at a replay: views are not, nor constants that nobody writes to."""
    written: set[int] = set()  # by an operation that changes what it is given
    for operation in operations:
        if operation.function._schema.is_mutable or operation.function in _WRITING:
            written.update(map(storage, operation.tensors()))
    calls = []
    for operation in operations:
        constant = not draws(operation) and (not operation.tensors() or operation.function in _CONSTANTS)
        if not operation.function._schema.is_mutable and not operation.made:
            continue  # a view
        if operation.function in EMPTY or not constant or written.intersection(operation.made):
            calls.append(_call(operation))
    return calls


EMPTY = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
          aten.new_empty_strided.default}  # fmt: skip
_CONSTANTS = {aten.lift_fresh.default, aten.ones_like.default, aten.zeros_like.default, aten.full_like.default,
              aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}  # fmt: skip
_COPIES = {aten.clone.default, aten._to_copy.default, aten.lift_fresh.default}
_WRITING = {aten.native_batch_norm.default}  # to its running means, though its schema says that it does not


# The same kernels by the functions that torch makes for Python, which call them in half the time.
_BOUND: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).out: getattr(torch, name) for name in (
        "addmm", "mm", "bmm", "baddbmm", "add", "sub", "mul", "div", "tanh", "sigmoid", "clamp_min", "cat", "mean",
        "_softmax", "_log_softmax", "_log_softmax_backward_data", "index_select", "exp", "sqrt")},
    aten.sum.IntList_out: torch.sum,
    **{getattr(aten, name).Tensor: getattr(Tensor, name) for name in ("add_", "sub_", "mul_", "div_")},
    aten.copy_.default: Tensor.copy_,
}  # fmt: skip


def _call(operation: Operation) -> _Call:
    function, arguments, keywords = operation.function, operation.arguments, operation.keywords
    into: Callable[..., Any] | None = None
    if function in EMPTY:
        into, arguments, keywords = _nothing, (), {}
    elif function in _COPIES:
        into, arguments, keywords = _copy, (operation.results[0], arguments[0]), {}
    elif function._schema.is_mutable and not operation.made:
        into = _BOUND.get(function, function._op) if operation.run is function else operation.run
    elif (ours := _ours(operation)) is not None:
        into, keywords = ours, {**keywords, "out": operation.results[0]}
    elif operation.run is function:
        if function is aten.relu.default:  # torch's relu is this, and has no kernel that writes into given memory
            function, arguments = aten.clamp_min.default, (arguments[0], 0)
        overload = _writes_into(function)
        outs = [a.name for a in overload._schema.arguments if a.is_out] if overload is not None else []
        if len(outs) == len(operation.results) == len(operation.made):
            into = _BOUND.get(overload, overload._op)
            keywords = {**keywords, **dict(zip(outs, operation.results, strict=True))}
            if function is aten.max_pool2d_with_indices_backward.default:
                into = _pool_backward
    tensors = _tensors(arguments, keywords)
    own = function._op if operation.run is operation.function else operation.run
    return _Call(
        into or own, arguments, keywords, operation.results, operation.made, into is not None,
        {*map(storage, tensors), *map(storage, operation.results)}, str(operation.function),
    )  # fmt: skip


# Each number of the result depends on the same place of the arguments alone, so the result may take an argument's place.
_POINTWISE = {"aten.relu.default", "aten.threshold_backward.default", "aten.mul.Tensor", "aten.mul.Scalar",
              "aten.add.Tensor", "aten.sub.Tensor", "aten.div.Tensor", "aten.tanh_backward.default",
              "aten.sigmoid_backward.default", "aten.gelu_backward.default", "aten.tanh.default",
              "aten.sigmoid.default"}  # fmt: skip


def _places_taken(calls: list[_Call], stays: set[int]) -> dict[int, int]:
    """Made storages that take the place of another, which is needed for the last time where they are made."""
    last = {key: number for number, call in enumerate(calls) for key in call.uses}
    made = {key for call in calls for key in call.made}
    roots: dict[int, int] = {}
    for number, call in enumerate(calls):
        if not call.static or call.name not in _POINTWISE or call.made[0] in stays:
            continue
        result, tensors = call.results[0], [part for part in call.arguments if isinstance(part, Tensor)]
        for tensor in tensors:
            key = storage(tensor)
            root = roots.get(key, key)
            others = [roots.get(storage(part), storage(part)) for part in tensors if span(part) != span(tensor)]
            alone = key in made and root not in stays and last[root] == number and root not in others
            if alone and span(tensor)[1:] == span(result)[1:]:
                roots[call.made[0]] = root
                last[root] = last[call.made[0]]
                break
    return roots


def _whole(tensor: Tensor) -> bool:
    return tensor.storage_offset() == 0 and tensor.untyped_storage().nbytes() == tensor.nbytes


def _arena(calls: list[_Call], stays: set[int], elsewhere: Container[int]) -> tuple[dict[int, int], int]:
    """Where each made storage lies in one block of memory, and how large that is (bytes).

    Two may share a place when one is needed for the last time before the other is made. First fit, largest first. What
    stays is needed to the end; what lies elsewhere needs no place.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for number, call in enumerate(calls):
        if call.static:
            for key, result in zip(call.made, call.results, strict=False):
                if key not in elsewhere:
                    first[key] = number
                    sizes[key] = -(-max(result.untyped_storage().nbytes(), 1) // _ALIGN) * _ALIGN
        for key in call.uses:
            last[key] = number
    for key in stays & first.keys():
        first[key], last[key] = -1, len(calls)
    taken = np.zeros((4, len(sizes)), dtype=np.int64)  # of those that have a place: first, last, start, end
    places: dict[int, int] = {}
    total = 0
    for number, key in enumerate(sorted(sizes, key=lambda key: (-sizes[key], first[key]))):
        before = taken[:, :number]
        near = before[2:, (before[0] <= last[key]) & (before[1] >= first[key])]
        starts, ends = near[:, np.argsort(near[0])]
        free_from = np.maximum.accumulate(np.concatenate([[0], ends]))  # where all that start earlier have ended
        fits = np.flatnonzero(free_from[:-1] + sizes[key] <= starts)
        places[key] = int(free_from[fits[0] if len(fits) else -1])
        taken[:, number] = first[key], last[key], places[key], places[key] + sizes[key]
        total = max(total, places[key] + sizes[key])
    return places, total


def _apart(tensor: Tensor) -> bool:
    """Whether no two of its numbers share a place, as those of an expanded one do."""
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _fits(tensor: Tensor, home: Tensor) -> bool:
    """Whether a tensor that has its storage to itself could lie in the memory of another."""
    return _whole(tensor) and span(tensor)[3:] == span(home)[3:] and tensor.dtype == home.dtype


class Tape:
    """Operations made ready to be done again.

    kept: tensors whose values are wanted after a replay. `given` has them in the same order, at every replay the same
    objects, each with memory of its own, which a caller may write to (one that is kept twice is given twice). into: for some of
    them, tensors of the same shape that they are written to, and that are given.
    """

    def __init__(self, operations: list[Operation], kept: list[Tensor], into: dict[int, Tensor] | None = None):
        calls = _calls(operations)
        into = into or {}
        moved = {key for call in calls if not call.static for key in call.made}
        static = {key for call in calls if call.static for key in call.made}
        owners: dict[int, int] = {}  # storages that are the own memory of what is kept: by its number
        for number, tensor in enumerate(kept):
            if storage(tensor) in static | moved and _apart(tensor):
                owners.setdefault(storage(tensor), number)
        homes = {key: into[n] for key, n in owners.items() if n in into and key in static and _fits(kept[n], into[n])}
        stays = {*map(storage, kept)}
        roots = _places_taken(calls, stays)
        for call in calls:
            call.uses = {roots.get(key, key) for key in call.uses}
        places, total = _arena(calls, stays, {*homes, *roots})
        block = torch.empty(total, dtype=torch.uint8)
        self.bytes = total  # of the arena
        self._live: dict[int, dict[Span, Tensor]] = {}  # storages that are made anew, and all tensors on them
        self._tensors: dict[Span, Tensor] = {}

        def lasting(leaf: Any) -> Any:
            """The tensor of the tape for a tensor of the recording."""
            if not isinstance(leaf, Tensor):
                return leaf
            key, dtype, offset, size, stride = span(leaf)
            key = roots.get(key, key)
            where = (key, dtype, offset, size, stride)
            found = self._tensors.get(where)
            if found is None:
                found = self._tensors[where] = torch.empty(0, dtype=dtype)
                if key in homes:
                    home = homes[key]
                    start = home.storage_offset() * home.itemsize // dtype.itemsize
                    found.set_(home.untyped_storage(), start + offset, size, stride)
                elif key in places:
                    found.set_(block.untyped_storage(), places[key] // dtype.itemsize + offset, size, stride)
                else:
                    found.set_(leaf.untyped_storage(), offset, size, stride)
                if key in moved:
                    self._live.setdefault(key, {})[where] = found
            return found

        ready = [
            (_mapped(lasting, c.arguments), _mapped(lasting, c.keywords), c)
            for c in calls
            if c.function is not _nothing
        ]
        found = [lasting(tensor) for tensor in kept]
        last = {key: number for number, (_, _, call) in enumerate(ready) for key in call.uses}
        ending: dict[int, list[Tensor]] = {}  # after each call, tensors whose memory nobody needs any more
        for key in moved - stays:
            if key in last and key in self._live:
                ending.setdefault(last[key], []).extend(self._live[key].values())
        nothing = torch.empty(0).untyped_storage()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.names: list[str] = []  # of each call, for those who ask where the time goes
        for number, (arguments, keywords, call) in enumerate(ready):
            function = call.function
            if not call.static:
                function = _anew(function, [self._live.get(storage(result), {}) for result in call.results])
            self.calls.append((function, arguments, keywords))
            self.names.append(call.name)
            if number in ending:
                self.calls.append((_release, (ending[number], nothing), {}))
                self.names.append("release")
        self.given: list[Tensor] = []
        before: dict[int, Tensor] = {}  # what is given, by what was kept
        for number, (tensor, source) in enumerate(zip(kept, found, strict=True)):
            home = into.get(number)
            if home is None and id(tensor) in before:
                own = before[id(tensor)]
            elif owners.get(storage(tensor)) == number and (home is None or storage(tensor) in homes):
                own = source
            else:  # it shares memory with something else, or has no kernel that writes where it is wanted
                own = torch.empty_like(source) if home is None else home.detach()
                self.calls.append((_copy, (own, source), {}))
                self.names.append("copy")
            self.given.append(own)
            before[id(tensor)] = own

    def replay(self) -> None:
        """Do it again."""
        with torch._C._AutoDispatchBelowAutograd():
            for function, arguments, keywords in self.calls:
                function(*arguments, **keywords)


def _anew(function: Any, tensors: list[dict[Span, Tensor]]) -> Callable[..., None]:
    """A call whose results are new memory: the tensors of the tape are pointed at it."""
    places = [
        [(tensor, offset, size, stride) for (_, _, offset, size, stride), tensor in views.items()] for views in tensors
    ]

    def call(*arguments: Any, **keywords: Any) -> None:
        results = function(*arguments, **keywords)
        found = [results] if isinstance(results, Tensor) else [part for part in results if part is not None]
        for result, views in zip(found, places, strict=True):
            memory = result.untyped_storage()
            for tensor, offset, size, stride in views:
                tensor.set_(memory, offset, size, stride)

    return call


def _release(tensors: list[Tensor], nothing: Any) -> None:
    for tensor in tensors:
        tensor.set_(nothing, 0, (0,), (1,))
