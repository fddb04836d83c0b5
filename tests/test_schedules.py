"""Schedules: torch's schedulers step by step, the last step to the letter, and nothing remembered but by plateau."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lamina import schedules
from lamina.errors import UsageError

PEAK = 0.3


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def _torch_rates(make_scheduler, steps: int, every: int = 1) -> list[float]:
    """The rate of each step, the scheduler advanced after every `every` steps."""
    optimizer = _optimizer()
    scheduler = make_scheduler(optimizer)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < steps:
            scheduler.step()
    return rates


def _rates(name: str, steps: int, per_epoch: int = 5, **arguments) -> list[float]:
    schedule = schedules.make(name, steps=steps, steps_per_epoch=per_epoch, **arguments)
    return [PEAK * schedule(step) for step in range(steps)]


@pytest.mark.parametrize(
    "name, arguments, scheduler, every",
    [
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0), 1),
        ("step", {"every": 3, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 3, 0.5), 5),
        (
            "multi_step",
            {"milestones": [2, 3, 7], "gamma": 0.2},
            lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 7], 0.2),
            5,
        ),
        ("exponential", {"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9), 5),
        ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40), 1),
        ("cosine", {"floor": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1 * PEAK), 1),
        ("linear", {"floor": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=40), 1),
        ("one_cycle", {}, lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=40, cycle_momentum=False), 1),
        (
            "one_cycle",
            {"rise": 0.23, "start": 0.1, "end": 0.001},
            lambda o: lr_scheduler.OneCycleLR(
                o, PEAK, total_steps=40, pct_start=0.23, div_factor=10, final_div_factor=100, cycle_momentum=False
            ),
            1,
        ),
    ],
)
def test_the_rates_are_those_of_torchs_scheduler(name, arguments, scheduler, every):
    assert _rates(name, 40, **arguments) == pytest.approx(_torch_rates(scheduler, 40, every), rel=1e-9)


@given(
    st.lists(st.one_of(st.floats(0.001, 10), st.just(math.nan)), min_size=1, max_size=40),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_plateau_is_torchs_whatever_the_scores(scores, patience, threshold):
    optimizer = _optimizer()
    reference = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, threshold=threshold, eps=0)
    schedule = schedules.make(
        "plateau", steps=None, steps_per_epoch=None, factor=0.5, patience=patience, threshold=threshold
    )
    for score in scores:
        reference.step(score)
        schedule.observe(score)
        assert PEAK * schedule(0) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_improves_downwards_also_below_zero():
    """Torch takes 10 % above a negative best for an improvement; below it is meant."""
    schedule = schedules.make("plateau", steps=None, steps_per_epoch=None, patience=0, threshold=0.1)
    schedule.observe(-1.0)
    schedule.observe(-0.95)
    assert schedule(0) == pytest.approx(0.1)
    schedule.observe(-1.2)
    assert schedule(0) == pytest.approx(0.1)


def test_plateau_stops_at_its_floor():
    schedule = schedules.make("plateau", steps=None, steps_per_epoch=None, patience=0, factor=0.5, floor=0.2)
    for _ in range(9):
        schedule.observe(1.0)
    assert schedule(0) == 0.2


def test_a_saved_and_loaded_plateau_goes_on():
    scores = [3.0, 2.0, 2.5, 2.4, math.nan, 1.0, 1.1, 1.2, 1.3]

    def make():
        return schedules.make("plateau", steps=None, steps_per_epoch=None, patience=1)

    straight, first, second = make(), make(), make()
    for score in scores:
        straight.observe(score)
    for score in scores[:4]:
        first.observe(score)
    second.load_state_dict(first.state_dict())
    for score in scores[4:]:
        second.observe(score)
    assert second.state_dict() == straight.state_dict() and second(0) == straight(0) < 1


def test_the_last_step_gets_what_the_docstring_says():
    steps = 100
    assert _rates("cosine", steps)[-1] == pytest.approx(PEAK * math.sin(math.pi / (2 * steps)) ** 2)
    assert _rates("linear", steps, floor=0.5)[-1] == pytest.approx(PEAK * (0.5 + 0.5 / steps))
    assert _rates("one_cycle", steps, end=0.01)[-1] == pytest.approx(PEAK * 0.01)
    cosine = schedules.make("cosine", steps=steps, steps_per_epoch=None, floor=0.25)
    assert cosine(steps) == cosine(10 * steps) == 0.25


ALL = {
    "step": {"every": 2},
    "multi_step": {"milestones": [3]},
    "exponential": {"gamma": 0.9},
}


@pytest.mark.parametrize("name", schedules.names())
def test_the_warm_up_rises_in_equal_strides_to_the_schedule(name):
    """Over the warm-up, factor / (what it is multiplied with) is 1/11, 2/11, ... 10/11."""
    arguments = ALL.get(name, {})
    warm = schedules.make(name, steps=60, steps_per_epoch=30, warmup=10, **arguments)
    start = {"one_cycle": 0.04}.get(name, 1.0)
    assert [warm(step) for step in range(11)] == pytest.approx([start * (step + 1) / 11 for step in range(11)])


@pytest.mark.parametrize("name", ["cosine", "linear", "one_cycle"])
def test_schedules_with_an_end_stretch_over_what_the_warm_up_leaves(name):
    warm = schedules.make(name, steps=60, steps_per_epoch=None, warmup=10)
    plain = schedules.make(name, steps=50, steps_per_epoch=None)
    assert [warm(10 + step) for step in range(50)] == [plain(step) for step in range(50)]


def test_epochs_are_counted_from_the_start_whatever_the_warm_up():
    schedule = schedules.make("multi_step", steps=None, steps_per_epoch=10, warmup=5, milestones=[1, 3], gamma=0.5)
    assert [schedule(step) for step in (9, 10, 29, 30)] == [1.0, 0.5, 0.5, 0.25]


def test_inverse_sqrt_is_the_transformers_formula():
    """Vaswani et al. (2017): rate ~ min(n ** -0.5, n * warmup ** -1.5) for step n = 1, 2, ...; its peak set to 1."""
    schedule = schedules.make("inverse_sqrt", steps=None, steps_per_epoch=None, warmup=99)
    for step in (0, 7, 98, 99, 100, 5000):
        n = step + 1
        assert schedule(step) == pytest.approx(min(n**-0.5, n * 100**-1.5) * 100**0.5)


def test_a_share_of_warm_up_is_steps():
    share = schedules.make("cosine", steps=200, steps_per_epoch=None, warmup=0.05)
    steps = schedules.make("cosine", steps=200, steps_per_epoch=None, warmup=10)
    assert [share(step) for step in range(200)] == [steps(step) for step in range(200)]


@given(
    st.sampled_from([name for name in schedules.names() if name != "plateau"]),
    st.integers(1, 50),
    st.integers(1, 20),
    st.sampled_from([0, 0.1, 0.5]),
)
def test_every_factor_is_in_0_to_1_whatever_the_plan_and_the_order_of_asking(name, steps, per_epoch, warmup):
    if isinstance(warmup, float) and round(warmup * steps) >= steps:
        warmup = 0
    schedule = schedules.make(name, steps=steps, steps_per_epoch=per_epoch, warmup=warmup, **ALL.get(name, {}))
    forwards = [schedule(step) for step in range(steps + 3)]
    assert all(0 <= factor <= 1 for factor in forwards)
    assert forwards[0] > 0
    assert [schedule(step) for step in reversed(range(steps + 3))] == forwards[::-1]


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("cosinus", {}, "did you mean 'cosine'"),
        ("cosine", {"flor": 0.1}, "did you mean 'floor'"),
        ("constant", {"gamma": 0.1}, "no argument 'gamma'"),
        ("step", {}, "needs every"),
        ("multi_step", {"milestones": [3, 1]}, "rising order"),
        ("multi_step", {"milestones": [0.5]}, "whole number"),
        ("exponential", {"gamma": -1}, "above 0"),
        ("cosine", {"floor": 1.5}, "between 0 and 1"),
        ("cosine", {"floor": "0"}, "expected|Expected"),
        ("one_cycle", {"rise": 1.0}, "strictly between"),
        ("plateau", {"factor": 1.0}, "strictly between"),
        ("plateau", {"patience": -1}, "0 or more"),
        ("cosine", {"warmup": 1.0}, "below 1"),
        ("cosine", {"warmup": -1}, "warm-up is -1"),
        ("cosine", {"warmup": 100}, "100 steps of 100"),
        ("cosine", {"steps": None}, "steps is not known"),
        ("constant", {"steps": None, "warmup": 0.1}, "not known"),
        ("exponential", {"gamma": 0.9, "steps_per_epoch": None}, "counts epochs"),
        ("cosine", {"steps": 0}, "1 or more"),
    ],
)
def test_a_mistake_is_named_with_its_cure(name, arguments, words):
    with pytest.raises(UsageError, match=words):
        schedules.make(name, **{"steps": 100, "steps_per_epoch": 10, **arguments})
