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

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lamina import devices, losses
from lamina.batches import Batch, keeping_generators, walkable
from lamina.errors import DataError, Diverged, UsageError, rows
from lamina.lanes import Lane
from lamina.state import TrainState

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Any]]  # -> 0-d loss, count of its mean (None: a sum)


class Progress:
    """Where learning is, after a step. Reading `loss` or `mean_loss` waits for the device; nothing else does."""

    def __init__(self, state: TrainState, epochs: int | None, batches: int | None, steps: int | None):
        self.state, self.net, self.optimizer = state, state.net, state.optimizer
        self.epochs, self.batches, self.steps = epochs, batches, steps
        self.epoch = 0  # counted from 0
        self.batch = 0  # within the epoch, counted from 0
        self.epoch_end = False
        self.scores: dict[str, float] = {}  # filled by the caller, after validation
        self._batch: Batch | None = None
        self._loss: Tensor | None = None
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
        return float("nan") if self._loss is None else float(self._loss)

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
    compile: "auto" replays a recording of the step where that gives the same bits, "on" insists, "off" never does (see
    `lanes`). strict: no other order of sums than that of the plain loop, which matters to clip_norm.
    state: a `TrainState` to go on from; without it learning starts from the beginning.
    lane: how steps are made, where that was decided before; else it is decided here.

    While learning goes on parameters may lie in one tensor; each has its own memory again when it ends.

    The net is put into training mode if it is not; submodules of a net in training mode stay as you set them (a frozen
    BatchNorm). After your loop body called `net.eval()`, every module goes back to the mode it had.

    A loss that is NaN or infinite raises `Diverged`, naming layer and examples: on the CPU before it reaches the
    weights, elsewhere at the end of the epoch, since looking at every loss would wait for the device.
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
    on_cpu = device.type == "cpu"
    exact = per_epoch if getattr(batches, "exact", True) else None
    if not net.training:
        net.train()
    modules = list(net.modules())
    if state.loss_sum is None:
        state.loss_sum = torch.zeros((), device=device)
    if lane is None:
        lane = Lane(net, objective, optimizer, penalty=penalty, autocast=autocast, scaled=scaler is not None,
                    compile=compile, strict=strict)  # fmt: skip
    if accumulate == 1 and scaler is None and hasattr(batches, "reuse"):
        batches.reuse = True

    try:
        while (epochs is None or state.epoch < epochs) and (steps is None or state.step < steps):
            if state.batch == 0:
                state.loss_sum, state.loss_count = torch.zeros((), device=device), 0
            epoch, before = state.epoch, state.step
            for window, last in _windows(batches.epoch(state.epoch, state.batch), accumulate, exact, state.batch):
                # The rate of this step.
                if schedule is not None:
                    factor = schedule(state.step)
                    for group in optimizer.param_groups:
                        group["lr"] = group["initial_lr"] * factor

                # Forward and backward.
                batch = window[-1]
                if len(window) == 1 and scaler is None:
                    value, whole, count = lane.gradients(batch)
                    if on_cpu and not math.isfinite(whole.item()):
                        raise _diverged(net, objective, batch.ready(), whole, state, optimizer)
                    _add_up(state, value, count, batch.count)
                else:
                    whole = _accumulated(window, net, objective, penalty, autocast, scaler, state, lane, on_cpu)

                # Clip and update.
                if scaler is not None and (clip_norm or clip_value):
                    scaler.unscale_(optimizer)
                lane.clip(clip_value, clip_norm)
                if scaler is None:
                    lane.update()
                else:
                    scaler.step(optimizer)
                    scaler.update()
                if ema is not None:
                    ema.update_parameters(net)

                # The cursor points to the next batch before anybody can look, so that saving here is exact.
                progress.epoch, progress.batch, progress.epoch_end = state.epoch, state.batch + len(window) - 1, last
                progress._batch, progress._loss = batch, whole
                state.step += 1
                state.batch += len(window)
                if last:
                    state.epoch, state.batch = state.epoch + 1, 0
                    progress.scores = {}
                    if not on_cpu and not math.isfinite(progress.mean_loss):
                        raise _diverged(net, objective, batch.ready(), whole, state, optimizer)
                state.seconds = progress.seconds
                modes = state.modes = [module.training for module in modules]
                yield progress
                if not net.training:  # the caller has evaluated: every module goes back to the mode it had
                    for module, mode in zip(modules, modes, strict=True):
                        module.training = mode
                if steps is not None and state.step >= steps:
                    return
            if state.epoch == epoch:  # the epoch was shorter than its len()
                if state.step == before and state.batch == 0:
                    raise DataError(
                        f"Epoch {epoch + 1} gave no batch.", expected="batches that can be walked once an epoch"
                    )
                state.epoch, state.batch = epoch + 1, 0
    finally:
        lane.close()


def _add_up(state: TrainState, value: Tensor, count: Any, examples: int) -> None:
    """The epoch's loss so far, on the device: nobody waits for it."""
    assert state.loss_sum is not None
    if isinstance(count, Tensor):
        state.loss_sum.add_(value.float() * count)
    else:
        state.loss_sum.add_(value.float(), alpha=1 if count is None else count)
    state.loss_count += examples if count is None else count
    state.examples += examples


def _accumulated(
    window: list[Batch], net: nn.Module, objective: Objective, penalty: Any, autocast: Any, scaler: Any,
    state: TrainState, lane: Lane, on_cpu: bool,
) -> Tensor:  # fmt: skip
    """The gradients of several micro-batches together, weighted by what their means are taken over; gives the loss."""
    lane.forget()
    several, scale = len(window) > 1, window[0].count  # any scale will do; this one keeps gradients in range
    whole: Any = 0  # the loss of the step
    total: Any = 0
    for batch in (part.ready() for part in window):
        with autocast:
            value, count = objective(net, batch)
            full = value + penalty(net) if penalty is not None and not several else value
        if several and count is not None:
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            if isinstance(count, Tensor):  # where every truth is ignored, the loss is 0/0 and weighs nothing
                value = torch.where(count > 0, value, 0.0)
            full = value * count / scale
            total = total + count
        if on_cpu and not math.isfinite(full.item()):
            raise _diverged(net, objective, batch, full, state, state.optimizer)
        (scaler.scale(full) if scaler is not None else full).backward()
        whole = whole + full.detach()
        _add_up(state, value.detach(), count, batch.count)
    if several and count is not None:
        total = torch.where(total > 0, total, 1) if isinstance(total, Tensor) else total
        whole = whole * scale / total
        for parameter in lane.parameters:  # those of a loss that learns are among them
            if parameter.grad is not None:
                parameter.grad.mul_(scale).div_(total)
    if penalty is not None and several:
        with autocast:
            full = penalty(net)
        (scaler.scale(full) if scaler is not None else full).backward()
        whole = whole + full.detach()
    return whole  # type: ignore[no-any-return]


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


def _diverged(
    net: nn.Module, objective: Objective, batch: Batch, loss: Tensor, state: TrainState, optimizer: Any
) -> Diverged:
    """The step again, slowly: where do values stop being finite, and for which examples?"""
    weights = [name for name, value in net.named_parameters() if not torch.isfinite(value).all()]
    if weights:
        cause = f"the weights of {', '.join(weights[:3])} are not finite since the step before"
    else:
        counted = getattr(state.batches, "indices_are", "")
        with keeping_generators(), torch.no_grad():
            cause = _bad_data(batch) or _bad_layer(net, objective, batch) or _bad_loss(net, objective, batch)
        if counted and ", for row" in cause:
            cause += f" ({counted})"
    rate = optimizer.param_groups[0]["lr"]
    return Diverged(
        f"The loss of step {state.step + 1} (epoch {state.epoch + 1}) is {float(loss.detach()):g}; the step was not "
        f"applied: {cause}.",
        fix=f"lower the learning rate (now {rate:g}) or clip gradients (--clip-norm 1); look at the examples named",
    )


def _floats(values: Any) -> list[Tensor]:
    """The floating point tensors in what a module was given or gave."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    if isinstance(values, dict):
        values = list(values.values())
    return [value for part in values for value in _floats(part)] if isinstance(values, (tuple, list)) else []


def _bad_rows(values: Tensor, batch: Batch) -> str:
    """', for rows 3, 17' where some examples' values are not finite and others' are."""
    wrong = ~torch.isfinite(values.reshape(len(values), -1)).all(1) if values.ndim else torch.tensor([True])
    some = len(wrong) == len(batch.indices) and not wrong.all()
    return f", for {rows(batch.indices[wrong].tolist())}" if some else ""


def _bad_data(batch: Batch) -> str:
    for what, values in (("inputs", batch.inputs), ("answers", batch.truth)):
        for column in _floats(values):
            if not torch.isfinite(column).all():
                return f"the {what} of the batch are not finite{_bad_rows(column, batch)}"
    return ""


def _bad_layer(net: nn.Module, objective: Objective, batch: Batch) -> str:
    """The first module whose output is not finite. Modules report before the modules they are part of."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            wrong = [values for values in _floats(output) if not torch.isfinite(values).all()]
            if found or not wrong:
                return
            title = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
            if any(not torch.isfinite(values).all() for values in _floats(inputs)):
                where = f"before layer {title}, which is given such values by the forward() around it"
            elif next(module.children(), None) is None:
                where = f"in layer {title}"
            else:
                where = f"in the forward() of {title}, not in its layers"
            found.append(f"values stop being finite {where}{_bad_rows(wrong[0], batch)}")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules()]
    try:
        objective(net, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _bad_loss(net: nn.Module, objective: Objective, batch: Batch) -> str:
    """Every layer's output is finite: which examples, one by one, have no finite loss?"""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()  # one example has no batch statistics
    wrong = torch.zeros(len(batch.indices), dtype=torch.bool)
    try:
        for k in range(len(wrong)):
            own = slice(k, k + 1)
            truth = batch.truth[own] if isinstance(batch.truth, Tensor) else batch.truth
            one = replace(
                batch, inputs=tuple(x[own] for x in batch.inputs), truth=truth, indices=batch.indices[own], count=1
            )
            wrong[k] = not math.isfinite(float(objective(net, one)[0]))
    except Exception:  # this objective cannot do with one example, so it is not said which it is
        wrong[:] = False
    finally:
        for module, mode in modes:
            module.training = mode
    some = 0 < wrong.sum() < len(wrong)
    whose = f", for {rows(batch.indices.cpu()[wrong].tolist())}" if some else ""
    return f"every layer's output is finite, so it is the loss itself{whose}"
