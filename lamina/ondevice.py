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
        self._left_out = torch.tensor([float(state.skipped), float(state.in_row)], device=device)
        state.skipped, state.in_row = self._left_out[0], self._left_out[1]
        self._in_row = state.in_row
        # Since somebody asked: steps from the first that was left out on, 0 where none was; and how many in a row, at most.
        self._age, self._worst = torch.zeros((), device=device), torch.zeros((), device=device)

    def begin(self) -> None:
        """A new epoch."""
        self._sum.zero_()
        self._count.zero_()

    def told(self) -> tuple[int, int]:
        """(steps left out in a row, at most; how many steps ago the first of them was), since the last time. Waits."""
        worst, age = map(int, torch.stack([self._worst, self._age]).tolist())
        if worst:
            self._age.zero_()
            self._worst.zero_()
        return worst, max(0, age - 1)

    def end(self, whole: Tensor, parts: list[tuple[Tensor, Any, int]]) -> None:
        """whole, parts: the loss, and of each micro-batch the loss, the count its mean is over (None: a sum), examples."""
        self._lane.follow(lambda: self._end(whole, parts))

    def _end(self, whole: Tensor, parts: list[tuple[Tensor, Any, int]]) -> tuple[()]:
        """In few kernels: on numbers each of them takes 2 us of a step that may take 100."""
        found = divergence.found(whole, self._lane.given())
        bad, good = found > 0, 1 - found
        for value, count, examples in parts:
            weight = good if count is None else good * count
            self._sum.add_(value.float().nan_to_num() * weight)
            self._count.add_(good * examples if count is None else weight)
        self._lane.clip(*self._clip)
        self._lane.update(found)
        self._put_back(bad)
        self._left_out.add_(found)
        self._in_row.mul_(found)
        self._age.add_(torch.maximum(self._age.sign(), found))
        torch.maximum(self._worst, self._in_row, out=self._worst)
        return ()  # nothing of it is asked for
