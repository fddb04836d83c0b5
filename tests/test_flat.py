"""An update of what lies flat is torch's own update to the bit; what cannot lie flat is told; what was moved is noticed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lamina import flat, optimizers

SIZES: list[tuple[int, ...]] = [(16,), (1,), (7, 13), (), (4, 8), (16, 3, 5, 5), (33,), (8, 6, 3, 3), (160,)]
Pair = tuple[list[nn.Parameter], torch.optim.Optimizer]

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "sgd, decayed": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.03, maximize=True, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam, decayed": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-5, fused=True),
    "adam, decoupled": lambda p: torch.optim.Adam(
        p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True, fused=True
    ),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, maximize=True, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw, all": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.2, amsgrad=True, maximize=True, fused=True),
    "ours": lambda p: optimizers.make("adamw", p, learning_rate=0.01, fused=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.03),
    "plain momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "plain adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "plain amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True, maximize=True),
    "plain adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop, all": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "nadam, foreach": lambda p: torch.optim.NAdam(p, lr=0.01, foreach=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, lr_decay=0.1, initial_accumulator_value=0.2),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, weight_decay=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, t0=4, weight_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p),
    "ours, plain": lambda p: optimizers.make("rmsprop", p, learning_rate=0.01),
}


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def some(sizes: list[tuple[int, ...]] = SIZES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    found = [nn.Parameter(torch.randn(size, dtype=dtype)) for size in sizes]
    for p in found:
        if p.ndim == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return found


def pair(make: Callable[[Any], torch.optim.Optimizer], parameters: list[nn.Parameter]) -> tuple[Pair, Pair]:
    """The same twice: for torch, and to be laid flat."""
    other = [nn.Parameter(p.detach().clone()) for p in parameters]
    return (parameters, make(parameters)), (other, make(other))


def gradients(parameters: list[nn.Parameter], step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [torch.empty_like(p).normal_(generator=draw) for p in parameters]


def step(one: Pair, other: Pair, laid: flat.Flat, number: int) -> None:
    found = gradients(one[0], number)
    for p, gradient in zip(one[0], found, strict=True):
        p.grad = gradient
    one[1].step()
    for place, gradient in zip(laid.gradients, found, strict=True):
        place.copy_(gradient)
    laid.update()
    assert_same(one, other)


def assert_same(one: Pair, other: Pair) -> None:
    assert [bits(p) for p in one[0]] == [bits(p) for p in other[0]]
    assert [p.stride() for p in one[0]] == [p.stride() for p in other[0]]
    for p, q in zip(one[0], other[0], strict=True):
        ours, torchs = other[1].state.get(q, {}), one[1].state.get(p, {})
        assert ours.keys() == torchs.keys()
        for name, value in torchs.items():
            assert (value is None and ours[name] is None) or bits(value) == bits(ours[name]), name


# --- Updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_have_the_bits_of_torch(kind: str, dtype: torch.dtype) -> None:
    one, other = pair(KINDS[kind], some(dtype=dtype))
    assert flat.why_not(other[1], other[0]) == ""
    laid = flat.Flat(other[1], other[0])
    for number in range(12):
        step(one, other, laid, number)
        assert laid.intact()


def test_one_update_is_one_call_for_what_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does run flat: after the first step torch's own is not called, and all multiples of 16 are one tensor."""
    one, other = pair(KINDS["adamw"], some())
    laid = flat.Flat(other[1], other[0])
    step(one, other, laid, 0)
    monkeypatch.setattr(type(other[1]), "step", None)
    seen: list[int] = []
    kernel = torch._fused_adamw_
    monkeypatch.setattr(torch, "_fused_adamw_", lambda p, *a, **k: (seen.append(len(p)), kernel(p, *a, **k)))
    for place in laid.gradients:
        place.fill_(0.5)
    laid.update()
    assert seen == [1 + sum(p.numel() % 16 != 0 for p in other[0])]


class Counter:
    """A wrapper that is no function, as some tools put around a method."""

    def __init__(self, inner: Callable[..., Any]):
        self.__wrapped__ = inner

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else functools.partial(self, owner)

    def __call__(self, *given: Any, **more: Any) -> Any:
        return self.__wrapped__(*given, **more)


@pytest.mark.parametrize("wrapper", [Counter, None])
def test_what_somebody_wrapped_around_the_step_of_a_class_is_called(
    monkeypatch: pytest.MonkeyPatch, wrapper: Any
) -> None:
    one, other = pair(KINDS["rmsprop"], some())
    called: list[bool] = []
    inner = torch.optim.RMSprop.step

    @functools.wraps(inner)
    def wrapped(self: Any, *given: Any, **more: Any) -> Any:
        called.append(self is one[1])
        return inner(self, *given, **more)

    monkeypatch.setattr(torch.optim.RMSprop, "step", wrapped if wrapper is None else wrapper(wrapped))
    laid = flat.Flat(other[1], other[0])
    for number in range(3):
        step(one, other, laid, number)
    assert called == [True, False] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_first_steps_the_optimisers_own_is_not_called(kind: str) -> None:
    """Neither it nor its hooks: it does run flat."""
    one, other = pair(KINDS[kind], some())
    laid = flat.Flat(other[1], other[0])
    step(one, other, laid, 0)
    other[1].step = None  # type: ignore[assignment]  # as a scheduler replaces it
    for number in range(1, 4):
        step(one, other, laid, number)


@pytest.mark.parametrize("size", [256 * 1024, 100_003])
@pytest.mark.parametrize(
    "kind", ["adamw", "nesterov", "plain adam", "plain momentum", "rmsprop, all", "radam", "rprop"]
)
def test_sizes_that_threads_share(size: int, kind: str) -> None:
    torch.set_num_threads(2)
    one, other = pair(KINDS[kind], some([(size,), (64, 512), (91,)]))
    laid = flat.Flat(other[1], other[0])
    for number in range(3):
        step(one, other, laid, number)


def test_joining_all_sizes_would_give_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: laid end to end, numbers come into vectors that torch finishes one by one."""
    monkeypatch.setattr(flat, "_LANE", 1)
    one, other = pair(KINDS["adamw"], some([(7, 13)] * 4 + [(33,)] * 4))
    laid = flat.Flat(other[1], other[0])
    with pytest.raises(AssertionError):
        all(step(one, other, laid, number) is None for number in range(20))


def grouped(kind: Any, parameters: list[nn.Parameter], **keywords: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters[::3], "lr": 0.1, "weight_decay": 0.0},
        {"params": parameters[1::3]},
        {"params": parameters[2::3], "lr": 0.003, "weight_decay": 0.5},
    ]
    return kind(groups, lr=0.02, **keywords)


@pytest.mark.parametrize(("kind", "keywords"), [
    *[(kind, {"amsgrad": True, "fused": fused}) for kind in (torch.optim.AdamW, torch.optim.Adam) for fused in (True, False)],
    *[(torch.optim.SGD, {"momentum": 0.9, "fused": fused}) for fused in (True, False)],
    (torch.optim.RMSprop, {"momentum": 0.9}), (torch.optim.NAdam, {}), (torch.optim.ASGD, {"t0": 3}), (torch.optim.Adagrad, {}),
])  # fmt: skip
def test_groups_with_their_own_settings_that_change(kind: Any, keywords: dict[str, Any]) -> None:
    one, other = pair(lambda p: grouped(kind, p, **keywords), some())
    laid = flat.Flat(other[1], other[0])
    for number in range(10):
        for _, optimizer in (one, other):
            for k, group in enumerate(optimizer.param_groups):
                group["lr"] = 0.1 / (1 + number + k)
                if "momentum" in group:
                    group["momentum"] = 0.9 - 0.05 * number
                elif "betas" in group:
                    group["betas"] = (0.9 - 0.02 * number, 0.99)
        step(one, other, laid, number)


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("plan", [[0.0, 0.0, 0.9, 0.9, 0.9], [0.9, 0.9, 0.0, 0.0, 0.9], [0.0, 0.5, 0.0, 0.5, 0.5]])
def test_a_momentum_that_comes_and_goes(plan: list[float], fused: bool | None) -> None:
    one, other = pair(lambda p: torch.optim.SGD(p, lr=0.1, momentum=plan[0], fused=fused), some())
    laid = flat.Flat(other[1], other[0])
    for number, momentum in enumerate(plan * 2):
        one[1].param_groups[0]["momentum"] = other[1].param_groups[0]["momentum"] = momentum
        step(one, other, laid, number)
        assert laid.intact()


@pytest.mark.parametrize("kind", [lambda groups: torch.optim.SGD(groups, lr=0.1, fused=True), torch.optim.SGD,
                                  torch.optim.RMSprop], ids=["fused", "sgd", "rmsprop"])  # fmt: skip
def test_momentum_in_one_group_alone(kind: Any) -> None:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return kind([{"params": parameters[:4]}, {"params": parameters[4:], "momentum": 0.9}])  # type: ignore[no-any-return]

    one, other = pair(make, some())
    laid = flat.Flat(other[1], other[0])
    for number in range(5):
        step(one, other, laid, number)


def test_amsgrad_that_is_turned_off() -> None:
    one, other = pair(KINDS["amsgrad"], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(6):
        one[1].param_groups[0]["amsgrad"] = other[1].param_groups[0]["amsgrad"] = number < 3
        step(one, other, laid, number)


def test_parameters_without_gradient_stay_as_they_are() -> None:
    one, other = pair(KINDS["adamw"], some())
    laid = flat.Flat(other[1], other[0][2:])
    untouched = [p.detach().clone() for p in other[0][:2]]
    part, rest = (one[0][2:], one[1]), (other[0][2:], other[1])
    for number in range(4):
        step(part, rest, laid, number)
    assert all(torch.equal(p, q) for p, q in zip(other[0][:2], untouched, strict=True))
    assert not any(p in other[1].state for p in other[0][:2])


_sizes = st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.sampled_from(sorted(KINDS)), _sizes, st.booleans(), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_sizes(kind: str, sizes: list[tuple[int, ...]], double: bool, resumed: int, order: Any) -> None:
    """Axes in any order, and a state that is there already when the parameters are laid flat."""
    parameters = some(sizes, torch.float64 if double else torch.float32)
    for p in parameters:
        axes = order.sample(range(p.ndim), p.ndim)
        p.data = p.data.permute(axes)
    one, other = pair(KINDS[kind], parameters)
    assert flat.why_not(other[1], other[0]) == ""
    for number in range(resumed):
        for own, optimizer in (one, other):
            for p, gradient in zip(own, gradients(parameters, number), strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    laid = flat.Flat(other[1], other[0])
    for number in range(resumed, resumed + 4):
        step(one, other, laid, number)


# --- The optimiser's state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_from_a_saved_state(kind: str) -> None:
    one, other = pair(KINDS[kind], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(4):
        step(one, other, laid, number)
    saved = copy.deepcopy(other[1].state_dict())
    values = [p.detach().clone() for p in other[0]]
    third = [nn.Parameter(p.detach().clone()) for p in other[0]]
    resumed = KINDS[kind](third)
    resumed.load_state_dict(saved)
    laid_third = flat.Flat(resumed, third)
    for number in range(4, 8):
        step(one, other, laid, number)
    one_again = ([nn.Parameter(value) for value in values], None)
    one_again = (one_again[0], KINDS[kind](one_again[0]))
    one_again[1].load_state_dict(copy.deepcopy(saved))
    for number in range(4, 8):
        step(one_again, (third, resumed), laid_third, number)
    assert [bits(p) for p in third] == [bits(p) for p in other[0]]


def test_the_state_holds_the_numbers_of_now() -> None:
    one, other = pair(KINDS["adamw"], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(3):
        step(one, other, laid, number)
    ours, torchs = other[1].state_dict()["state"], one[1].state_dict()["state"]
    assert all(bits(ours[k][name]) == bits(torchs[k][name]) for k in torchs for name in torchs[k])
    assert float(ours[0]["step"]) == 3


@pytest.mark.parametrize("kind", ["adam", "plain adam", "nadam", "asgd"])
def test_states_of_different_age_are_left_to_torch(kind: str) -> None:
    one, other = pair(KINDS[kind], some())
    for own, optimizer in (one, other):
        for p, gradient in zip(own[:3], gradients(one[0], 9), strict=False):
            p.grad = gradient
        optimizer.step()
    laid = flat.Flat(other[1], other[0])
    for number in range(4):
        step(one, other, laid, number)
    assert [float(other[1].state[p]["step"]) for p in other[0]] == [5.0] * 3 + [4.0] * (len(SIZES) - 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_separate_gives_everything_memory_of_its_own(kind: str, steps: int) -> None:
    one, other = pair(KINDS[kind], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(steps):
        step(one, other, laid, number)
    for p, place in zip(other[0], laid.gradients, strict=True):
        p.grad = place
    found = [bits(place) for place in laid.gradients]
    laid.separate()
    assert_same(one, other)
    assert [bits(p.grad) for p in other[0]] == found  # type: ignore[arg-type]
    everything = [*other[0], *(p.grad for p in other[0])]
    everything += [v for state in other[1].state.values() for v in state.values() if isinstance(v, Tensor)]
    storages = {t.untyped_storage()._cdata for t in everything}  # type: ignore[union-attr]
    assert len(storages) == len(everything)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in everything)  # type: ignore[union-attr]
    assert not laid.intact()
    assert flat.why_not(other[1], other[0]) == ""
    again = flat.Flat(other[1], other[0])
    for number in range(5, 8):
        step(one, other, again, number)


# --- What others change -----------------------------------------------------------------------------------------------


def _data(laid: flat.Flat) -> None:
    laid.parameters[2].data = laid.parameters[2].data.clone()


def _state(laid: flat.Flat) -> None:
    state = laid.optimizer.state[laid.parameters[3]]
    state["exp_avg"] = state["exp_avg"].clone()


def _step(laid: flat.Flat) -> None:
    state = laid.optimizer.state[laid.parameters[0]]
    state["step"] = state["step"].clone()  # equal in value, and another


def _table(laid: flat.Flat) -> None:
    laid.optimizer.state[laid.parameters[0]] = dict(laid.optimizer.state[laid.parameters[0]])


CHANGES: dict[str, Callable[[flat.Flat], Any]] = {
    "a parameter's data": _data,
    "a state": _state,
    "a step": _step,
    "a table of states": _table,
    "a state that is gone": lambda laid: laid.optimizer.state[laid.parameters[1]].pop("exp_avg_sq"),
    "all states": lambda laid: laid.optimizer.state.clear(),
    "loaded": lambda laid: laid.optimizer.load_state_dict(copy.deepcopy(laid.optimizer.state_dict())),
    "a new group": lambda laid: laid.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]}),
    "settings": lambda laid: laid.optimizer.param_groups.__setitem__(0, dict(laid.optimizer.param_groups[0])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_put_in_another_place_is_noticed(name: str) -> None:
    one, other = pair(KINDS["adamw"], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(3):
        step(one, other, laid, number)
        assert laid.intact()
    CHANGES[name](laid)
    assert not laid.intact()


def test_what_is_changed_in_place_is_no_matter() -> None:
    one, other = pair(KINDS["adamw"], some())
    laid = flat.Flat(other[1], other[0])
    for number in range(3):
        step(one, other, laid, number)
    with torch.no_grad():
        for own, optimizer in (one, other):
            own[0].mul_(2)
            own[5].copy_(torch.ones_like(own[5]))
            optimizer.state[own[2]]["exp_avg"].zero_()
            optimizer.param_groups[0]["lr"] = 0.5
    assert laid.intact()
    for number in range(3, 6):
        step(one, other, laid, number)


def test_loading_before_the_first_step_is_noticed() -> None:
    _, other = pair(KINDS["sgd"], some())
    laid = flat.Flat(other[1], other[0])
    assert laid.intact()
    other[1].load_state_dict(copy.deepcopy(other[1].state_dict()))
    assert not laid.intact()  # its rates are in other dictionaries now


# --- Reasons ----------------------------------------------------------------------------------------------------------


class Own(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Kind(Tensor):
    pass


def with_hook(optimizer: Any) -> Any:
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


def after_hook(optimizer: Any) -> Any:
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def scheduled(optimizer: Any) -> Any:
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


def fused(parameters: Any, **keywords: Any) -> Any:
    return torch.optim.Adam(parameters, **{"lr": 0.1, "fused": True, **keywords})


def a(*sizes: int, **keywords: Any) -> nn.Parameter:
    return nn.Parameter(torch.randn(*sizes, **keywords))


def shared() -> list[nn.Parameter]:
    first = a(4, 4)
    return [first, nn.Parameter(first.detach().t())]


def subclass() -> nn.Parameter:
    return nn.Parameter(torch.randn(3).as_subclass(Kind))


REASONS: dict[str, tuple[Callable[[], tuple[Any, list[Any]]], str]] = {
    "another kind": (lambda: with_all(torch.optim.Adafactor, [a(3)]), "one by one"),
    "adagrad": (lambda: with_all(lambda p: torch.optim.Adagrad(p, fused=True), [a(3)]), "fused kernels of its own"),
    "a subclass": (lambda: with_all(lambda p: Own(p, fused=True), [a(3)]), "one by one"),
    "large, not fused": (lambda: with_all(torch.optim.AdamW, [a(600_000), a(600_000)]), "more than 1,048,576"),
    "one group not fused": (
        lambda: with_all(lambda p: fused([{"params": p[:1]}, {"params": p[1:], "fused": False}]), [a(3), a(4)]),
        "for some groups alone",
    ),
    "hook before": (lambda: with_all(lambda p: with_hook(fused(p)), [a(3)]), "hooks"),
    "hook after": (lambda: with_all(lambda p: after_hook(fused(p)), [a(3)]), "hooks"),
    "a scheduler that counts": (lambda: with_all(lambda p: scheduled(fused(p)), [a(3)]), "replaced"),
    "rate": (lambda: with_all(lambda p: fused(p, lr=torch.tensor(0.1)), [a(3)]), "a tensor"),
    "betas": (lambda: with_all(lambda p: tensor_betas(fused(p)), [a(3)]), "a tensor"),
    "types": (lambda: with_all(fused, [a(3), a(3, dtype=torch.float64)]), "several types"),
    "bf16": (lambda: with_all(fused, [a(3, dtype=torch.bfloat16)]), "bfloat16"),
    "none": (lambda: (fused([a(3)]), []), "no parameters"),
    "own type": (lambda: with_all(fused, [subclass()]), "not a dense tensor"),
    "gaps": (lambda: with_all(fused, [nn.Parameter(torch.randn(6, 4)[:, ::2])]), "not a dense tensor"),
    "stride 0": (lambda: with_all(fused, [nn.Parameter(torch.randn(1, 4).expand(3, 4))]), "not a dense tensor"),
    "empty": (lambda: with_all(fused, [a(0)]), "not a dense tensor"),
    "part": (lambda: with_all(fused, [nn.Parameter(torch.randn(8)[2:6])]), "part of another"),
    "shared": (lambda: with_all(fused, shared()), "share memory"),
    "shared with one that has no gradient": (lambda: the_first(fused, shared()), "share memory"),
    "not in it": (lambda: (fused([a(3)]), [a(3)]), "does not hold"),
}


def with_all(make: Callable[[Any], Any], parameters: list[Any]) -> tuple[Any, list[Any]]:
    return make(parameters), parameters


def the_first(make: Callable[[Any], Any], parameters: list[Any]) -> tuple[Any, list[Any]]:
    return make(parameters), parameters[:1]


def tensor_betas(optimizer: Any) -> Any:
    optimizer.param_groups[0]["betas"] = (torch.tensor(0.9), torch.tensor(0.99))
    return optimizer


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_lie_flat_is_told(name: str) -> None:
    make, words = REASONS[name]
    assert words in flat.why_not(*make())


@pytest.fixture
def hook_of_all() -> Iterator[None]:
    handle = register_optimizer_step_post_hook(lambda *_: None)
    yield
    handle.remove()


def test_hooks_of_all_optimisers_are_told(hook_of_all: None) -> None:
    parameters = [a(3)]
    assert "all optimisers" in flat.why_not(fused(parameters), parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_silent_where_nothing_speaks_against_it(kind: str) -> None:
    parameters = [a(3, 4), a(5), nn.Parameter(torch.randn(4, 3).t()), nn.Parameter(torch.ones(()))]
    assert flat.why_not(KINDS[kind](parameters), parameters) == ""
    assert flat.why_not(KINDS[kind](parameters), parameters[:2]) == ""


# --- Clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0.1, 1.0, 1e9, float("inf")])
def test_clipping_is_that_of_torch(largest: float) -> None:
    parameters = some()
    laid = flat.Flat(fused(parameters), parameters)
    found = gradients(parameters, 0)
    for p, place, gradient in zip(parameters, laid.gradients, found, strict=True):
        place.copy_(gradient)
        p.grad = gradient
    wanted = nn.utils.clip_grad_norm_(parameters, largest)
    norm = flat.clip_norm(laid.gradient, largest)
    assert torch.allclose(norm, wanted)
    assert all(torch.allclose(p.grad, place) for p, place in zip(parameters, laid.gradients, strict=True))
