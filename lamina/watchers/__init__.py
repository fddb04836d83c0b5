"""Watchers: asked after every optimiser step, in the order of their list.

In: the `Progress` that `lamina.learn` yields. Out: a request to whoever runs the loop, or None. A watcher is a callable

    watch(progress) -> Stop | Save | Log | None

It looks and asks; it changes neither net, nor optimiser, nor random numbers. What changes the mathematics is an
argument of `learn` or a wrapper at a visible place, never a watcher. One that remembers has `state_dict()` and
`load_state_dict(dict)` (JSON values), and is saved and resumed with the run. One whose `at_epoch_end` is true is asked only
after the last step of an epoch. At `progress.epoch_end` the scores of the
validation are in `progress.scores`, if there was one.

    screen     what a person sees
    stopping   EarlyStopping, Best, TimeLimit
    health     Health: dead and saturated units, vanishing and exploding gradients

    def slow_enough(progress):                       # a watcher is three lines
        if progress.epoch_end and progress.learning_rate < 1e-6:
            return Stop("the learning rate is below 1e-6")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stop:
    """End training after this step; the run is complete, and `reason` is told to people and written to the run."""

    reason: str


@dataclass(frozen=True)
class Save:
    """Keep the state of this step under `tag`: "best", or a name of yours. A later one replaces it."""

    tag: str


@dataclass(frozen=True)
class Log:
    """Add these numbers to the history's line of this epoch; names as "health/dead_share"."""

    values: dict[str, float]


Request = Stop | Save | Log
Watcher = Callable[[Any], Request | None]
