"""The learning-rate finder: a rising rate on a copy of the net, and the place where the loss falls best.

In: net, batches, loss and optimiser as for `learn`. Out: rates, losses and a suggestion. Weights, optimiser, generators
and batches are afterwards as they were: everything happens on copies. After Smith, "Cyclical learning rates for training
neural networks", WACV 2017.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lamina import engine
from lamina.batches import walkable
from lamina.errors import Diverged, UsageError
from lamina.state import all_generators, set_all_generators


@dataclass(frozen=True)
class Found:
    """rates and smoothed losses, step by step, and the rate to use as the peak."""

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_learning_rate(
    net: nn.Module,
    batches: Any,
    loss: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    objective: engine.Objective | None = None,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 120,
    precision: str = "fp32",
    smoothing: float = 0.9,
) -> Found:
    """Learning rates from `low` to `high`, a factor more each step, until the loss explodes.

    The suggestion is the rate of steepest fall of the smoothed loss (by the logarithm of the rate), never more than a
    third of the rate at which the loss was lowest. UsageError when the loss never falls.
    """
    if optimizer is None:
        raise UsageError("find_learning_rate() was given no optimizer.", fix="torch.optim.Adam(net.parameters())")
    trial, trial_optimizer = _copies(net, optimizer)
    walk = walkable(batches, next(net.parameters()).device)
    kept = copy.deepcopy(walk.state_dict())
    for group in trial_optimizer.param_groups:
        group["initial_lr"] = 1.0
    rates: list[float] = []
    losses: list[float] = []
    average, best = 0.0, math.inf
    before = all_generators()
    try:
        for progress in engine.learn(
            trial, walk, loss, trial_optimizer, objective=objective, epochs=None, steps=steps, precision=precision,
            schedule=lambda step: low * (high / low) ** (step / max(1, steps - 1)),
        ):  # fmt: skip
            value = progress.loss
            if not math.isfinite(value):
                break
            average = smoothing * average + (1 - smoothing) * value
            smooth = average / (1 - smoothing**progress.step)
            rates.append(progress.learning_rate)
            losses.append(smooth)
            best = min(best, smooth)
            if progress.step > 10 and smooth > 4 * max(best, 1e-12):
                break
    except Diverged:
        pass  # as planned: the rate rises until it is too high
    finally:
        set_all_generators(before)
        walk.load_state_dict(kept)
    return Found(rates, losses, _suggest(rates, losses))


def _copies(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Net and optimiser copied together, so that the copy of one holds the parameters of the other."""
    own = {id(parameter) for parameter in net.parameters()}
    if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        return copy.deepcopy((net, optimizer))
    return copy.deepcopy(net), optimizer


def _suggest(rates: list[float], losses: list[float]) -> float:
    lowest = min(range(len(losses)), key=losses.__getitem__) if losses else 0
    if lowest < 5:
        raise UsageError(
            f"The loss never fell while the rate rose from {rates[0]:g}."
            if rates
            else "The first step diverged already.",
            fix="check loss and data, or set --learning-rate by hand",
        )
    slopes = [(losses[k + 1] - losses[k - 1]) / math.log(rates[k + 1] / rates[k - 1]) for k in range(1, lowest)]
    steepest = rates[1 + min(range(len(slopes)), key=slopes.__getitem__)]
    return float(f"{min(max(steepest, rates[lowest] / 30), rates[lowest] / 3):.2g}")
