"""How a step gets its gradients and is applied: as PyTorch does it, or replayed from a recording of itself.

In: a net, an objective, an optimiser. Out: a `Lane`, whose `gradients(batch)` gives the loss and `update()` applies it; the
engine calls both for every step. Two ways, with the same bits but where torch has compiled the net:

    eager      forward, autograd's backward, the optimiser's update: what the loop by hand does
    recorded   the step's kernels on memory that stays (`tape`), parameters and optimiser state laid flat (`flat`); on a GPU
               a CUDA graph (`graphs`), and a second one of all that follows the gradients

`compile="auto"` records where it can, "on" says so as an error where it cannot, "off" never does. A step is recorded when a
batch of its shape comes for the second time: it is made eagerly, which is what counts; then it is made again while it is
recorded, and replayed, and must give the same bits, in loss, gradients, buffers and generator. The next batch of that shape
is recorded too, and must go the same way; so is the first of an epoch. On a GPU, where that takes tenths of a second,
`auto` waits for the 32nd; and where that pays, or was asked for, torch compiles the net, which is then captured in its place
(`compiling`). Whatever speaks against it, at any time, sends the training back to eager steps, and `words` say why. What
somebody changes between two steps (a layer, a rate of dropout, a number that the loss reads) is noticed, and recorded anew.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lamina import compiling, layouts, machine, purity, quicker, rewrites, tape
from lamina import flat as flats
from lamina.batches.batch import Batch, prepared
from lamina.errors import UsageError
from lamina.graphs import Graph

Gradients = tuple[Tensor, Tensor, Any]  # the loss, the loss with penalties (both 0-d, detached), the loss's count

_CAPTURED = ("cuda",)  # devices on which a step is captured as a graph
_OFTEN = 32  # batches of a shape, before a step is captured that nobody asked to have captured
_NEAR = 1e-3  # of the largest number, on such a device: there, sums are made in any order
_COMPILED = 0.02  # the same of a running mean, where torch has compiled the net
_SHAPES = 4  # recordings at most: data that always come in other shapes are not for recording
_PAYS = 50  # batches of a further shape to come, for its recording to cost less than it saves
_RARE = 0.05  # of the steps: a shape that comes less often is not compiled because somebody asked for it
_CHECK = 2000  # replays after which the first step of an epoch is compared with an eager one
_QUICKER = 0.97  # of the time of a step, at most, for it to be kept
_AGAIN = 8  # new recordings at most, because the net was changed from outside
_ENGINE = getattr(torch.autograd.Variable, "_execution_engine", None)  # autograd's, where this torch has it there


class _Still:
    """A batch as the objective sees it while it is recorded: on memory that stays.

    What else differs from batch to batch would be recorded as it was once, so asking for it ends the recording.
    """

    def __init__(self, inputs: tuple[Tensor, ...], truth: Tensor | None, count: int, known: bool, prepare: Any = None):
        self.inputs, self.truth, self.count, self.known, self.prepare = inputs, truth, count, known, prepare
        self.tensors = [*inputs, *(() if truth is None else (truth,))]

    def ready(self) -> _Still:
        """The batch as the net takes it: its first input prepared, which is recorded like all the rest."""
        if self.prepare is None:
            return self
        inputs = (prepared(self.prepare, self.inputs[0]), *self.inputs[1:])
        return _Still(inputs, self.truth, self.count, self.known)

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Another batch, in the same memory."""
        for stays, part in zip(self.tensors, tensors, strict=True):
            if stays is not part:
                stays.copy_(part)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.inputs
        if self.truth is not None:
            yield self.truth

    def __getattr__(self, name: str) -> Any:
        raise tape.Unrecordable(f"depends on the batch's {name}")


def _still(batch: Batch) -> _Still:
    """Of a batch that is cut into the same memory every time, that memory; of another a copy, which is copied to."""
    if batch.lasting:
        return _Still(batch.inputs, batch.truth, batch.count, batch.known, batch.prepare)
    truth = None if batch.truth is None else batch.truth.clone()
    return _Still(tuple(part.clone() for part in batch.inputs), truth, batch.count, batch.known, batch.prepare)


@dataclass
class _Recording:
    """A step for batches of one shape."""

    batch: _Still  # of tensors that stay
    flow: list[Any]  # what it does, to be compared with another recording
    tape: tape.Tape | Graph
    used: list[Tensor]  # the parameters that get gradients
    count: Any  # what the loss's mean is over: a number, None, or a tensor of the tape
    compiled: bool = False  # by torch
    rest: Graph | None = None  # on a GPU, what follows the gradients
    settings: list[Any] = field(default_factory=list)  # of the optimiser, as they are in `rest`
    quiet: bool = False  # it draws no random numbers, and writes to no buffer
    confirmed: bool = False  # a second batch went the same way
    replays: int = 0  # since it was last compared with an eager step


class Lane:
    """One training's way of making steps.

    Where the objective has `parts`, a list of the functions it is made of, `purity` reads those in its place.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Callable[..., tuple[Tensor, Any]],
        optimizer: torch.optim.Optimizer,
        *,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        autocast: Any = None,
        scaled: bool = False,
        compile: str = "auto",
        strict: bool = False,
        steps: int | None = None,
    ):
        """steps: how many are to come, where somebody knows."""
        self.net, self.objective, self.optimizer, self.penalty = net, objective, optimizer, penalty
        self.autocast = autocast if autocast is not None else contextlib.nullcontext()
        self.flat: flats.Flat | None = None
        self.words = ""  # why steps are eager, where they are
        self.keep: Callable[[], None] = lambda: None  # called before what changes generators or buffers
        self.compiled = ""  # how it went, where the net was to be compiled
        self.untouched = False  # nobody has changed what learns since the last step: said by who asks for the next one
        self._asked, self._strict = compile, strict
        self._planned = self._left = steps or 0  # steps to come; 0 where nobody knows
        self._compiles = not strict and compile != "off"  # on a GPU, where that pays
        self._compiled: compiling.Compiled | None = None
        self._recordings: dict[Any, _Recording] = {}
        self._sightings: dict[Any, int] = {}
        self._again = 0
        self._used: list[Tensor] | None = None  # the parameters that the last eager step gave a gradient
        self._epoch = -1
        self._places: list[int] = []  # where parameters and buffers were when a step was recorded
        self._guard = _Guard(net, optimizer, self._functions())
        self.parameters = self._guard.learning()
        self._flattens = not scaled
        elsewhere = next((p.device for p in self.parameters if p.device.type != "cpu"), None)
        self._device = "cpu" if elsewhere is None else elsewhere.type
        self._near = _NEAR if self._device in _CAPTURED and not strict else 0.0
        replaces = compile != "off" and not strict and elsewhere is None
        self._kernels: dict[Any, quicker.Kernel] = quicker.INSTEAD if replaces and quicker.concerns(net) else {}
        self._views: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._seen: set[Any] = set()  # operations that had much to do for such kernels in the last eager step
        self._small = 0  # examples: no batch up to this has a kernel that is worth replacing
        self._joined = False  # the gradients of the step lie in `flat.gradient`
        self._made: _Recording | None = None  # whose replay made the step
        self.recorded = compile != "off"
        if compile == "off":
            self.words = "compile is off"
        elif scaled:
            self._give_up("its loss is scaled for fp16")
        elif elsewhere is not None and elsewhere.type not in _CAPTURED:
            self._give_up(f"it runs on {elsewhere}")
        elif self._guard.reason:
            self._give_up(self._guard.reason)
        self._tries_layout = bool(self._kernels) and layouts.concerns(net)

    def gradients(self, batch: Batch) -> Gradients:
        """Loss and gradients of a batch. The gradients are in every parameter's `grad`, or missing where it has none."""
        impure = self._made is None and self._guard.reason  # an eager step, by code that may change anything
        if impure or not self.untouched:
            self._look_round()
        self.untouched = False
        self._left -= 1
        tensors = _tensors(batch) if self.recorded else None
        if tensors is None:
            self.keep()
            return self._eager(batch)
        key = (batch.known, *[(part.shape, part.dtype) for part in tensors])
        found = self._recordings.get(key)
        due = batch.epoch != self._epoch and found is not None and found.replays >= _CHECK
        if found is not None and found.confirmed and not due:
            if not found.quiet:
                self.keep()
            found.batch.take(tensors)
            found.replays += 1
            self._made = found
            return self._replayed(found)
        self.keep()
        if found is None and not self._worth_it(key):
            return self._eager(batch)
        self._epoch = batch.epoch
        return self._recorded(batch, tensors, key, found)

    @property
    def settled(self) -> bool:
        """Whether steps are made as they will be from here, as far as can be seen."""
        return not self.recorded or any(found.confirmed for found in self._recordings.values())

    def update(self, found: Tensor | None = None) -> None:
        """Apply the gradients as the optimiser does. found: a number on a GPU; where it is not 0, nothing happens, if the
        optimiser's kernels are fused."""
        if found is not None:
            of: Any = self.optimizer
            of.grad_scale, of.found_inf = None, found  # where torch's own update looks for it
        if self.flat is not None and self._joined:
            self.flat.update(found)
        else:
            self.optimizer.step()

    def follow(self, rest: Callable[[], Sequence[Tensor]]) -> None:
        """What follows the gradients of a step on a GPU, on tensors that stay: done, or captured once and replayed."""
        made, flat = self._made, self.flat
        if made is None or not made.confirmed or flat is None or not self._joined or not flat.prepare():
            rest()
            return
        if made.rest is None or made.settings != flat.settings:
            try:
                made.rest, made.settings = Graph(rest, warm=True), flat.settings
            except Exception as error:  # while it is captured nothing is computed, so nothing is half done
                self._give_up(_words(error))
                rest()
                return
        made.rest.replay()

    def clip(self, clip_value: float, clip_norm: float) -> None:
        """Limit the gradients, each or all together."""
        if self.flat is not None and self._joined:
            if clip_value:
                self.flat.gradient.clamp_(-clip_value, clip_value)
            if clip_norm and not self._strict:
                flats.clip_norm(self.flat.gradient, clip_norm)
                clip_norm = 0.0
            clip_value = 0.0
        if clip_value:
            nn.utils.clip_grad_value_(self.parameters, clip_value)
        if clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, clip_norm)

    def given(self) -> list[Tensor]:
        """The gradients of the step: one tensor, where they lie flat."""
        if self.flat is not None and self._joined:
            return [self.flat.gradient]
        return [p.grad for p in self.parameters if p.grad is not None]

    def forget(self) -> None:
        """No parameter holds a gradient: the next ones are added up from nothing."""
        self._look_round()
        self._drop()

    def close(self) -> None:
        """Give parameters, gradients and optimiser state memory of their own again."""
        if self._recordings and self.flat is None:
            for p in self.parameters:
                p.grad = None if p.grad is None else p.grad.clone()
        self._separate()

    def _separate(self) -> None:
        self._recordings.clear()  # they are of memory that is left here
        self._joined, self._made = False, None
        if self.flat is not None:
            self.flat.separate()
            self.flat = None

    def _look_round(self) -> None:
        """Has somebody changed the net, the optimiser or what the loss reads since the last step?"""
        if self._guard.changed(self.recorded):
            self._drop()
            self._separate()
            self._used = None
            self._guard = _Guard(self.net, self.optimizer, self._functions())
            self.parameters = self._guard.learning()
            self._again += 1
            if self.recorded and self._guard.reason:
                self._give_up(self._guard.reason)
            elif self.recorded and self._again > _AGAIN:
                self._give_up("what it reads is changed again and again")
        moved = self._recordings and self._guard.places() != self._places
        if moved or (self.flat is not None and not self.flat.intact()):  # somebody gave a parameter other memory
            self._separate()

    # The eager way

    def _drop(self) -> None:
        self._joined, self._made = False, None
        for p in self.parameters:
            p.grad = None

    def _eager(self, batch: Any) -> Gradients:
        """A step as PyTorch makes it; the first in which convolutions have much to do also says whether the net bears that
        they lay their numbers in another order."""
        if not self._tries_layout:
            return self._eagerly(batch)
        before, plain = _Kept(self._guard, ()), self._kernels
        self._kernels, self._views = plain | layouts.LAID, layouts.Reshaping
        try:
            found = self._eagerly(batch)
        except Exception:  # of the net's own, perhaps, which then comes out here
            before.restore()
            self._kernels, self._views, self._tries_layout = plain, contextlib.nullcontext, False
            return self._eagerly(batch)
        self._tries_layout = layouts.CONVOLUTION not in self._seen
        return found

    def _eagerly(self, batch: Any) -> Gradients:
        self._drop()
        mode = quicker.Quicker(self._kernels) if self._kernels and batch.count > self._small else None
        batch = batch.ready()
        with mode or contextlib.nullcontext():
            value, full, count = self._losses(batch)
            _backward(full)
        self._seen = mode.seen if mode is not None else set()
        if mode is not None and not mode.seen:
            self._small = batch.count
        used = [p for p in self.parameters if p.grad is not None]
        if self.flat is not None and not _all_the_same(self.flat.parameters, used):
            # Some get a gradient now and then: they grow old at different speed, and are updated one by one.
            self._separate()
            self._flattens = False
        self._used = used
        if self._lay_flat():
            self._join([p.grad for p in used])  # type: ignore[misc]
        return *_detached(value, full), count

    def _losses(self, batch: Any, autocast: Any = None) -> Gradients:
        """The loss, the loss with penalties, and what its mean is over; not detached. autocast: in place of the own."""
        with self._views(), self.autocast if autocast is None else autocast:
            value, count = self.objective(self.net, batch)
            return value, value + self.penalty(self.net) if self.penalty is not None else value, count

    def _lay_flat(self) -> bool:
        """Whether the parameters that get gradients lie flat; they are laid so the first time."""
        if self.flat is None and self._flattens and self._used:
            self._flattens = not flats.why_not(self.optimizer, self._used)
            if self._flattens:
                self.flat = flats.Flat(self.optimizer, self._used)
        return self.flat is not None

    def _join(self, gradients: list[Tensor]) -> None:
        """Copy gradients to where they lie flat, so that one operation clips or applies them all."""
        assert self.flat is not None
        if any(gradient.layout != torch.strided for gradient in gradients):
            return
        torch._foreach_copy_(self.flat.gradients, gradients)
        self._show(self.flat.gradients)
        self._joined = True

    def _show(self, gradients: Sequence[Tensor]) -> None:
        """Put gradients where everybody looks for them."""
        for p, gradient in zip(self._used or (), gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient

    # The recorded way

    def _functions(self) -> list[Callable[..., Any]]:
        parts = getattr(self.objective, "parts", None)
        return [*(parts if parts is not None else [self.objective]), *([self.penalty] if self.penalty else [])]

    def _give_up(self, why: str) -> None:
        if self._asked == "on":
            raise UsageError(f"compile is on, and this step cannot be recorded: {why}.", fix="compile=auto, or off")
        self.recorded, self.words = False, why
        self._recordings.clear()

    def _worth_it(self, key: Any) -> bool:
        """Whether batches of this shape are recorded: when they come for the second time, and not if all are different; of a
        further shape, such as that of the last batch of an epoch, if so many are to come that it pays."""
        times = self._sightings[key] = self._sightings.get(key, 0) + 1
        if len(self._sightings) > 64 and not self._recordings:
            self._give_up("its batches come in ever new shapes")
        often = _OFTEN if self._device in _CAPTURED and self._asked == "auto" else 2
        rare = times * self._left < _PAYS * (self._planned - self._left)  # as often as it came until now
        if self._recordings and self._asked == "auto" and self._planned and rare:
            return False
        return self.recorded and times >= often and self._used is not None and len(self._recordings) < _SHAPES

    def _recorded(self, batch: Batch, tensors: list[Tensor], key: Any, found: _Recording | None) -> Gradients:
        """An eager step, which is then made again: recorded, and replayed."""
        still = _still(batch) if found is None else found.batch
        still.take(tensors)
        before = _Kept(self._guard, still.tensors)
        used = self._used
        step = value, full, count = self._eager(batch)
        if not _all_the_same(used or [], self._used or []):
            self._give_up("not every batch gives gradients to the same parameters")
            return step
        gradients = [p.grad for p in self._used or () if p.grad is not None]
        wanted = [tensor.detach().clone() for tensor in _given(value, full, count, gradients)]
        after = _Kept(self._guard, still.tensors)
        try:
            before.restore()
            found = self._again_recorded(still, found)
            before.restore()
            self._replayed(found)
            self._compare(found, wanted, before, after)
        except Exception as error:
            after.restore()
            self._show_again(wanted[-len(gradients) :])
            if found is not None and found.compiled:
                self._compile_no_more(key, _words(error))
            else:
                self._give_up(_words(error))
            return step
        found.replays, self._places = 0, self._guard.places()
        self._recordings[key] = found
        if found.confirmed and not found.compiled and self._compiles and isinstance(found.tape, Graph):
            self._compile(key, found, wanted, before, after)
            after.restore()
            self._show_again(wanted[-len(gradients) :])
        return step

    def _compile(self, key: Any, found: _Recording, wanted: list[Tensor], before: _Kept, after: _Kept) -> None:
        """Have torch compile the net for batches like this one, where that was asked for or pays."""
        assert isinstance(found.tape, Graph)
        plain = found.tape.seconds()
        share = (self._sightings[key] + 1) / (self._planned - self._left)  # of the steps until now, this one included
        worth = self._left > 0 and compiling.pays(self._left * share * plain, len(found.flow))
        if not worth and (self._asked != "on" or share < _RARE):
            return
        began = time.perf_counter()
        found.tape.close()  # there may be no memory for both
        try:
            compiled = self._compiled = self._compiled or compiling.Compiled(self.net)

            def step() -> list[Tensor]:
                with compiled.in_place():
                    return _given(*self._differentiated(found.batch))

            before.restore()
            found.tape = Graph(step, self._places_of(wanted))
            found.compiled, found.rest = True, None
            before.restore()
            self._replayed(found)
            self._compare(found, wanted, before, after)
            seconds = found.tape.seconds()
            if self._asked != "on" and seconds > _QUICKER * plain:
                raise tape.Unrecordable(f"is no quicker: {_pace(seconds, plain)}")
        except Exception as error:
            self._compile_no_more(key, _words(error, "compiling"))
        else:
            took = time.perf_counter() - began
            self.compiled = f"the net was compiled in {took:.0f} s: {_pace(seconds, plain)}"

    def _compile_no_more(self, key: Any, why: str) -> None:
        """Forget a compiled step. The next batches of its shape are recorded again, from the net itself."""
        if self._asked == "on":
            raise UsageError(f"compile is on, and the compiled net is of no use: it {why}.", fix="compile=auto, or off")
        self._compiles, self._compiled = False, None
        self.compiled = f"the net is not compiled: it {why}"
        self._recordings.pop(key, None)

    def _again_recorded(self, still: _Still, found: _Recording | None) -> _Recording:
        operations, (value, full, count, gradients) = tape.record(
            lambda: self._differentiated(still), {of: kernel.run for of, kernel in self._kernels.items()}, self._device
        )
        given = [p for p, gradient in zip(self.parameters, gradients, strict=True) if gradient is not None]
        if not _all_the_same(given, self._used or []):
            raise tape.Unrecordable("gives gradients to other parameters when it is recorded")
        known, written = self._known(still), _written(operations)
        if written & set(map(tape.storage, still.tensors)):
            raise tape.Unrecordable("writes into its batch")
        if written - known - {key for operation in operations for key in operation.made}:
            raise tape.Unrecordable("writes to a tensor that is no buffer of the net")
        flow = tape.flow(operations, known)
        if found is None:
            return self._tape(still, flow, operations, value, full, count, gradients)
        if flow != found.flow:
            raise tape.Unrecordable("takes another way for another batch of one shape")
        found.confirmed = True
        return found

    def _compare(self, found: _Recording, wanted: Sequence[Tensor], before: _Kept, after: _Kept) -> None:
        """Raises Unrecordable where a replay differs from the eager step, with the name of what differs first."""
        given, first = found.tape.given, len(wanted) - len(found.used)
        if found.compiled:
            near, what = _COMPILED, "is less exact when it is compiled"
            held = after.holds(near)
            before.restore()
            with machine.full_precision():
                exact = _given(*self._differentiated(found.batch, torch.autocast(self._device, enabled=False)))
            after.restore()
            differs = compiling.differs(given, wanted, exact, first)
        else:
            near, what = self._near, "gives other bits when it is replayed"
            held = after.holds(near)
            pairs = enumerate(zip(given, wanted, strict=True))
            differs = next((number for number, (a, b) in pairs if not _same(a, b, near)), None)
        if differs is not None or not held:
            where = "a buffer or a generator" if differs is None else self._name(differs, first)
            raise tape.Unrecordable(f"{what}, in {where}")

    def _name(self, number: int, first: int) -> str:
        """Of what a step gives, of which gradients are from the first on."""
        if number < first:
            return ("the loss", "the loss with its penalties", "what the loss is a mean of")[number]
        names = {id(p): f"the gradient of {name}" for name, p in self.net.named_parameters()}
        return names.get(id((self._used or [])[number - first]), "the gradient of a parameter outside the net")

    def _show_again(self, gradients: list[Tensor]) -> None:
        """The gradients of an eager step, which a replay has written over."""
        if self._joined and self.flat is not None:
            torch._foreach_copy_(self.flat.gradients, gradients)
        else:
            self._show(gradients)

    def _differentiated(
        self, still: _Still, autocast: Any = None
    ) -> tuple[Tensor, Tensor, Any, Sequence[Tensor | None]]:
        value, full, count = self._losses(still.ready(), autocast)
        gradients = torch.autograd.grad(full, self.parameters, allow_unused=True)
        return *_detached(value, full), count, gradients  # nothing of autograd's is left for a capture to meet

    def _known(self, still: _Still) -> set[int]:
        """Memory that stays where it is, whatever is in it."""
        prepare = still.prepare if isinstance(still.prepare, nn.Module) else nn.Module()
        lasting = [*self._guard.parameters, *self._guard.lasting, *prepare.parameters(), *prepare.buffers()]
        return set(map(tape.storage, (*lasting, *still.tensors)))

    def _tape(
        self, still: _Still, flow: list[Any], operations: list[Any], value: Tensor, full: Tensor, count: Any,
        gradients: Sequence[Tensor | None],
    ) -> _Recording:  # fmt: skip
        kept = _given(value, full, count, gradients)
        places = self._places_of(kept)
        made: tape.Tape | Graph
        if self._device in _CAPTURED:
            made = Graph(lambda: _given(*self._differentiated(still)), places)
        else:
            made = tape.Tape(rewrites.rewritten(operations, set(map(tape.storage, kept))), kept, places)
        quiet = self._device == "cpu" and not self._guard.lasting and not any(map(tape.draws, operations))
        return _Recording(still, flow, made, self._used or [], count, quiet=quiet)

    def _places_of(self, given: Sequence[Tensor]) -> dict[int, Tensor]:
        """Where the gradients among what a step gives lie flat, by their number."""
        gradients = self.flat.gradients if self.flat is not None else []
        return dict(enumerate(gradients, len(given) - len(gradients)))

    def _replayed(self, found: _Recording) -> Gradients:
        found.tape.replay()
        given = found.tape.given
        value, full = given[0], given[1]
        count = given[2] if isinstance(found.count, Tensor) else found.count
        self._used = found.used
        self._show(self.flat.gradients if self.flat is not None else given[-len(found.used) :])
        self._joined = self.flat is not None
        return value, full, count


class _Guard:
    """What of a net, its loss and its optimiser a recording has seen as plain values, and who needs a gradient."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, functions: Sequence[Any]):
        self._net, self._optimizer = net, optimizer
        self._reading = purity.Reading(net, functions)
        self.reason = self._reading.reason
        modules = list(dict.fromkeys([*net.modules(), *self._reading.modules]))
        own = [p for module in modules for p in module._parameters.values() if p is not None]
        self.parameters = list(dict.fromkeys([*own, *self._held()]))
        buffers = [b for module in modules for b in module._buffers.values() if b is not None]
        self.lasting = list(dict.fromkeys([*buffers, *self._reading.tensors]))  # what a step may write to
        held = [vars(module) for module in modules]  # of a module that torch.jit.trace made, its tables lie elsewhere
        self._parts = [own[name] for own in held for name in ("_parameters", "_modules") if name in own]
        self._tables = [*held, *(own["_buffers"] for own in held if "_buffers" in own)]
        self._hooks = [own[name] for own in held for name in purity.HOOKS if name in own] + purity.GLOBAL_HOOKS
        self._needs = [p.requires_grad for p in self.parameters]
        self._optimized, self._hooked = self._held(), self._with_hooks()
        self._had = [dict(table) for table in self._parts]
        self._before, self._values = [dict(table) for table in self._tables], self._reading.values()

    def learning(self) -> list[Tensor]:
        """The parameters that need a gradient: those of the net, and others that the optimiser has."""
        wanted = dict.fromkeys([*self._net.parameters(), *self._held()])
        return [p for p in wanted if p.requires_grad]

    def changed(self, recorded: bool) -> bool:
        """Whether somebody has changed what learns; or, where steps are recorded, anything that they have read."""
        try:  # equal are the same objects, and equal plain values
            if self._parts != self._had or self._held() != self._optimized:
                return True
            if [p.requires_grad for p in self.parameters] != self._needs:
                return True
            if not recorded:
                return False
            if self._tables != self._before or self._reading.values() != self._values:
                return True
        except (RuntimeError, ValueError):  # a tensor, or an array, in the place of another
            return True
        return self._with_hooks() != self._hooked

    def places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.parameters, *self.lasting)]

    def _held(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _with_hooks(self) -> int:
        return sum(map(len, self._hooks)) + sum(map(purity.hooked, self.parameters))


class _Kept:
    """What a step changes beside gradients, as it was: buffers (running means), torch's generators."""

    def __init__(self, guard: _Guard, others: Sequence[Tensor]):
        self._tensors = [*guard.lasting, *others]
        self._values = [tensor.detach().clone() for tensor in self._tensors]
        gpus = {t.device for t in (*guard.parameters, *self._tensors) if t.device.type == "cuda"}
        self._gpus = sorted(gpus, key=str)
        self._states = self._generators()

    def restore(self) -> None:
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._gpus, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)

    def holds(self, near: float = 0.0) -> bool:
        """Whether all is as it was kept."""
        values = zip(self._tensors, self._values, strict=True)
        states = zip(self._generators(), self._states, strict=True)
        return all(_same(a, b, near) for a, b in values) and all(torch.equal(a, b) for a, b in states)

    def _generators(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._gpus)]


def _backward(loss: Tensor) -> None:
    """`loss.backward()`. What that looks at before it begins is known of such a loss, and takes 5 % of a small net's step."""
    plain = type(loss) is Tensor and loss.ndim == 0 and loss.requires_grad and loss.is_floating_point()
    if plain and _ENGINE is not None:
        _ENGINE.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    else:  # among others one that needs no gradient, which torch has words for
        loss.backward()


def _detached(value: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the loss with penalties: the same where there are none."""
    found = value.detach()
    return found, found if full is value else full.detach()


def _written(operations: Sequence[tape.Operation]) -> set[int]:
    """Memory that operations write to beside what they return."""
    found: set[int] = set()
    for operation in operations:
        arguments = operation.function._schema.arguments
        given = {a.name: value for a, value in zip(arguments, operation.arguments, strict=False)} | operation.keywords
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = given.get(argument.name)
                parts = value if isinstance(value, (list, tuple)) else [value]
                found.update(tape.storage(part) for part in parts if isinstance(part, Tensor))
    return found


def _words(error: Exception, doing: str = "recording") -> str:
    if isinstance(error, tape.Unrecordable):
        return str(error)
    first = (str(error) or type(error).__name__).strip().splitlines()[0]
    return f"{doing} it fails ({type(error).__name__}: {first})"


def _pace(seconds: float, before: float) -> str:
    now, then = (f"{1000 * s:.3g}" if s < 0.9995 else f"{1000 * s:,.0f}" for s in (seconds, before))
    return f"{now} ms a step, {then} before"


def _all_the_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _tensors(batch: Batch) -> list[Tensor] | None:
    """All that a batch holds, where those are tensors; None where they are not."""
    parts = [*batch.inputs, *(() if batch.truth is None else (batch.truth,))]
    return parts if all(isinstance(part, Tensor) for part in parts) else None


def _given(value: Tensor, full: Tensor, count: Any, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """What a step gives, in the order in which a tape gives it."""
    means = [count] if isinstance(count, Tensor) else []
    return [value, full, *means, *(gradient for gradient in gradients if gradient is not None)]


def _same(a: Tensor, b: Tensor, near: float = 0.0) -> bool:
    """To the bit, NaN included; or, of numbers with a fraction, as near as this part of the largest."""
    if torch.equal(a, b):
        return True
    alike = (a == b) | ((a != a) & (b != b))
    if near and a.is_floating_point():
        alike |= (a - b).abs() <= near * b.abs().nan_to_num().max()
    return bool(alike.all())
