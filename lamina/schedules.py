"""Learning-rate schedules: a factor as a function of the step.

In: a name, the plan (steps in all, steps in an epoch, warm-up) and the schedule's own arguments. Out: a `Schedule`;
every parameter group's peak rate is multiplied with `schedule(step)` in that step, counted from 0. The loop does that;
the recipe's schedule and its arguments come to `make`.

All but `plateau` remember nothing: the factor of any step is found without the steps before it, so a resumed run needs
the step alone, and a changed plan is a new `make`. Names and defaults follow torch.optim.lr_scheduler, and so do the
values. What the last step gets (step = steps - 1):

- `cosine` and `linear` reach their floor at step = steps, one beyond the last, as CosineAnnealingLR(T_max=steps) and
  LinearLR(total_iters=steps) do: with a floor of 0, reaching it in the last step would waste that step.
- `one_cycle` reaches `end` in the last step itself, as OneCycleLR does: its end is above 0.

Beyond the plan the last value is kept. Epochs of `step`, `multi_step` and `exponential` are counted from the start of
training, warm-up included; `cosine`, `linear` and `one_cycle` stretch over the steps that the warm-up leaves.
"""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.errors import UsageError, near

Body = Callable[[int], float]  # step, counted from the start of training -> factor


def names() -> list[str]:
    """Every name that `make` takes."""
    return sorted([*_BODIES, "plateau"])


def make(name: str, *, steps: int | None, steps_per_epoch: int | None, warmup: float = 0, **arguments: Any) -> Schedule:
    """The schedule of that name for a training of `steps` optimiser steps, `steps_per_epoch` of them an epoch.

    `steps` may be None (training without a planned end) for schedules that have no end, `steps_per_epoch` for those
    that do not count epochs. `warmup` is a whole number of steps, or a float below 1: a share of `steps`. In it the
    factor rises linearly, (step + 1) / (warmup + 1), so that no step is wasted at 0 and the first step after it has the
    full rate.

    Schedules and arguments (a factor of 1 is the peak):
    constant; step (every: epochs, gamma); multi_step (milestones: epochs, gamma); exponential (gamma: an epoch);
    cosine (floor); linear (floor); one_cycle (rise: share of the steps, start, end); inverse_sqrt;
    plateau (factor, patience: validations, threshold, floor).

    Raises UsageError for an unknown name or argument (with near misses) and for a value out of range.
    """
    if name not in names():
        raise UsageError(f"there is no schedule {name!r}", expected=near(name, names()))
    build = _BODIES.get(name, Plateau)
    known = set(inspect.signature(build).parameters) - {"plan"}
    unknown = sorted(set(arguments) - known)
    if unknown:
        hints = "; ".join(near(key, known) for key in unknown)
        raise UsageError(f"the schedule {name!r} has no argument {', '.join(map(repr, unknown))}", expected=hints)
    missing = [
        key
        for key, parameter in inspect.signature(build).parameters.items()
        if parameter.default is parameter.empty and key not in {*arguments, "plan"}
    ]
    if missing:
        raise UsageError(f"the schedule {name!r} needs {', '.join(missing)}")
    for key, count in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
        if count is not None:
            _whole(key, count, 1)
    plan = Plan(name, steps, steps_per_epoch, _warmup_steps(warmup, steps))
    if name == "plateau":
        return Plateau(plan, **arguments)
    return Schedule(plan, _BODIES[name](plan, **arguments))


@dataclass(frozen=True)
class Plan:
    """How long training is, in optimiser steps."""

    name: str  # of the schedule, for messages
    steps: int | None
    steps_per_epoch: int | None
    warmup: int

    def epoch(self, step: int) -> int:
        assert self.steps_per_epoch is not None
        return step // self.steps_per_epoch

    def need_epochs(self) -> None:
        if self.steps_per_epoch is None:
            raise UsageError(
                f"the schedule {self.name!r} counts epochs, and the number of steps in an epoch is not known",
                fix="use a schedule of steps: cosine, linear, one_cycle, inverse_sqrt or constant",
            )

    def span(self) -> int:
        """The steps that the warm-up leaves."""
        if self.steps is None:
            raise UsageError(
                f"the schedule {self.name!r} leads to an end, and the number of steps is not known",
                fix="plan the epochs or steps, or use constant, inverse_sqrt or plateau",
            )
        return self.steps - self.warmup


class Schedule:
    """`schedule(step)`: the factor on the peak learning rate in optimiser step `step` = 0, 1, ..."""

    def __init__(self, plan: Plan, body: Body):
        self.plan, self._body = plan, body

    def __call__(self, step: int) -> float:
        if step < self.plan.warmup:
            return (step + 1) / (self.plan.warmup + 1) * self._body(step)
        return self._body(step)

    def observe(self, value: float) -> None:
        """Told of each validation's score, lower is better. Only `plateau` listens."""

    def state_dict(self) -> dict[str, Any]:
        """What the factor depends on beside the step: nothing, but for `plateau`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Plateau(Schedule):
    """Multiply by `factor` when the observed score has not improved for more than `patience` validations.

    As torch's ReduceLROnPlateau: an improvement is a value below best - `threshold` * |best|; NaN never is one. The
    factor does not fall below `floor`.
    """

    def __init__(
        self, plan: Plan, factor: float = 0.1, patience: int = 10, threshold: float = 1e-4, floor: float = 0.0
    ):
        super().__init__(plan, lambda step: self.factor)
        _between("factor", factor, 0, 1, open_ends=True)
        _between("threshold", threshold, 0, 1)
        _between("floor", floor, 0, 1)
        _whole("patience", patience, 0)
        self.reduce_by, self.patience, self.threshold, self.floor = factor, patience, threshold, floor
        self.factor, self.waited = 1.0, 0
        self.best: float | None = None

    def observe(self, value: float) -> None:
        bar = math.inf if self.best is None else self.best - self.threshold * abs(self.best)
        if value < bar:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = max(self.factor * self.reduce_by, self.floor), 0

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.best, self.waited = state["factor"], state["best"], state["waited"]


# The schedules: each takes the plan and its arguments, checks them, and gives the factor as a function of the step.


def _constant(plan: Plan) -> Body:
    return lambda step: 1.0


def _step(plan: Plan, every: int, gamma: float = 0.1) -> Body:
    plan.need_epochs()
    _whole("every", every, 1)
    _positive("gamma", gamma)
    return lambda step: gamma ** (plan.epoch(step) // every)


def _multi_step(plan: Plan, milestones: Sequence[int], gamma: float = 0.1) -> Body:
    plan.need_epochs()
    _positive("gamma", gamma)
    milestones = list(milestones)
    for milestone in milestones:
        _whole("each milestone", milestone, 1)
    if milestones != sorted(milestones):
        raise UsageError(f"the milestones are {milestones}", expected="epochs in rising order")
    return lambda step: gamma ** bisect.bisect_right(milestones, plan.epoch(step))


def _exponential(plan: Plan, gamma: float) -> Body:
    plan.need_epochs()
    _positive("gamma", gamma)
    return lambda step: gamma ** plan.epoch(step)


def _share(plan: Plan) -> Body:
    """How far a step is through the steps after the warm-up: from 0 in the first to 1 beyond the last."""
    span, warmup = plan.span(), plan.warmup
    return lambda step: min(max(step - warmup, 0), span) / span


def _cosine(plan: Plan, floor: float = 0.0) -> Body:
    """floor + (1 - floor) (1 + cos(pi share)) / 2 (Loshchilov and Hutter, 2017, without restarts)."""
    _between("floor", floor, 0, 1)
    share = _share(plan)
    return lambda step: floor + (1 - floor) * (1 + math.cos(math.pi * share(step))) / 2


def _linear(plan: Plan, floor: float = 0.0) -> Body:
    _between("floor", floor, 0, 1)
    share = _share(plan)
    return lambda step: 1 - (1 - floor) * share(step)


def _one_cycle(plan: Plan, rise: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Body:
    """From `start` to 1 over the first share `rise` of the steps, then down to `end`, both along a half cosine
    (Smith and Topin, 2018, in torch's two-phase form: its div_factor is 1 / start, final_div_factor start / end)."""
    _between("rise", rise, 0, 1, open_ends=True)
    _between("start", start, 0, 1)
    _between("end", end, 0, 1)
    last, warmup = plan.span() - 1, plan.warmup
    top = max(rise * (last + 1) - 1, 0.0)  # the step of the peak, which may lie between two steps

    def factor(step: int) -> float:
        t = min(max(step - warmup, 0), last)
        if t < top:
            return _half_cosine(start, 1.0, t / top)
        return _half_cosine(1.0, end, (t - top) / (last - top)) if last > top else 1.0

    return factor


def _half_cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def _inverse_sqrt(plan: Plan) -> Body:
    """sqrt((warmup + 1) / (step + 1)) after the warm-up (Vaswani et al., 2017, section 5.3, with its peak at 1)."""
    peak = plan.warmup + 1
    return lambda step: math.sqrt(peak / max(step + 1, peak))


_BODIES: dict[str, Callable[..., Body]] = {
    "constant": _constant,
    "step": _step,
    "multi_step": _multi_step,
    "exponential": _exponential,
    "cosine": _cosine,
    "linear": _linear,
    "one_cycle": _one_cycle,
    "inverse_sqrt": _inverse_sqrt,
}


def _warmup_steps(warmup: float, steps: int | None) -> int:
    share = isinstance(warmup, float)
    number = isinstance(warmup, (int, float)) and not isinstance(warmup, bool)
    if not number or not 0 <= warmup < (1 if share else math.inf):
        raise UsageError(
            f"the warm-up is {warmup!r}", expected="a whole number of steps, or a share of them: a float below 1"
        )
    if share and warmup and steps is None:
        raise UsageError(f"the warm-up is a share ({warmup}) of steps that are not known", fix="give it in steps")
    count = round(warmup * (steps or 0)) if share else int(warmup)
    if count and steps is not None and count >= steps:
        raise UsageError(f"the warm-up takes {count} steps of {steps}", expected="a warm-up shorter than the training")
    return count


def _between(name: str, value: float, low: float, high: float, open_ends: bool = False) -> None:
    _number(name, value)
    if not (low < value < high if open_ends else low <= value <= high):
        raise UsageError(f"{name} is {value!r}", expected=f"{'strictly ' if open_ends else ''}between {low} and {high}")


def _positive(name: str, value: float) -> None:
    _number(name, value)
    if not (0 < value < math.inf):
        raise UsageError(f"{name} is {value!r}", expected="a finite number above 0")


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}", expected=f"a whole number, {least} or more")


def _number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{name} is {value!r}", expected="a number")
