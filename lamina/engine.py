"""The loop.

In: a net, batches, a loss, an optimiser. Out: a generator that yields a `Progress` after every optimiser step. It owns
the order inside a step (batch, loss, backward, clip, update); the caller's `for` body owns everything between steps. So
there are no events and no hooks, and what changes the mathematics stands at a visible place: an argument here, a wrapper
round the batches, a term of the loss.

    for progress in lamina.learn(net, batches, nn.CrossEntropyLoss(), optimizer, epochs=10):
        if progress.epoch_end:
            print(progress.epoch, progress.mean_loss)

Nothing here knows what is learned: pictures, tokens and games come as batches and an objective.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lamina import devices, divergence, losses, optimizers, pieces
from lamina.batches import Batch, Batches, RaggedBatches, walkable
from lamina.errors import DataError, Diverged, UsageError, out_of_memory
from lamina.lanes import Lane
from lamina.ondevice import OnDevice
from lamina.state import LOOK, TrainState, all_generators, set_all_generators

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Any]]  # -> 0-d loss, count of its mean (None: a sum)

_LEAST_SCALE = 2.0**-10  # of a loss in fp16, which begins at 2^16 and is halved where a gradient overflows


class Progress:
    """Where learning is, after a step. Reading `loss` or `mean_loss` waits for the device; nothing else does."""

    def __init__(self, state: TrainState, epochs: int | None, batches: int | None, steps: int | None):
        self.state, self.net, self.optimizer = state, state.net, state.optimizer
        self.epochs, self.batches, self.steps = epochs, batches, steps
        self.epoch = 0  # counted from 0
        self.batch = 0  # within the epoch, counted from 0
        self.epoch_end = False
        self.eager = ""  # at the end of an epoch: why steps are not recorded
        self.compiled = ""  # then too: how it went, where torch was to compile the net
        self.scores: dict[str, float] = {}  # filled by the caller, after validation
        self.untouched = False  # set by who knows that since this step nobody has changed net, loss or optimiser
        self.incident: dict[
            str, Any
        ] = {}  # of this step: `skipped`, the error that would have been raised; `most`, `words`
        self._batch: Batch | None = None
        self._loss: Tensor | None = None
        self._near: float | None = None  # the same, where it was read
        self._began = time.monotonic()
        self._before = state.seconds

    @property
    def step(self) -> int:
        """Optimiser steps done, since the beginning of the training."""
        return self.state.step

    @property
    def examples(self) -> int:
        return self.state.examples

    @property
    def batch_data(self) -> Batch | None:
        """The last micro-batch of the step. Yours to keep: where the next one is cut into the same memory, a copy."""
        batch = self._batch
        if batch is None or not batch.lasting:
            return batch if batch is None else batch.ready()
        truth = None if batch.truth is None else batch.truth.clone()
        inputs = tuple(part.clone() for part in batch.inputs)
        return replace(batch, inputs=inputs, truth=truth, lasting=False).ready()

    @property
    def loss(self) -> float:
        """Of this step, penalties included."""
        if self._near is not None:
            return self._near
        return float("nan") if self._loss is None else float(self._loss)

    @property
    def loss_is_near(self) -> bool:
        """Whether reading the loss of this step waits for nothing."""
        return self._near is not None or (self._loss is not None and _is_near(self._loss))

    @property
    def mean_loss(self) -> float:
        """Of this epoch so far, penalties left out: over examples, or over what the loss's own mean is taken over."""
        total, count = self.state.loss_sum, self.state.loss_count
        return float("nan") if total is None or not count else float(total) / float(count)

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def seconds(self) -> float:
        """Of learning, earlier processes of a resumed run included."""
        return self._before + time.monotonic() - self._began

    def __repr__(self) -> str:
        return f"Progress(epoch={self.epoch}, batch={self.batch}, step={self.step})"


def supervised(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The objective of ordinary work: a loss of the net's output and the truth."""

    def objective(net: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        if batch.truth is None:
            raise UsageError("The batches hold inputs without answers.", expected="(x, y)", fix="learn(objective=...)")
        output = net(*batch.inputs)
        return loss(output, batch.truth), losses.count(loss, output, batch.truth, batch.count, known=batch.known)

    objective.parts = [loss]  # type: ignore[attr-defined]
    return objective


def learn(
    net: nn.Module,
    batches: Any,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    epochs: int | None = 1,
    steps: int | None = None,
    objective: Objective | None = None,
    schedule: Callable[[int], float] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    clip_norm: float = 0.0,
    clip_value: float = 0.0,
    accumulate: int = 1,
    precision: str = "fp32",
    ema: Any = None,
    skips: int = 0,
    compile: str = "auto",
    strict: bool = False,
    state: TrainState | None = None,
    lane: Lane | None = None,
) -> Iterator[Progress]:
    """Train a net; yields a `Progress` after every optimiser step.

    batches: `lamina.Batches`, a DataLoader, a Dataset, or any iterable of (x, y) that can be walked once an epoch.
    loss(output, truth) -> 0-d; or, for anything else, `objective(net, batch) -> (0-d loss, count its mean is over)`,
    where a count of None stands for a sum. steps: so many, instead of epochs; neither (epochs=None): until you break.
    schedule(step) -> factor of each parameter group's own rate. penalty(net) -> 0-d, added to the loss of a step.
    clip_norm, clip_value: of all gradients together, of each; 0 for none. accumulate: batches a step, weighted by their
    counts, so that the step equals that of the big batch; the last window of an epoch is as short as it comes.
    precision: fp32, bf16 or fp16 (with loss scaling). ema: `torch.optim.swa_utils.AveragedModel`, updated after each step.
    compile: "auto" replays a recording of the step where that gives the same bits, and on a GPU has torch compile a net
    where that pays; "on" insists on both, "off" does neither (see `lanes`). strict: no other order of sums than that of
    the plain loop, which matters to clip_norm.
    state: a `TrainState` to go on from; without it learning starts from the beginning.
    lane: how steps are made, where that was decided before; else it is decided here.

    While learning goes on parameters may lie in one tensor; each has its own memory again when it ends.

    The net is put into training mode if it is not; submodules of a net in training mode stay as you set them (a frozen
    BatchNorm). After your loop body called `net.eval()`, every module goes back to the mode it had.

    A loss or a gradient that is NaN or infinite never reaches the weights. It raises `Diverged`, naming layer and
    examples; with `skips` only where more steps than that in a row are so, and until then the step is left out, its
    batch is used up, and `progress.incident["skipped"]` is that error. On a GPU the optimiser's fused kernel leaves the
    step out, and after the first 32 steps the host hears of it within 32; other optimisers wait for the GPU in each step.

    Where a batch does not fit into memory the step is made again in halves, with the same random numbers and the same
    gradients but for roundings, as are all that follow; a `RuntimeWarning` says so, and `progress.incident`.
    """
    if objective is None:
        if loss is None:
            raise UsageError(
                "learn() was given neither a loss nor an objective.", expected="learn(net, batches, loss, ...)"
            )
        objective = supervised(loss)
    if accumulate < 1:
        raise UsageError(f"accumulate is {accumulate}.", expected="1 or more batches a step")
    if accumulate > 1 and compile == "on":
        raise UsageError(
            "compile is on, and gradients of several batches are added up eagerly.", fix="accumulate=1, or compile=auto"
        )
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError(
            f"The net {type(net).__name__} has no parameters to learn.",
            expected="an nn.Module with parameters that require gradients",
            fix="make layers attributes of the module (self.fc1 = ...), lists of layers an nn.ModuleList",
        )
    if state is None:
        if optimizer is None:
            raise UsageError("learn() was given no optimizer.", fix="torch.optim.Adam(net.parameters(), lr=1e-3)")
        state = TrainState(net, optimizer)
    optimizer = state.optimizer
    optimizers.check_step(optimizer)
    schedule = state.schedule = schedule if schedule is not None else state.schedule
    ema = state.ema = ema if ema is not None else state.ema
    epochs = epochs if steps is None else None
    device = parameters[0].device
    batches = walkable(batches, device)
    state.batches = batches
    per_epoch = _length(batches)
    per_epoch_steps = None if per_epoch is None else -(-per_epoch // accumulate)
    planned = steps if steps is not None else (epochs * per_epoch_steps if epochs and per_epoch_steps else None)
    if schedule is not None:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
    autocast = devices.autocast(device, precision)
    scaler = state.scaler = state.scaler or devices.scaler(device, precision)
    progress = Progress(state, epochs, per_epoch, planned)
    near = _is_near(parameters[0])
    exact = per_epoch if getattr(batches, "exact", True) else None
    if not net.training:
        net.train()
    modules = list(net.modules())
    state.loss_sum = _sum_of_losses(near, device, 0.0 if state.loss_sum is None else float(state.loss_sum))
    if lane is None:
        left = None if planned is None else planned - state.step
        lane = Lane(net, objective, optimizer, penalty=penalty, autocast=autocast, scaled=scaler is not None,
                    compile=compile, strict=strict, steps=left)  # fmt: skip
    if accumulate == 1 and scaler is None and exact is not None and hasattr(batches, "reuse"):  # none is read ahead
        batches.reuse = True
    before = _Before(net, device)
    lane.keep = before.keep
    looked_at = scaler is None
    masked = looked_at and not near and all(group.get("fused") for group in optimizer.param_groups)
    there = OnDevice(state, lane, before.put_back, clip_value, clip_norm) if masked else None
    fresh = True  # an optimiser that makes its state in a step that it leaves out would keep garbage: that one is asked about

    try:
        while (epochs is None or state.epoch < epochs) and (steps is None or state.step < steps):
            if state.batch == 0:
                if there is None:
                    state.loss_sum, state.loss_count = _sum_of_losses(near, device), 0
                else:
                    there.begin()
            epoch, began = state.epoch, state.step
            for window, last in _windows(batches.epoch(state.epoch, state.batch), accumulate, exact, state.batch):
                # The rate of this step.
                if schedule is not None:
                    factor = schedule(state.step)
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * factor

                # Forward and backward.
                before.forget()
                most = state.most
                step, parts = _made_in_pieces(window, lane, scaler, state, before)
                progress.incident = {} if state.most == most else _in_pieces(state.most, window, net)

                # What is not finite goes no further. Asking would wait for a GPU, which is told to leave such a step out.
                asked = looked_at and (there is None or fresh)
                if step.bad is not None or (asked and not divergence.finite(step.whole, lane.given())):
                    state.skipped += 1
                    state.in_row += 1
                    error = _diverged(step, parts, lane, before, state)
                    if state.in_row > skips:
                        raise error
                    progress.incident["skipped"] = error
                    before.put_back()
                    lane.forget()

                # Clip and update.
                elif there is not None:
                    there.end(step.whole, step.parts)
                    fresh = False
                    if ema is not None:
                        ema.update_parameters(net)
                    due = last or state.step < state.watched or state.step % LOOK == 0
                    worst, ago = there.told() if due else (0, 0)
                    if worst:
                        state.watched = state.step + LOOK
                        was = _cut_again(batches, state, ago * accumulate, len(window)) if ago else parts
                        error = _diverged(step, was, lane, before, state, ago)
                        if worst > skips:
                            raise error
                        progress.incident["skipped"] = error
                else:
                    _add_up(state, step)
                    if scaler is not None and (clip_norm or clip_value):
                        scaler.unscale_(optimizer)
                    lane.clip(clip_value, clip_norm)
                    if scaler is not None:
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        lane.update()
                        state.in_row = 0
                    if ema is not None:
                        ema.update_parameters(net)

                # The cursor points to the next batch before anybody can look, so that saving here is exact.
                progress.epoch, progress.batch, progress.epoch_end = state.epoch, state.batch + len(window) - 1, last
                progress._batch, progress._loss, progress._near = window[-1], step.whole, step.near
                state.examples += sum(batch.count for batch in window)
                state.step += 1
                state.batch += len(window)
                if last:
                    state.epoch, state.batch = state.epoch + 1, 0
                    progress.scores, progress.eager, progress.compiled = {}, lane.words, lane.compiled
                    if scaler is not None and scaler.get_scale() < _LEAST_SCALE:
                        raise Diverged(
                            f"Gradients in fp16 overflow whatever their scale, which has come down to {scaler.get_scale():g}.",
                            fix="precision bf16 or fp32, a lower learning rate",
                        )
                state.seconds = progress.seconds
                modes = state.modes = [module.training for module in modules]
                yield progress
                lane.untouched, progress.untouched = progress.untouched, False
                if not net.training:  # the caller has evaluated: every module goes back to the mode it had
                    for module, mode in zip(modules, modes, strict=True):
                        module.training = mode
                if steps is not None and state.step >= steps:
                    return
            if state.epoch == epoch:  # the epoch was shorter than its len()
                if state.step == began and state.batch == 0:
                    raise DataError(
                        f"Epoch {epoch + 1} gave no batch.", expected="batches that can be walked once an epoch"
                    )
                state.epoch, state.batch = epoch + 1, 0
    finally:
        lane.close()
        if there is not None:
            for name in ("grad_scale", "found_inf"):  # what the optimiser was told
                vars(optimizer).pop(name, None)


class _Before:
    """What making a step changes before it is applied, as it was: buffers (running means) and torch's generators.

    A buffer of more than a million numbers, or a sparse one, is a table rather than a mean, and is not kept. Nor are
    python's and numpy's generators, from which a `forward` should not draw.
    """

    def __init__(self, net: nn.Module, device: torch.device):
        dense = [buffer.detach() for buffer in net.buffers() if buffer.layout == torch.strided]
        self.buffers = [buffer for buffer in dense if buffer.numel() <= 1 << 20]
        kinds = dict.fromkeys((buffer.dtype, buffer.device) for buffer in self.buffers)
        groups = [[b for b in self.buffers if (b.dtype, b.device) == kind] for kind in kinds]
        self._groups = [(group, _joined(group)) for group in groups]  # each group's values in one tensor
        self._device = device if device.type == "cuda" else None
        self._generator: Tensor | None = None

    def forget(self) -> None:
        """A new step: nothing is kept, as long as nothing changes."""
        self._generator = None

    def keep(self) -> None:
        self._generator = torch.get_rng_state()
        if self._device is not None:
            self._on_device = torch.cuda.get_rng_state(self._device)
        for group, values in self._groups:
            _joined(group, values)

    def rewind(self) -> None:
        """The generators as they were: what is made again draws the same numbers."""
        if self._generator is None:
            return
        torch.set_rng_state(self._generator)
        if self._device is not None:
            torch.cuda.set_rng_state(self._on_device, self._device)

    def put_back(self, where: Tensor | None = None) -> None:
        """The buffers as they were; with `where`, a truth value on the device, only if that holds."""
        for group, values in self._groups:
            chosen = values if where is None else torch.where(where, values, _joined(group))
            parts = chosen.split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view(b.shape) for part, b in zip(parts, group, strict=True)])


def _joined(tensors: list[Tensor], out: Tensor | None = None) -> Tensor:
    """All numbers of some tensors in one: (n,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)


@dataclass
class _Step:
    """A step that is made and not yet applied: its gradients are in the parameters."""

    whole: Tensor  # the loss, penalties included
    parts: list[tuple[Tensor, Any, int]]  # of each micro-batch: the loss, what its mean is over, examples
    bad: Batch | None = None  # the micro-batch whose loss is not finite: there are no gradients then
    near: float | None = None  # the loss, where it was read


def _made(window: list[Batch], lane: Lane, scaler: Any) -> _Step:
    """Forward and backward."""
    if len(window) > 1 or scaler is not None:
        lane.keep()
        return _accumulated(window, lane, scaler)
    value, whole, count = lane.gradients(window[0])
    near = _read(whole)
    return _Step(whole, [(value, count, window[0].count)], window[0] if _wrong(near) else None, near)


def _read(loss: Tensor) -> float | None:
    """A loss, where it can be read without waiting."""
    return loss.item() if _is_near(loss) else None


def _is_near(tensor: Tensor) -> bool:
    """Whether looking at a number waits for nothing. (`device.type` takes 7 us where a step has emptied the caches.)"""
    return tensor.is_cpu


def _wrong(near: float | None) -> bool:
    """Whether it is seen to be NaN or infinite."""
    return near is not None and not math.isfinite(near)


def _made_in_pieces(
    window: list[Batch], lane: Lane, scaler: Any, state: TrainState, before: _Before
) -> tuple[_Step, list[Batch]]:
    """Forward and backward of so many examples at a time as memory has room for; and those pieces."""
    while True:
        parts = window if state.most is None else pieces.cut(window, state.most)
        try:
            return _made(parts, lane, scaler), parts
        except Exception as error:
            most = pieces.smaller(parts) if out_of_memory(error) else None
            if most is None:
                raise
            state.most = most
        gc.collect()  # what the error held is free now
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        lane.forget()
        before.rewind()
        before.put_back()


def _in_pieces(most: int | None, window: list[Batch], net: nn.Module) -> dict[str, Any]:
    """What is said of a batch that did not fit into memory."""
    words = (
        f"{window[-1].count} examples do not fit into memory: from here {most} at a time, whose gradients are added up"
    )
    if norms := pieces.differs(net):
        words += f"; the means that {', '.join(norms[:3])} takes are over {most} examples now, so the result is another"
    warnings.warn(words, RuntimeWarning, stacklevel=3)
    return {"most": most, "words": words}


def _accumulated(window: list[Batch], lane: Lane, scaler: Any) -> _Step:
    """The gradients of several micro-batches together, weighted by what their means are taken over."""
    lane.forget()
    net, objective, penalty, autocast = lane.net, lane.objective, lane.penalty, lane.autocast
    several, scale = len(window) > 1, window[0].count  # any scale will do; this one keeps gradients in range
    step = _Step(0, [])  # type: ignore[arg-type]
    total: Any = 0
    for part in window:
        batch = part.ready()
        with autocast:
            value, count = objective(net, batch)
            full = value + penalty(net) if penalty is not None and not several else value
        if several and count is not None:
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            if isinstance(count, Tensor):  # where every truth is ignored, the loss is 0/0 and weighs nothing
                value = torch.where(count > 0, value, 0.0)
            full = value * count / scale
            total = total + count
        step.whole = step.whole + full.detach()
        step.parts.append((value.detach(), count, batch.count))
        if _wrong(_read(full)):
            step.bad = part
            return step
        (scaler.scale(full) if scaler is not None else full).backward()
    if several and count is not None:
        total = torch.where(total > 0, total, 1) if isinstance(total, Tensor) else total
        step.whole = step.whole * scale / total
        for parameter in lane.parameters:  # those of a loss that learns are among them
            if parameter.grad is not None:
                parameter.grad.mul_(scale).div_(total)
    if penalty is not None and several:
        with autocast:
            full = penalty(net)
        (scaler.scale(full) if scaler is not None else full).backward()
        step.whole = step.whole + full.detach()
    return step


def _sum_of_losses(near: bool, device: torch.device, value: float = 0.0) -> Any:
    """A number, where reading a loss waits for nothing; else a tensor on the device."""
    return value if near else torch.tensor(value, device=device)


def _add_up(state: TrainState, step: _Step) -> None:
    """The epoch's loss so far."""
    for value, count, examples in step.parts:
        if isinstance(state.loss_sum, Tensor):
            state.loss_sum += value.float() if count is None else value.float() * count
        else:
            count = count.item() if isinstance(count, Tensor) else count
            loss = step.near if step.near is not None and value is step.whole else value.item()
            state.loss_sum += loss if count is None else loss * count
        state.loss_count += examples if count is None else count


def _cut_again(batches: Any, state: TrainState, ago: int, count: int) -> list[Batch]:
    """So many batches of this epoch, from one that came `ago` batches before; none where they cannot be had again."""
    if not isinstance(batches, (Batches, RaggedBatches)) or ago > state.batch:
        return []
    walk: Any = copy.copy(batches)
    walk.reuse = False  # its memory holds the batch of this step
    return list(itertools.islice(walk.epoch(state.epoch, state.batch - ago), count))


def _diverged(
    step: _Step, parts: list[Batch], lane: Lane, before: _Before, state: TrainState, ago: int = 0
) -> Diverged:
    """The step once more, slowly, with the random numbers it had: where do numbers stop being finite? A step that was `ago`
    steps before is made of its own batches with the weights and random numbers of now."""
    after, buffers = all_generators(), [buffer.clone() for buffer in before.buffers]
    cause = divergence.Cause("its batch is not at hand any more", found=False)
    for batch in parts if step.bad is None else [step.bad]:
        before.rewind()
        before.put_back()
        cause = divergence.explain(
            lane.net, lane.objective, batch.ready(), penalty=lane.penalty, autocast=lane.autocast,
            counted=getattr(state.batches, "indices_are", ""),
        )  # fmt: skip
        if cause.found:
            break
    set_all_generators(after)
    for buffer, value in zip(before.buffers, buffers, strict=True):
        buffer.copy_(value)
    loss, place = float(step.whole), f"of step {state.step + 1 - ago} (epoch {state.epoch + 1})"
    what = f"A gradient {place} is not finite" if math.isfinite(loss) else f"The loss {place} is {loss:g}"
    what = f"Loss or gradient {place} are not finite" if ago else what
    rate = float(state.optimizer.param_groups[0]["lr"])
    error = Diverged(
        f"{what}; the step was not applied: {cause.words}.",
        fix=f"lower the learning rate (now {rate:g}) or clip gradients (--clip-norm 1); look at the examples named",
    )
    error.step, error.layer, error.rows = state.step + 1 - ago, cause.layer, cause.rows
    return error


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def _windows(
    epoch: Iterator[Batch], accumulate: int, per_epoch: int | None, start: int
) -> Iterator[tuple[list[Batch], bool]]:
    """Micro-batches of each step, and whether the epoch ends with it.

    Where nobody knows the length, one batch is read ahead to tell; where it is known, none is, so that a loader's random
    transforms are drawn only when their step is due.
    """
    window: list[Batch] = []
    if per_epoch is not None:
        for k, batch in enumerate(epoch, start + 1):
            if k > per_epoch:
                raise DataError(
                    f"An epoch gives more batches than the {per_epoch} its len() says.",
                    expected="a len() that is right, or none",
                )
            window.append(batch)
            if len(window) == accumulate or k == per_epoch:
                yield window, k == per_epoch
                window = []
        if window:
            yield window, True
        return
    ahead: list[Batch] = []
    for batch in epoch:
        if len(ahead) == accumulate:
            yield ahead, False
            ahead = []
        ahead.append(batch)
    if ahead:
        yield ahead, True
