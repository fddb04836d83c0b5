"""What is chosen for a machine follows from the figures, and the trial leaves nothing behind."""

from __future__ import annotations

import copy
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina import lanes, layouts, trial
from lamina.batches import Batch
from lamina.engine import supervised
from lamina.errors import UsageError

torch.manual_seed(0)
X, Y = torch.randn(8, 6), torch.randint(0, 3, (8,))
PICTURES = torch.randn(4, 3, 8, 8)


def batch(x=X, y=Y):
    return Batch((x,), y, torch.arange(len(x)), len(x), known=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.drop, self.two = (
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.two(self.drop(torch.relu(self.norm(self.one(x)))))


class Learned(nn.Module):
    """A loss with a parameter and a buffer that it writes to."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, truth):
        self.seen.add_(1)
        return F.cross_entropy(output, truth) * self.scale


@pytest.fixture
def steps(monkeypatch):
    """Steps take as long as a table says: (threads, precision) -> seconds."""
    table = {}

    def seconds(way, *_, **__):
        half = isinstance(way.lane.autocast, torch.autocast)
        return table[torch.get_num_threads(), "bf16" if half else "fp32"]

    monkeypatch.setattr(trial._Way, "seconds", seconds)
    return table


def all_of(net, *others):
    """Everything that a trial might change, as it is now."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for other in others:
        state |= {f"other {name}": value.clone() for name, value in other.state_dict().items()}
    modules = [m.training for m in net.modules()]
    gradients = [p.grad is None for part in (net, *others) for p in part.parameters()]
    strides = [p.stride() for p in net.parameters()]
    places = [p.data_ptr() for p in net.parameters()]
    numpy = np.random.get_state()[1].tolist()
    return (
        state,
        (modules, gradients, strides, places, torch.get_num_threads(), random.getstate(), numpy),
        torch.get_rng_state(),
    )


def assert_untouched(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])


class Writes(Net):
    def forward(self, x):
        return super().forward(torch.relu_(x))


@pytest.mark.parametrize("kind", [Net, Writes])
@pytest.mark.parametrize("heavy", [False, True])
def test_nothing_is_left_behind(monkeypatch, heavy, kind):
    if heavy:  # all trials are made
        monkeypatch.setattr(trial, "_HEAVY", 0.0)
        monkeypatch.setattr(trial, "_has_bf16", lambda: True)
        monkeypatch.setattr(trial, "_in_turn", lambda one, other: (2.0, 1.0))
    torch.set_num_threads(2)
    net, loss, x = kind(), Learned(), X.clone()
    net.drop.eval()
    before = all_of(net, loss)
    found = trial.choose(net, supervised(loss), batch(x))
    assert_untouched(before, all_of(net, loss))
    assert torch.equal(x, X)
    assert found.recorded == (kind is Net) and 0 < found.seconds < 10


def test_an_error_in_the_net_leaves_threads_and_buffers_as_they_were():
    class Fails(Net):
        def forward(self, x):
            return super().forward(x) @ torch.ones(7, 7)

    torch.set_num_threads(2)
    net, loss = Fails(), Learned()
    before = all_of(net, loss)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trial.choose(net, supervised(loss), batch(), threads=1)
    assert_untouched(before, all_of(net, loss))


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, x):
        self.n += 1
        return super().forward(x)


def test_a_net_that_keeps_traces_is_not_called():
    net = Counts()
    found = trial.choose(net, supervised(F.cross_entropy), batch())
    assert (
        net.n == 0 and not found.recorded and found.why_eager == "Counts.forward sets n" and math.isnan(found.seconds)
    )
    assert found.threads == torch.get_num_threads() and found.precision == "fp32"


def test_a_net_that_cannot_be_copied_is_not_called():
    net = Net()
    net.last = net.one(X)  # copies refuse what is the result of a step
    with pytest.raises(RuntimeError):
        copy.deepcopy(net)
    found = trial.choose(net, supervised(F.cross_entropy), batch())
    assert not found.recorded and "cannot be copied" in found.why_eager
    net = Net()
    net.lock = threading.Lock()
    assert trial.choose(net, supervised(F.cross_entropy), batch()).why_eager


class Branches(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.two(self.one(x))


def test_a_net_that_cannot_be_recorded_is_measured_eagerly():
    found = trial.choose(Branches(), supervised(F.cross_entropy), batch())
    assert not found.recorded and "reads values" in found.why_eager and found.seconds > 0
    found = trial.choose(Net(), supervised(F.cross_entropy), batch(), compile="off")
    assert not found.recorded and found.why_eager == "compile is off" and found.seconds > 0


def test_compile_on_is_refused_before_the_first_step():
    with pytest.raises(UsageError, match="cannot be recorded"):
        trial.choose(Branches(), supervised(F.cross_entropy), batch(), compile="on")


# --- Threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("several", "alone", "chosen"), [(2e-3, 1e-3, 1), (1e-3, 2e-3, 2), (1e-3, 0.99e-3, 2)])
def test_the_faster_number_of_threads_is_chosen_and_the_figures_are_said(steps, several, alone, chosen):
    torch.set_num_threads(2)
    steps.update({(2, "fp32"): several, (1, "fp32"): alone})
    found = trial.choose(Net(), supervised(F.cross_entropy), batch())
    assert found.threads == chosen
    faster, slower = (alone, several) if chosen == 1 else (several, alone)
    other = "2 threads" if chosen == 1 else "one thread"
    assert found.reasons["threads"] == f"{1e3 * faster:.2g} ms a step, {1e3 * slower:.2g} with {other}"
    assert torch.get_num_threads() == 2


def test_threads_that_were_asked_for_are_measured_and_kept(steps):
    torch.set_num_threads(2)
    steps.update({(3, "fp32"): 2e-3})  # looking at another number would fail
    found = trial.choose(Net(), supervised(F.cross_entropy), batch(), threads=3)
    assert (found.threads, found.seconds, found.reasons) == (3, 2e-3, {})
    assert torch.get_num_threads() == 2


def test_long_steps_are_not_tried_on_one_thread(steps):
    torch.set_num_threads(2)
    steps.update({(2, "fp32"): 0.02})
    found = trial.choose(Net(), supervised(F.cross_entropy), batch(), precision="fp32")
    assert found.threads == 2 and found.reasons == {}


# --- Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bf16", "full", "half", "alike", "chosen"),
    [
        (True, 0.02, 0.01, True, "bf16"),
        (True, 0.02, 0.019, True, "fp32"),  # hardly faster
        (True, 0.02, 0.01, False, "fp32"),  # faster, and learns otherwise
        (False, 0.02, 0.01, True, "fp32"),  # the processor has none
        (True, 0.002, 0.001, True, "fp32"),  # light steps are not tried
    ],
)
def test_bf16_is_chosen_where_the_processor_has_it_and_it_is_faster_and_learns_alike(
    monkeypatch, steps, bf16, full, half, alike, chosen
):
    torch.set_num_threads(1)
    steps.update({(1, "fp32"): full, (1, "bf16"): half})
    monkeypatch.setattr(trial, "_has_bf16", lambda: bf16)
    monkeypatch.setattr(trial, "_learn_alike", lambda *_: alike)
    found = trial.choose(Net(), supervised(F.cross_entropy), batch())
    assert found.precision == chosen and ("precision" in found.reasons) == (chosen == "bf16")
    if chosen == "bf16":
        assert found.reasons["precision"] == "10 ms a step, 20 with fp32, and it learns alike" and found.seconds == half


@pytest.mark.parametrize(("cores", "alone", "tried"), [(1.0, 0.0007, False), (1.0, 0.07, True), (1.9, None, True)])
def test_a_light_net_on_a_busy_machine_is_not_taken_for_a_heavy_one(monkeypatch, steps, cores, alone, tried):
    """Threads that wait for each other make a step of 0.7 ms one of 80. How many there are from then on, the crowd says."""
    torch.set_num_threads(2)
    steps.update({(2, "fp32"): 0.08} | ({(1, "fp32"): alone} if alone else {}) | ({(2, "bf16"): 0.02} if tried else {}))
    made = trial._Way.__init__
    monkeypatch.setattr(
        trial._Way, "__init__", lambda way, *a, **k: (made(way, *a, **k), setattr(way, "cores", cores))[0]
    )
    monkeypatch.setattr(trial, "_has_bf16", lambda: True)
    monkeypatch.setattr(trial, "_learn_alike", lambda *_: True)
    found = trial.choose(Net(), supervised(F.cross_entropy), batch())
    assert (found.threads, found.precision) == (2, "bf16" if tried else "fp32")
    assert found.seconds == (0.02 if tried else alone) and torch.get_num_threads() == 2


@pytest.mark.parametrize("asked", [{"precision": "fp32"}, {"strict": True}])
def test_bf16_is_not_tried_where_another_was_asked_for_or_strict(monkeypatch, steps, asked):
    torch.set_num_threads(1)
    steps.update({(1, "fp32"): 0.02})
    monkeypatch.setattr(trial, "_has_bf16", lambda: True)
    assert trial.choose(Net(), supervised(F.cross_entropy), batch(), **asked).precision == "fp32"


def test_bf16_that_was_asked_for_is_measured_in_bf16(steps):
    torch.set_num_threads(1)
    steps.update({(1, "bf16"): 0.02})
    found = trial.choose(Net(), supervised(F.cross_entropy), batch(), precision="bf16")
    assert found.precision == "bf16" and found.seconds == 0.02


def test_fp16_is_taken_as_it_is():
    found = trial.choose(Net(), supervised(F.cross_entropy), batch(), precision="fp16", threads=1)
    assert (found.precision, found.threads, found.recorded) == ("fp16", 1, False) and math.isnan(found.seconds)


def test_learning_alike_is_seen_and_learning_otherwise_too(monkeypatch):
    net = Net()
    net.drop.p = 0.0
    objective = supervised(F.cross_entropy)
    assert trial._learn_alike(net, objective, batch(), None)

    class Rough(nn.Module):
        """Loses in bf16 what makes the difference."""

        def __init__(self):
            super().__init__()
            self.one = nn.Linear(6, 3)

        def forward(self, x):
            y = self.one(x)
            return y if y.dtype == torch.float32 else y.detach() + 0 * self.one.bias

    assert not trial._learn_alike(Rough(), objective, batch(), None)


# --- Layout -----------------------------------------------------------------------------------------------------------


def convnet(channels, groups=1):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3, groups=groups),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))  # fmt: skip


@pytest.mark.parametrize(
    ("net", "wanted"),
    [(convnet(32), True), (convnet(31), False), (convnet(256, groups=256), False), (Net(), False)],
    ids=["wide", "narrow", "depthwise", "none"],
)
def test_channels_last_is_a_rule_of_the_number_of_kernel_weights(net, wanted):
    kernels = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    assert (kernels >= 10_000) == wanted
    pictures = isinstance(net, nn.Sequential)
    made = batch(PICTURES, torch.randint(0, 3, (4,))) if pictures else batch()
    before = all_of(net)
    assert trial.choose(net, supervised(F.cross_entropy), made).channels_last is wanted
    assert_untouched(before, all_of(net))
    assert trial.choose(net, supervised(F.cross_entropy), made, strict=True).channels_last is False


class Viewed(nn.Module):
    """As many write it: `view` wants the order in memory that the channels last do not have. always: not in answers alone."""

    def __init__(self, always=True):
        super().__init__()
        self.always = always
        self.layers, self.last = convnet(32)[:3], nn.Linear(32 * 16, 3)

    def forward(self, x):
        x = self.layers(x)
        return self.last(x.view(x.size(0), -1) if self.always or not self.training else x.flatten(1))


class Picky(torch.autograd.Function):
    """Flattens, and wants gradients back as what it took lay in memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape, ctx.fits = x.shape, x.is_contiguous()
        return x.flatten(1)

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.fits:
            raise RuntimeError("view size is not compatible")
        return gradient.view(ctx.shape)


class OwnBackward(Viewed):
    def forward(self, x):
        return self.last(Picky.apply(self.layers(x)))


@pytest.mark.parametrize("kind", [Viewed, lambda: Viewed(always=False), OwnBackward])
def test_a_net_that_does_not_bear_the_channels_last_keeps_its_layout(kind):
    net = kind()
    made = batch(PICTURES, torch.randint(0, 3, (4,)))
    before = all_of(net)
    found = trial.choose(net, supervised(F.cross_entropy), made)
    assert layouts.likes_channels_last(net) and found.recorded and not found.channels_last
    assert_untouched(before, all_of(net))


@pytest.mark.parametrize(
    ("net", "bears"), [(lambda: convnet(32), True), (Viewed, False), (lambda: Viewed(False), False)]
)
def test_who_bears_the_channels_last_is_found_without_a_trace(net, bears):
    net, objective, made = net(), supervised(F.cross_entropy), batch(PICTURES, torch.randint(0, 3, (4,)))
    before, state = all_of(net), torch.get_rng_state()
    reading = trial.read(net, objective, None)
    assert trial.bears_channels_last(net, objective, made, reading) is bears
    assert_untouched(before, all_of(net))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_convnet_that_keeps_traces_is_not_tried_so_its_weights_stay_as_they_lie():
    net = convnet(32)
    net[0].register_forward_hook(lambda *_: None)
    found = trial.choose(net, supervised(F.cross_entropy), batch(PICTURES, torch.randint(0, 3, (4,))))
    assert not found.channels_last and "hooks" in found.why_eager


def test_the_figure_is_the_median_of_what_the_clock_says(monkeypatch):
    way = trial._Way(Net(), supervised(F.cross_entropy), batch(), precision="fp32", channels_last=False)
    assert way.lane.recorded and isinstance(way.lane, lanes.Lane)
    ticks = iter([0, 1, 10, 13, 20, 22, 30, 39, 40, 44])  # steps of 1, 3, 2, 9 and 4 seconds
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(ticks))
    assert way.seconds() == 3
