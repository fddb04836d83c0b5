"""How a step gets its gradients and is applied: as PyTorch does it, or replayed from a recording of itself.

In: a net, an objective, an optimiser. Out: a `Lane`, whose `gradients(batch)` gives the loss and `update()` applies it; the
engine calls both for every step. Two ways, with the same bits:

    eager      forward, autograd's backward, the optimiser's update: what the loop by hand does
    recorded   the step's kernels on memory that stays (`tape`), parameters and optimiser state laid flat (`flat`)

`compile="auto"` records where it can, "on" says so as an error where it cannot, "off" never does. A step is recorded when a
batch of its shape comes for the second time; it counts, and its replay is compared with it, bit by bit, loss, gradients,
buffers and generator. The next batch of that shape is recorded too, and must have gone the same way; so is the first of
every epoch. Whatever speaks against it, at any time, sends the training back to eager steps, and `words` say why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamina import flat as flats
from lamina import masks, purity, tape
from lamina.batches.batch import Batch, prepared
from lamina.errors import UsageError

Gradients = tuple[Tensor, Tensor, Any]  # the loss, the loss with penalties (both 0-d, detached), the loss's count

_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)
_SHAPES = 4  # recordings at most: data that always come in other shapes are not for recording
_CHECK = 500  # replays after which the first step of an epoch is compared with an eager one
_AGAIN = 8  # new recordings at most, because the net was changed from outside


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
    tape: tape.Tape
    count: Any  # what the loss's mean is over: a number, None, or a tensor of the tape
    places: list[Tensor]  # of gradients that no kernel writes to their place
    strays: list[Tensor]
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
    ):
        self.net, self.objective, self.optimizer, self.penalty = net, objective, optimizer, penalty
        self.autocast = autocast if autocast is not None else contextlib.nullcontext()
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.flat: flats.Flat | None = None
        self.words = ""  # why steps are eager, where they are
        self._asked, self._strict = compile, strict
        self._recordings: dict[Any, _Recording] = {}
        self._sightings: dict[Any, int] = {}
        self._again = 0
        self._used: list[bool] | None = None  # which parameters the last eager step gave a gradient
        self._flat_used: list[bool] | None = None  # and which of them lie flat
        self._epoch = -1
        self._guard = _Guard(net, self._functions())
        self._flattens = not scaled
        self._fast = compile != "off" and not strict and any(isinstance(m, _DROPOUTS) for m in net.modules())
        self._small = 0  # examples: no batch up to this has a mask that is worth drawing fast
        self._joined = False  # the gradients of the step lie in `flat.gradient`
        self.recorded = compile != "off" and not scaled
        if scaled:
            self.words = "the loss is scaled for fp16"
        elif compile == "off":
            self.words = "compile is off"
        elif self.parameters[0].device.type != "cpu":
            self._give_up(f"it runs on {self.parameters[0].device}")
        elif found := purity.reason(net, self._functions()):
            self._give_up(found)

    def gradients(self, batch: Batch) -> Gradients:
        """Loss and gradients of a batch. The gradients are in every parameter's `grad`, or missing where it has none."""
        if self.recorded and self._guard.changed():
            self._recordings.clear()
            self._again += 1
            self._guard = _Guard(self.net, self._functions())
            if self._again > _AGAIN:
                self._give_up("the net is changed from outside again and again")
        tensors = _tensors(batch) if self.recorded else None
        if tensors is None:
            return self._eager(batch)
        if self.flat is not None and not self.flat.intact():  # somebody gave a parameter other memory
            self._recordings.clear()
            self.flat = None  # it is laid again
        key = (batch.known, *[(part.shape, part.dtype) for part in tensors])
        found = self._recordings.get(key)
        if found is None and not self._worth_it(key):
            return self._eager(batch)
        due = batch.epoch != self._epoch and found is not None and found.replays >= _CHECK
        if found is None or not found.confirmed or due:
            self._epoch = batch.epoch
            return self._recorded(batch, tensors, key, found)
        for stays, part in zip(found.batch.tensors, tensors, strict=True):
            if stays is not part:
                stays.copy_(part)
        found.replays += 1
        return self._replayed(found)

    def update(self) -> None:
        """Apply the gradients as the optimiser does."""
        if self.flat is not None and self._joined:
            self.flat.update()
        else:
            self.optimizer.step()

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

    def forget(self) -> None:
        """No parameter holds a gradient: the next ones are added up from nothing."""
        self._joined = False
        for p in self.parameters:
            p.grad = None

    def close(self) -> None:
        """Give parameters and optimiser state memory of their own again."""
        self._recordings.clear()
        self._joined = False
        if self.flat is not None:
            self.flat.separate()
            self.flat = None

    # The eager way

    def _eager(self, batch: Any) -> Gradients:
        self.forget()
        drawing = masks.Fast() if self._fast and batch.count > self._small else None
        batch = batch.ready()
        with self.autocast, drawing or contextlib.nullcontext():
            value, count = self.objective(self.net, batch)
            full = value + self.penalty(self.net) if self.penalty is not None else value
        full.backward()
        if drawing is not None and not drawing.seen:
            self._small = batch.count
        gradients = [p.grad for p in self.parameters]
        used = [gradient is not None for gradient in gradients]
        self._used = used
        if self._lay_flat() and used == self._flat_used:
            self._join([gradient for gradient in gradients if gradient is not None])
        return value.detach(), full.detach(), count

    def _lay_flat(self) -> bool:
        """Whether the parameters that get gradients lie flat; they are laid so the first time."""
        if self.flat is None and self._flattens:
            used = self._with_gradients()
            self._flattens = bool(used) and not flats.why_not(self.optimizer, used)
            if self._flattens:
                self.flat, self._flat_used = flats.Flat(self.optimizer, used), self._used
        return self.flat is not None

    def _with_gradients(self) -> list[Tensor]:
        return [p for p, wanted in zip(self.parameters, self._used or (), strict=False) if wanted]

    def _join(self, gradients: list[Tensor]) -> None:
        """Copy gradients to where they lie flat, so that one operation clips or applies them all."""
        if self.flat is None or not self.flat.intact():
            return
        if any(gradient.layout != torch.strided for gradient in gradients):
            return
        torch._foreach_copy_(self.flat.gradients, gradients)
        for p, gradient in zip(self.flat.parameters, self.flat.gradients, strict=True):
            p.grad = gradient
        self._joined = True

    # The recorded way

    def _functions(self) -> list[Callable[..., Any]]:
        parts = getattr(self.objective, "parts", None)
        return [*(parts if parts is not None else [self.objective]), *([self.penalty] if self.penalty else [])]

    def _give_up(self, why: str) -> None:
        if self._asked == "on":
            raise UsageError(f"compile is on, and this step cannot be recorded: {why}.", fix="compile=auto, or off")
        self.recorded, self.words = False, why
        self.close()

    def _worth_it(self, key: Any) -> bool:
        """Whether batches of this shape are recorded: when they come for the second time, and not if all are different."""
        times = self._sightings[key] = self._sightings.get(key, 0) + 1
        if len(self._sightings) > 64 and not self._recordings:
            self._give_up("its batches come in ever new shapes")
        return self.recorded and times >= 2 and self._used is not None and len(self._recordings) < _SHAPES

    def _recorded(self, batch: Batch, tensors: list[Tensor], key: Any, found: _Recording | None) -> Gradients:
        """A step that is recorded while it is made, and compared with its own replay."""
        self._lay_flat()
        still = _still(batch) if found is None else found.batch
        for stays, part in zip(still.tensors, tensors, strict=True):
            if stays is not part:
                stays.copy_(part)
        before = _Kept(self.net)
        try:
            operations, (value, full, count, gradients) = tape.record(
                lambda: self._differentiated(still), {masks.DRAW: masks.fill} if self._fast else None
            )
            if [gradient is not None for gradient in gradients] != self._used:
                raise tape.Unrecordable("gives gradients to other parameters than before")
            flow = tape.flow(operations, self._known(still))
            if found is not None and flow != found.flow:
                raise tape.Unrecordable("takes another way for another batch of one shape")
        except tape.Unrecordable as why:
            before.restore()
            self._give_up(str(why))
            return self._eager(batch)
        after = _Kept(self.net)
        if found is None:
            found = self._recordings[key] = self._tape(still, flow, operations, value, full, count, gradients)
        else:
            found.confirmed = True
        found.replays = 0
        wanted = [
            value,
            full,
            *([count] if isinstance(count, Tensor) else []),
            *(g for g in gradients if g is not None),
        ]
        wanted = [tensor.detach().clone() for tensor in wanted]
        before.restore()
        given = self._replayed(found)
        if not _same(found.tape.given, wanted) or not after.holds():
            after.restore()
            self._give_up("its replay gives other bits than itself")
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient
            return value.detach(), full.detach(), count
        return given

    def _differentiated(self, still: _Still) -> tuple[Tensor, Tensor, Any, Sequence[Tensor | None]]:
        still = still.ready()
        with self.autocast:
            value, count = self.objective(self.net, still)
            full = value + self.penalty(self.net) if self.penalty is not None else value
        return value, full, count, torch.autograd.grad(full, self.parameters, allow_unused=True)

    def _known(self, still: _Still) -> set[int]:
        """Memory that stays where it is, whatever is in it."""
        modules: list[nn.Module] = [self.net, *(part for part in self._functions() if isinstance(part, nn.Module))]
        modules += [still.prepare] if isinstance(still.prepare, nn.Module) else []
        lasting = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        return {tensor.untyped_storage()._cdata for tensor in (*lasting, *still.tensors)}

    def _tape(
        self, still: _Still, flow: list[Any], operations: list[Any], value: Tensor, full: Tensor, count: Any,
        gradients: Sequence[Tensor | None],
    ) -> _Recording:  # fmt: skip
        kept = [value, full, *([count] if isinstance(count, Tensor) else [])]
        first = len(kept)
        kept += [gradient for gradient in gradients if gradient is not None]
        places = self.flat.gradients if self.flat is not None else []
        fitting = {
            first + k: place
            for k, (place, gradient) in enumerate(zip(places, kept[first:], strict=False))
            if gradient.stride() == place.stride() and gradient.untyped_storage().nbytes() == place.nbytes
        }
        made = tape.Tape(operations, kept, fitting)
        strays = [
            (place, given)
            for place, given in zip(places, made.given[first:], strict=False)
            if given.data_ptr() != place.data_ptr()
        ]
        return _Recording(still, flow, made, count, [place for place, _ in strays], [given for _, given in strays])

    def _replayed(self, found: _Recording) -> Gradients:
        found.tape.replay()
        given = found.tape.given
        value, full = given[0], given[1]
        count = given[2] if isinstance(found.count, Tensor) else found.count
        if found.strays:
            torch._foreach_copy_(found.places, found.strays)
        if not self._joined:
            used = self._with_gradients()
            own = self.flat.gradients if self.flat is not None else given[-len(used) :]
            for p, gradient in zip(used, own, strict=True):
                p.grad = gradient
            self._joined = self.flat is not None
        return value, full, count


class _Kept:
    """What a step changes beside gradients: buffers (running means), and torch's generator."""

    def __init__(self, net: nn.Module):
        self._net = net
        self._generator = torch.get_rng_state()
        self._buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def restore(self) -> None:
        torch.set_rng_state(self._generator)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)

    def holds(self) -> bool:
        """Whether all is as it was kept."""
        same = _same([buffer for buffer, _ in self._buffers], [value for _, value in self._buffers])
        return same and torch.equal(self._generator, torch.get_rng_state())


class _Guard:
    """What of a net a recording has seen as plain values: its modules' attributes, and who needs a gradient."""

    def __init__(self, net: nn.Module, functions: Sequence[Any]):
        modules = [m for part in (net, *functions) if isinstance(part, nn.Module) for m in part.modules()]
        self._parameters = [p for module in modules for p in module._parameters.values() if p is not None]
        self._needs = [p.requires_grad for p in self._parameters]
        tables = ("_parameters", "_buffers", "_modules")
        self._now = [module.__dict__ for module in modules]
        self._now += [module.__dict__[name] for module in modules for name in tables]
        self._before = [dict(table) for table in self._now]

    def changed(self) -> bool:
        try:  # equal are the same objects, and equal plain values
            if self._now != self._before:
                return True
        except (RuntimeError, ValueError):  # a tensor, or an array, in the place of another
            return True
        return [p.requires_grad for p in self._parameters] != self._needs


def _tensors(batch: Batch) -> list[Tensor] | None:
    """All that a batch holds, where those are tensors; None where they are not."""
    parts = [*batch.inputs, *(() if batch.truth is None else (batch.truth,))]
    return parts if all(isinstance(part, Tensor) for part in parts) else None


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """To the bit, NaN included."""
    return all(
        torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in zip(some, others, strict=True)
    )
