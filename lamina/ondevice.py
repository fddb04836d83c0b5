"""The end of a step on a GPU, of which the host asks nothing.

In: the loss and gradients of a step, on the device. Out: sums, an update and buffers, all there: where a number is not finite
nothing changes but the count of steps left out, and the host hears of it when it asks. All is done on tensors that stay, so
that a `Lane` can capture it. Needs an optimiser with fused kernels, which can be told by a tensor to do nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamina import divergence
from lamina.lanes import Lane
from lamina.state import TrainState


class OnDevice:
    """put_back(found): the net's buffers as they were before the step, where that number is not 0."""

    def __init__(self, state: TrainState, lane: Lane, put_back: Any, clip_value: float, clip_norm: float):
        self._lane, self._put_back, self._clip = lane, put_back, (clip_value, clip_norm)
        self._sum, device = state.loss_sum, state.loss_sum.device
        self._count = state.loss_count = torch.as_tensor(float(state.loss_count), dtype=torch.float64, device=device)
        self._skipped = state.skipped = torch.as_tensor(float(state.skipped), device=device)
        self._in_row = state.in_row = torch.as_tensor(float(state.in_row), device=device)
        self._done = torch.zeros((), device=device)  # steps, in this epoch
        self._first = torch.zeros((), device=device)  # which of them was the first to be left out, since somebody asked
        self._worst = torch.zeros((), device=device)  # how many were left out in a row, at most, since then

    def begin(self) -> None:
        """A new epoch."""
        self._sum.zero_()
        self._count.zero_()
        self._done.zero_()

    def told(self) -> tuple[int, int]:
        """(steps left out in a row, at most; how many steps ago the first of them was), since the last time. Waits."""
        worst, ago = map(int, torch.stack([self._worst, self._done - self._first]).tolist())
        if worst:
            self._first.zero_()
            self._worst.zero_()
        return worst, ago

    def end(self, whole: Tensor, parts: list[tuple[Tensor, Any, int]]) -> None:
        """whole, parts: the loss, and of each micro-batch the loss, the count its mean is over (None: a sum), examples."""
        self._lane.follow(lambda: self._end(whole, parts))

    def _end(self, whole: Tensor, parts: list[tuple[Tensor, Any, int]]) -> tuple[()]:
        found = divergence.found(whole, self._lane.given())
        for value, count, examples in parts:
            total = value.float() if count is None else value.float() * count
            self._sum.add_(total.masked_fill(found > 0, 0.0))
            self._count.add_((examples if count is None else count) * (1 - found))
        self._lane.clip(*self._clip)
        self._lane.update(found)
        self._put_back(found)
        self._skipped.add_(found)
        self._in_row.add_(found).mul_(found)
        self._done.add_(1)
        self._first.add_(self._done * found * (self._first == 0))
        torch.maximum(self._worst, self._in_row, out=self._worst)
        return ()  # nothing of it is asked for
