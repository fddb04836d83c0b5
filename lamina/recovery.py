"""What is done about a training that diverges: steps left out, a way back, a lower rate, an end.

In: the state of a training, and its `Progress` after every step. Out: what was done, in words for the history; `Diverged`
when nothing helps. Called by `training` before anybody else looks at the step. The engine has left out each step whose loss
or gradient is not finite; this module acts when that goes on, or when the loss explodes without becoming infinite.

    3 steps in a row left out, or weights that are not finite, or 5 steps in a row with a loss far above the first
        -> the last good weights, a fresh optimiser, and a lower rate; the data go on where they are
    for the fourth time, with fewer than 1,000 steps after each
        -> Diverged

The last good weights are a copy in memory, made every 500 steps where the loss is no higher than at the beginning. It is a
part of every checkpoint, and depends on steps alone: so a resumed training goes back to where the other one did. The
optimiser begins anew, since what it remembers is how the training went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lamina.errors import Diverged
from lamina.state import LOOK, TrainState, not_finite

SKIPS = 3  # steps in a row left out, after which the training goes back
_HIGH = 5  # steps in a row with a loss far above the first
_FAR = 10.0  # how far: above it by so many times its size, and by so much at least
_BACKS = 3  # times
_APART = 1000  # steps after which an earlier way back is forgotten
_EVERY = 500  # steps between two copies


class Recovery:
    """Part of a checkpoint. lower() -> the factor on the learning rate when the training goes back, below 1.

    It looks only at losses that come from examples with answers (`supervised`): those of a game may well rise.
    """

    def __init__(self, state: TrainState, lower: Callable[[], float], supervised: bool = True):
        self.state, self.lower, self.supervised = state, lower, supervised
        self.good: dict[str, Tensor] = {}
        self.good_step = 0
        self._first: float | None = None  # loss
        self._high = 0  # steps in a row
        self._looked = 0  # the step after which the loss was last looked at
        self._backs, self._back_at = 0, 0

    def __call__(self, progress: Any) -> list[dict[str, Any]]:
        """What happened in this step, for the history: nothing, as a rule."""
        events: list[dict[str, Any]] = []
        error: Diverged | None = progress.incident.get("skipped")
        if error is not None:
            about = {"step": error.step, "layer": error.layer, "rows": list(error.rows[:20])}
            events.append({"skipped": about, "words": error.what})
            if int(self.state.in_row) >= SKIPS or self._bad():
                events.append(self._back(error))
        elif progress.loss_is_near or self.state.step <= self.state.watched or self.state.step % LOOK == 0:
            events += self._look(progress.loss)
        return events

    def sound(self) -> list[dict[str, Any]]:
        """Before the state is saved: weights that an update has made infinite are not kept."""
        if not (bad := self._bad()):
            return []
        words = f"After step {self.state.step} {', '.join(bad[:3])} are not finite."
        return [self._back(Diverged(words, fix="a lower learning rate, or --clip-norm 1"))]

    def state_dict(self) -> dict[str, Any]:
        return {"good": self.good, "good_step": self.good_step, "first": self._first, "high": self._high,
                "looked": self._looked, "backs": self._backs, "back_at": self._back_at}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.good, self.good_step, self._first = dict(state["good"]), state["good_step"], state["first"]
        self._high, self._backs, self._back_at = state["high"], state["backs"], state["back_at"]
        self._looked = state.get("looked", 0)

    def begin(self) -> None:
        """Before the first step: the weights as they are now are good."""
        if not self.good:
            self._keep()

    def _look(self, loss: float) -> list[dict[str, Any]]:
        """Is the loss far above where it began? Where it is not even above that, the weights are good."""
        if not math.isfinite(loss):  # on a GPU, and the kernel has left the step out
            return []
        if self._first is None:
            self._first = loss
        far = self.supervised and loss > self._first + _FAR * max(abs(self._first), 1.0)
        passed = self.state.step - self._looked if self._high else 1
        self._high = self._high + passed if far else 0
        self._looked = self.state.step
        if self._high >= _HIGH:
            words = (
                f"The loss is {loss:.4g} at step {self.state.step}, and was far above the {self._first:.4g} it began at"
            )
            advice = (
                f"a lower learning rate than {float(self.state.optimizer.param_groups[0]['lr']):g}, or --clip-norm 1"
            )
            return [self._back(Diverged(f"{words} for {_HIGH} steps.", fix=advice))]
        if (
            self.state.step - self.good_step >= _EVERY
            and (loss <= self._first or not self.supervised)
            and not self._bad()
        ):
            self._keep()
            if self.state.step - self._back_at >= _APART:
                self._backs = 0
        return []

    def _places(self) -> dict[str, Tensor]:
        """What is good or not: weights and buffers of the net, and of the average where there is one."""
        places = dict(self.state.net.state_dict())
        if self.state.ema is not None:
            places |= {f"ema.{name}": value for name, value in self.state.ema.state_dict().items()}
        return places

    def _bad(self) -> list[str]:
        """What is not finite and is not meant so: none, as a rule."""
        meant = self.state.infinite | {f"ema.module.{name}" for name in self.state.infinite}
        return not_finite(self._places(), meant)

    def _keep(self) -> None:
        places = self._places()
        if not self.good:
            self.good = {name: torch.empty_like(value, device="cpu") for name, value in places.items()}
        for name, value in places.items():
            self.good[name].copy_(value)
        self.good_step = self.state.step

    def _back(self, error: Diverged) -> dict[str, Any]:
        """To the last good weights, with a lower rate."""
        state, optimizer = self.state, self.state.optimizer
        self._high = 0
        state.in_row -= state.in_row  # in place, where it is a tensor
        state.watched = state.step + LOOK
        if self._backs >= _BACKS:
            stopped = Diverged(
                f"{error.what} Lower rates from the last good weights (of step {self.good_step}) did not help {_BACKS} times.",
                fix=error.fix,
            )
            stopped.step, stopped.layer, stopped.rows = error.step, error.layer, error.rows
            raise stopped from error
        self._backs, self._back_at = self._backs + 1, state.step
        with torch.no_grad():
            for name, value in self._places().items():
                value.copy_(self.good[name])
        optimizer.state.clear()
        factor = self.lower()
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] = group[name] * factor
        rate = float(optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"]))
        back = {"from": state.step, "to": self.good_step, "learning_rate": rate}
        words = f"{error.what} Back to the weights of step {self.good_step}, with a peak rate of {rate:.3g}."
        return {"back": back, "words": words}
