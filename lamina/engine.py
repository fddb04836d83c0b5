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
from typing import Any

import torch
from torch import Tensor, nn

from lamina import devices, losses
from lamina.batches import Batch, walkable
from lamina.errors import DataError, Diverged, UsageError, rows
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
        self.batch_data: Batch | None = None  # the last micro-batch of the step
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
    def loss(self) -> float:
        """Of this step, penalties included."""
        return float("nan") if self._loss is None else float(self._loss)

    @property
    def mean_loss(self) -> float:
        """Of this epoch so far, penalties left out."""
        total, count = self.state.loss_sum, self.state.loss_count
        return float("nan") if total is None or not count else float(total) / count

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
        output = net(*batch.inputs)
        return loss(output, batch.truth), losses.count(loss, output, batch.truth, batch.count)

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
    state: TrainState | None = None,
) -> Iterator[Progress]:
    """Train a net; yields a `Progress` after every optimiser step.

    batches: `lamina.Batches`, a DataLoader, a Dataset, or any iterable of (x, y) that can be walked once an epoch.
    loss(output, truth) -> 0-d; or, for anything else, `objective(net, batch) -> (0-d loss, count its mean is over)`.
    schedule(step) -> factor of each parameter group's own rate. penalty(net) -> 0-d, added to the loss of a step.
    clip_norm, clip_value: of all gradients together, of each; 0 for none. accumulate: batches a step, weighted by their
    counts, so that the step equals that of the big batch; the last window of an epoch is as short as it comes.
    precision: fp32, bf16 or fp16 (with loss scaling). ema: `torch.optim.swa_utils.AveragedModel`, updated after each step.
    state: a `TrainState` to go on from; without it learning starts from the beginning.

    A loss that is NaN or infinite raises `Diverged` before it reaches the weights, naming layer and examples.
    """
    if objective is None:
        if loss is None:
            raise UsageError(
                "learn() was given neither a loss nor an objective.", expected="learn(net, batches, loss, ...)"
            )
        objective = supervised(loss)
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
        state = TrainState(net, optimizer, schedule=schedule, ema=ema)
    optimizer = state.optimizer
    device = parameters[0].device
    batches = walkable(batches, device)
    state.batches = batches
    per_epoch = _length(batches)
    per_epoch_steps = None if per_epoch is None else -(-per_epoch // accumulate)
    planned = steps if steps is not None else (epochs * per_epoch_steps if epochs and per_epoch_steps else None)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    autocast = devices.autocast(device, precision)
    scaler = state.scaler = state.scaler or devices.scaler(device, precision)
    progress = Progress(state, epochs, per_epoch, planned)
    on_cpu = device.type == "cpu"
    net.train()
    modes = [(module, module.training) for module in net.modules()]
    if state.loss_sum is None:
        state.loss_sum = torch.zeros((), device=device)

    while (epochs is None or state.epoch < epochs) and (steps is None or state.step < steps):
        if state.batch == 0:
            state.loss_sum, state.loss_count = torch.zeros((), device=device), 0
        epoch, before = state.epoch, state.step
        for window, last in _windows(batches.epoch(state.epoch, state.batch), accumulate, per_epoch, state.batch):
            # The rate of this step.
            if schedule is not None:
                factor = schedule(state.step)
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor

            # Forward and backward. Micro-batches are weighted by what their means are taken over.
            optimizer.zero_grad(set_to_none=True)
            total: Any = 0
            scale = None
            for k, batch in enumerate(window):
                with autocast:
                    value, count = objective(net, batch)
                    full = value + penalty(net) if penalty is not None and k == 0 and len(window) == 1 else value
                if on_cpu and not math.isfinite(full.item()):
                    raise _diverged(net, objective, batch, full, state, optimizer)
                if len(window) > 1 and count is not None:
                    scale = count if scale is None else scale  # any constant will do; this one keeps gradients in range
                    full = full * (count / scale)
                    total = total + count
                (scaler.scale(full) if scaler is not None else full).backward()
                state.loss_sum.add_(value.detach(), alpha=batch.count)
                state.loss_count += batch.count
                state.examples += batch.count
            if len(window) > 1 and scale is not None:
                factor = scale / total
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)
            if penalty is not None and len(window) > 1:
                full = penalty(net)
                (scaler.scale(full) if scaler is not None else full).backward()

            # Clip and update.
            if scaler is not None and (clip_norm or clip_value):
                scaler.unscale_(optimizer)
            if clip_value:
                nn.utils.clip_grad_value_(parameters, clip_value)
            if clip_norm:
                nn.utils.clip_grad_norm_(parameters, clip_norm)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if ema is not None:
                ema.update_parameters(net)

            # The cursor points to the next batch before anybody can look, so that saving here is exact.
            progress.epoch, progress.batch, progress.epoch_end = state.epoch, state.batch + len(window) - 1, last
            progress.batch_data, progress._loss = window[-1], full.detach()
            state.step += 1
            state.batch += len(window)
            if last:
                state.epoch, state.batch = state.epoch + 1, 0
                progress.scores = {}
                if not on_cpu and not math.isfinite(progress.mean_loss):
                    raise _diverged(net, objective, batch, full, state, optimizer)
            state.seconds = progress.seconds
            yield progress
            if not net.training:  # the caller has evaluated: every module goes back to the mode it had
                for module, mode in modes:
                    module.training = mode
            if steps is not None and state.step >= steps:
                return
        if state.epoch == epoch:  # the epoch was shorter than its len()
            if state.step == before and state.batch == 0:
                raise DataError(
                    f"Epoch {epoch + 1} gave no batch.", expected="batches that can be walked once an epoch"
                )
            state.epoch, state.batch = epoch + 1, 0


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
    """The step again, with a look behind every layer: where do values stop being finite, and for which examples?"""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if found or not isinstance(output, Tensor) or not output.is_floating_point():
                return
            if not torch.isfinite(output).all():
                given = [part for part in inputs if isinstance(part, Tensor) and part.is_floating_point()]
                if any(not torch.isfinite(part).all() for part in given):
                    found.append("the inputs of the batch are not finite")
                    return
                wrong = ~torch.isfinite(output.flatten(1)).all(1) if output.ndim > 1 else ~torch.isfinite(output)
                whose = batch.indices[wrong].tolist() if len(wrong) == len(batch.indices) else []
                found.append(
                    f"values stop being finite in layer {name!r} ({type(module).__name__})"
                    + (f", for {rows(whose)}" if whose and len(whose) < len(wrong) else "")
                )

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in net.named_modules() if not list(m.children())]
    try:
        with torch.no_grad():
            objective(net, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        weights = [name for name, value in net.named_parameters() if not torch.isfinite(value).all()]
        found.append(
            f"the weights of {', '.join(weights[:3])} are not finite"
            if weights
            else "every layer's output is finite, so it is the loss itself"
        )
    rate = optimizer.param_groups[0]["lr"]
    return Diverged(
        f"The loss of step {state.step + 1} (epoch {state.epoch + 1}) is {float(loss.detach()):g}; the step was not "
        f"applied: {found[0]}.",
        fix=f"lower the learning rate (now {rate:g}) or clip gradients (--clip-norm 1); look at the examples named",
    )
