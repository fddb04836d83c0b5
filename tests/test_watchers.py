"""Watchers: what they ask for, what they see in a sick net without leaving a trace, and what a person reads."""

import copy
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.batches import Batch
from lamina.errors import UsageError
from lamina.watchers import Log, Save, Stop
from lamina.watchers.health import Health
from lamina.watchers.screen import Screen, _Pace
from lamina.watchers.stopping import Best, EarlyStopping, TimeLimit

# Stopping -------------------------------------------------------------------------------------------------------------


def _epochs(watcher, values, score="valid/loss", start=0):
    return [
        watcher(SimpleNamespace(epoch=epoch, epoch_end=True, scores={score: value}))
        for epoch, value in enumerate(values, start)
    ]


def test_early_stopping_saves_improvements_and_stops_with_the_figures():
    requests = _epochs(EarlyStopping(patience=2), [0.5, 0.4, 0.41, 0.39, 0.4, 0.44])
    assert requests[:5] == [Save("best"), Save("best"), None, Save("best"), None]
    assert isinstance(requests[5], Stop)
    assert requests[5].reason == (
        "valid/loss has not improved for 2 epochs: the best was 0.39 in epoch 4, the last 0.44"
    )


def test_higher_can_be_better_and_small_gains_can_be_nothing():
    up = EarlyStopping("valid/accuracy", better="higher", patience=9, threshold=0.1)
    assert _epochs(up, [0.5, 0.55, 0.6, 0.61], "valid/accuracy") == [Save("best"), None, None, Save("best")]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_nan_is_never_an_improvement(better):
    nan = math.nan
    best = Best(better=better)
    assert _epochs(best, [nan, 1.0, nan, 1.0]) == [None, Save("best"), None, None]
    requests = _epochs(EarlyStopping(better=better, patience=2), [nan, nan])
    assert isinstance(requests[1], Stop) and "not finite" in requests[1].reason


def test_best_only_saves():
    assert _epochs(Best(), [1.0, 2.0, 3.0, 0.5]) == [Save("best"), None, None, Save("best")]


def test_nothing_is_asked_within_an_epoch():
    within = SimpleNamespace(epoch=0, epoch_end=False, scores={})
    assert EarlyStopping()(within) is None and Best()(within) is None


@pytest.mark.parametrize("make", [lambda: Best(threshold=0.01), lambda: EarlyStopping(patience=3)])
def test_a_resumed_watcher_asks_for_the_same(make):
    values = [0.9, 0.8, 0.85, 0.81, 0.82, 0.795]
    straight = _epochs(make(), values)
    first, second = make(), make()
    before = _epochs(first, values[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + _epochs(second, values[3:], start=3) == straight


def test_a_score_that_does_not_exist_is_told_what_there_is():
    watcher = EarlyStopping("valid/acuracy")
    with pytest.raises(UsageError, match=r"valid/acuracy[\s\S]*valid/accuracy, valid/loss"):
        watcher(SimpleNamespace(epoch=0, epoch_end=True, scores={"valid/loss": 1.0, "valid/accuracy": 0.5}))
    with pytest.raises(UsageError, match="nothing was validated"):
        watcher(SimpleNamespace(epoch=0, epoch_end=True, scores={}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Best(better="up"),
        lambda: Best(threshold=-1),
        lambda: Best(threshold=math.nan),
        lambda: EarlyStopping(patience=0),
        lambda: EarlyStopping(patience=2.5),
        lambda: TimeLimit(0),
        lambda: TimeLimit(math.inf),
    ],
)
def test_senseless_settings_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_the_time_limit_ends_at_the_first_step_beyond_it():
    limit = TimeLimit(2.5)
    assert limit(SimpleNamespace(seconds=2.49, step=9)) is None
    assert (
        limit(SimpleNamespace(seconds=2.5, step=1234)).reason == "the time limit of 2.5 s was reached after 1,234 steps"
    )


# Health ---------------------------------------------------------------------------------------------------------------


def _after_a_step(net: nn.Module, x: torch.Tensor, step: int = 100, epoch: int = 0) -> SimpleNamespace:
    """As the engine would leave things after a step: gradients in place, the batch at hand."""
    net.zero_grad()
    net(x).square().mean().backward()
    batch = Batch((x,), None, torch.arange(len(x)), len(x))
    return SimpleNamespace(epoch=epoch, epoch_end=True, step=step, batch_data=batch, scores={})


class Functional(nn.Module):
    """A net whose activations are modules, functions and methods."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Linear(6, 20),
            nn.Linear(20, 20),
            nn.Linear(20, 20),
            nn.Linear(20, 2),
        )
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.fc1(x))
        x = self.drop(self.act(self.fc2(x)))
        return self.fc4(self.fc3(x).relu())


def _inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "layer, name", [("fc1", "1st relu (at 'fc1')"), ("fc2", "2nd relu (at 'act')"), ("fc3", "3rd relu (at 'fc3')")]
)
def test_planted_dead_units_are_counted_where_they_are(layer, name):
    torch.manual_seed(0)
    net = Functional()
    with torch.no_grad():
        getattr(net, layer).bias[:12] = -1e3
    health = Health(net)
    request = health(_after_a_step(net, _inputs(64, 6)))
    finding = health.findings[0]  # the worst; starved units of later layers may follow
    assert finding["kind"] == "dead" and finding["layer"] == name
    assert finding["count"] >= 12 and finding["total"] == 20 and finding["fix"]
    assert f"{finding['count']} of 20 units are dead at the {name}" in finding["what"]
    assert request.values["health/dead_share"] == sum(layer["count"] for layer in health.layers) / 60


def test_the_count_is_that_of_a_hand_written_probe():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 1))
    with torch.no_grad():
        net[0].bias -= 2.0
    x = _inputs(40, 6)
    health = Health(net)
    health(_after_a_step(net, x))
    assert health.layers[0]["count"] == int((net[1](net[0](x)) == 0).all(0).sum()) > 0


@pytest.mark.parametrize("form", [torch.tanh, torch.sigmoid, nn.Tanh(), nn.Sigmoid(), lambda x: x.tanh()])
def test_planted_saturated_units_are_found(form):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 20), nn.Linear(20, 2)

        def forward(self, x):
            return self.fc2(form(self.fc1(x)))

    torch.manual_seed(0)
    net = Net()
    health = Health(net)
    health(_after_a_step(net, _inputs(64, 6)))
    assert health.findings == [] and health.layers[0]["count"] == 0
    with torch.no_grad():
        net.fc1.bias[:10] = 50.0
    request = Health(net)
    assert request(_after_a_step(net, _inputs(64, 6))).values["health/saturated_share"] == 0.5
    assert [(f["kind"], f["count"], f["total"]) for f in request.findings] == [("saturated", 10, 20)]


def test_an_output_that_is_sure_of_itself_is_not_ill():
    net = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid(), nn.Flatten(0))
    with torch.no_grad():
        net[0].bias.fill_(50.0)
    health = Health(net)
    health(_after_a_step(net, _inputs(64, 6)))
    assert health.layers == [] and health.findings == []


def test_a_channel_is_a_unit_after_a_convolution_and_a_feature_after_a_linear_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.map = nn.Conv1d(4, 8, 3), nn.Linear(10, 6)

        def forward(self, x):  # (B, 4, 12) -> (B, 8, 10) -> (B, 8, 6)
            return F.relu(self.map(F.relu(self.kernel(x)))) + 1

    net = Net()
    with torch.no_grad():
        net.kernel.bias[:4] = -1e3
        net.map.bias[:3] = -1e3
    health = Health(net)
    health(_after_a_step(net, _inputs(16, 4, 12)))
    assert [(layer["count"], layer["total"]) for layer in health.layers] == [(4, 8), (3, 6)]


def test_the_activations_inside_a_fused_transformer_layer_are_seen():
    net = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    with torch.no_grad():
        net.linear1.bias[:] = -1e3
    health = Health(net)
    health(_after_a_step(net, _inputs(8, 5, 8)))
    assert [(f["count"], f["total"]) for f in health.findings if f["kind"] == "dead"] == [(32, 32)]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 2)),
        nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)),
        nn.Linear(6, 2),
    ],
)
def test_a_healthy_net_is_silent(net):
    health = Health(net)
    health(_after_a_step(net, _inputs(64, 6)))
    assert health.findings == []


def test_vanishing_and_exploding_gradients_are_told_apart():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
    vanishing = nn.Sequential(nn.Linear(6, 16), *layers, nn.Linear(16, 1))
    health = Health(vanishing)
    request = health(_after_a_step(vanishing, _inputs(64, 6)))
    first, last = vanishing[0].weight, vanishing[-1].weight
    ratio = (first.grad.norm() / first.norm() / (last.grad.norm() / last.norm())).item()
    assert request.values["health/gradient_ratio"] == pytest.approx(ratio)
    assert [f["kind"] for f in health.findings] == ["vanishing"] and ratio < 1e-4
    with torch.no_grad():
        first.grad *= 1e6 / ratio
    exploding = Health(vanishing)
    progress = SimpleNamespace(epoch=0, epoch_end=True, step=1, batch_data=None, scores={})
    exploding(progress)
    assert [f["kind"] for f in exploding.findings] == ["exploding"]


@pytest.mark.filterwarnings("error")
def test_of_complex_weights_the_imaginary_part_counts_too():
    torch.manual_seed(0)
    real = nn.Linear(6, 4)
    turned = nn.Linear(6, 4, dtype=torch.complex64)
    with torch.no_grad():
        turned.weight.copy_(torch.randn(4, 6) + 100j * torch.randn(4, 6))
    turned.weight.grad, real.weight.grad = torch.randn(4, 6) * 1j, torch.randn(4, 6)
    request = Health(nn.Sequential(turned, real))(
        SimpleNamespace(epoch=0, epoch_end=True, step=1, batch_data=None, scores={})
    )
    first, last = (float(t.weight.grad.abs().norm() / t.weight.detach().abs().norm()) for t in (turned, real))
    assert request.values["health/gradient_ratio"] == pytest.approx(first / last)


def test_weights_that_are_not_finite_are_an_error_by_name():
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    health = Health(net)
    progress = _after_a_step(net, _inputs(8, 6))
    with torch.no_grad():
        net[2].weight[0, 0] = math.nan
        net[1].running_var[0] = math.inf
    health(progress)
    assert [(f["severity"], f["layer"]) for f in health.findings] == [("error", "2.weight"), ("error", "1.running_var")]


def test_a_mask_that_is_infinite_is_meant_so_and_what_becomes_infinite_is_not():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    net.register_buffer("mask", torch.full((2, 2), -math.inf))
    net.register_buffer("other", torch.zeros(2))
    health = Health(net)
    health(_after_a_step(net, _inputs(64, 6)))
    assert [finding["layer"] for finding in health.findings if finding["kind"] == "not finite"] == []
    net.other[1] = math.inf
    health(_after_a_step(net, _inputs(64, 6), step=300))
    assert [finding["layer"] for finding in health.findings if finding["kind"] == "not finite"] == ["other"]


def test_the_probe_leaves_no_trace():
    class Careless(Functional):
        """Draws random numbers of every kind in its forward pass, also when it is evaluated."""

        def forward(self, x):
            random.random(), np.random.rand()
            return super().forward(F.dropout(x, 0.5, training=True))

    torch.manual_seed(0)
    net = nn.Sequential(Careless(), nn.BatchNorm1d(2))
    net[0].drop.eval()  # frozen by its owner
    modes = [module.training for module in net.modules()]
    progress = _after_a_step(net, _inputs(64, 6))
    state = copy.deepcopy(net.state_dict())
    gradients = [p.grad.clone() for p in net.parameters()]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    Health(net)(progress)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, old) for p, old in zip(net.parameters(), gradients, strict=True))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_a_probe_that_fails_puts_the_net_back():
    net = Functional()
    progress = _after_a_step(net, _inputs(8, 6))
    progress.batch_data = Batch((_inputs(8, 5),), None, torch.arange(8), 8)
    with pytest.raises(RuntimeError):
        Health(net)(progress)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_it_looks_at_the_first_epoch_and_then_not_too_often():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    calls = []
    health = Health(net, forward=lambda net, batch: calls.append(1) or net(*batch.inputs), every=100)
    x = _inputs(64, 6)
    for epoch, step in enumerate((7, 50, 106, 107, 150)):
        progress = _after_a_step(net, x, step, epoch)
        assert (health(progress) is not None) == (step in (7, 107))
    progress.epoch_end = False
    assert health(progress) is None and len(calls) == 2


def test_a_finding_remembers_since_when_also_over_a_resume():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].bias.fill_(-1e3)
    first = Health(net)
    first(_after_a_step(net, _inputs(64, 6), step=100, epoch=2))
    second = Health(net)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second(_after_a_step(net, _inputs(64, 6), step=300, epoch=5))
    dead = next(f for f in second.findings if f["kind"] == "dead")
    assert (dead["since"], dead["epoch"]) == (3, 6)


def test_what_it_logs_is_finite_json():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[0].bias.fill_(math.nan)
    request = Health(net)(_after_a_step(net, _inputs(64, 6)))
    assert isinstance(request, Log)
    json.dumps(request.values, allow_nan=False)


# Screen ---------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


ROWS = [
    ("source", "digits", "1,797 pictures 1x8x8, from scikit-learn"),
    ("net", "mlp, 4,810 parameters", "the default for small pictures; two hidden layers, as there are few examples"),
    ("learning rate", "0.001", ""),
    ("run", "/data/somebody/with/a/long/path/to/runs/digits-1", "the next free name"),
]
HEADLINE = {"score": "accuracy", "value": 0.98123, "low": 0.97112, "high": 0.98912, "split": "test", "n": 360}
WORST = {"name": "most frequent class", "value": 0.1028, "low": 0.0734, "high": 0.139}


def _learning(screen, clock=None, batches=20, epochs=3):
    """A fake training: 32 examples a step, the loss 1 / step, 0.05 s a step on the clock."""
    progress = SimpleNamespace(
        epoch=0, epochs=epochs, batch=0, batches=batches, step=0, steps=batches * epochs, examples=0, mean_loss=1.0,
        scores={}, seconds=0.0, epoch_end=False,
    )  # fmt: skip
    for epoch in range(epochs):
        for batch in range(batches):
            if clock is not None:
                clock.now += 0.05
            progress.epoch, progress.batch, progress.epoch_end = epoch, batch, batch == batches - 1
            progress.step += 1
            progress.examples += 32
            progress.mean_loss = 1 / progress.step
            progress.seconds = 0.05 * progress.step
            if progress.epoch_end:
                progress.scores = {"valid/loss": 0.3, "valid/accuracy": 0.9 + epoch / 100}
            screen(progress)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("lamina.watchers.screen.time.monotonic", lambda: clock.now)
    return clock


def test_elsewhere_than_on_a_terminal_an_epoch_is_a_plain_line(clock):
    stream = io.StringIO()
    _learning(Screen(stream=stream), clock)
    assert stream.getvalue().splitlines() == [
        "epoch 1/3  loss 0.0500  valid/accuracy 0.9000  640 examples/s  2 s left",
        "epoch 2/3  loss 0.0250  valid/accuracy 0.9100  640 examples/s  1 s left",
        "epoch 3/3  loss 0.0167  valid/accuracy 0.9200  640 examples/s  took 3 s",
    ]


def test_quiet_writes_nothing_and_the_log_has_it_all(clock):
    loud, quiet, log, quiet_log = io.StringIO(), io.StringIO(), [], []
    for screen in (Screen(log=log.append, stream=loud), Screen(quiet=True, log=quiet_log.append, stream=quiet)):
        screen.opening(ROWS)
        screen.findings([("error", "a value is missing", "remove the row")])
        _learning(screen, clock)
        screen.stopped("enough")
        screen.closing(HEADLINE, [WORST], "runs/digits-1")
    assert quiet.getvalue() == ""
    assert log == quiet_log == loud.getvalue().splitlines()


def test_the_opening_block_is_aligned_and_fits_in_80_columns():
    stream = io.StringIO()
    Screen(stream=stream).opening(ROWS)
    assert stream.getvalue() == textwrap.dedent("""\
        source         digits                 1,797 pictures 1x8x8, from scikit-learn
        net            mlp, 4,810 parameters  the default for small pictures; two hidden
                                              layers, as there are few examples
        learning rate  0.001
        run            /data/somebody/with/a/long/path/to/runs/digits-1
                         the next free name

        """)


def test_findings_hang_under_their_severity():
    stream = io.StringIO()
    words = "column 'age' has the value 'abc' in rows 3, 17, 40 and 12 more, which is not a number"
    Screen(stream=stream).findings([("error", words, "remove it"), ("warning", "class 'cat' has 3 examples", "")])
    assert stream.getvalue() == textwrap.dedent("""\
        error    column 'age' has the value 'abc' in rows 3, 17, 40 and 12 more, which
                 is not a number
                 fix: remove it
        warning  class 'cat' has 3 examples
        """)


def test_the_closing_block():
    stream = io.StringIO()
    linear = {"name": "logistic regression", "value": 0.9611, "low": 0.9357, "high": 0.9786}
    Screen(stream=stream).closing(
        HEADLINE,
        [WORST, linear],
        "runs/digits-1",
        [("report.html", "one page"), ("train.log", "this text")],
        ["lamina predict runs/digits-1 PICTURE", "lamina serve runs/digits-1"],
        ["It stopped early."],
    )
    assert stream.getvalue() == textwrap.dedent("""\

        accuracy 0.9812 (95 % interval 0.971 to 0.989, 360 test examples)
          most frequent class  0.1028 (0.073 to 0.139)
          logistic regression  0.9611 (0.936 to 0.979)
        Whether the net beats the best baseline, logistic regression, is not certain.
        More test examples would tell.
        It stopped early.

        look at  runs/digits-1
          report.html  one page
          train.log    this text

        next
          lamina predict runs/digits-1 PICTURE
          lamina serve runs/digits-1
        """)


@pytest.mark.parametrize(
    "better, ours, theirs, verdict",
    [
        ("higher", (0.9, 0.95), (0.5, 0.89), "The net beats"),
        ("higher", (0.9, 0.95), (0.86, 0.93), "not certain"),
        ("higher", (0.4, 0.45), (0.5, 0.6), "The net is worse"),
        ("lower", (4.0, 5.0), (6.0, 7.0), "The net beats"),
        ("lower", (8.0, 9.0), (6.0, 7.0), "The net is worse"),
        ("lower", (4.0, 6.5), (6.0, 7.0), "not certain"),
    ],
)
def test_the_verdict_is_what_the_intervals_can_tell(better, ours, theirs, verdict):
    def entry(interval, **more):
        return {"value": sum(interval) / 2, "low": interval[0], "high": interval[1], **more}

    stream = io.StringIO()
    headline = entry(ours, score="s", split="test", n=10, better=better)
    worse = entry((0.0, 0.1) if better == "higher" else (90.0, 91.0), name="guess")
    Screen(stream=stream).closing(headline, [worse, entry(theirs, name="linear")])
    assert verdict in stream.getvalue() and "the best baseline, linear," in stream.getvalue()


@pytest.mark.parametrize(
    "value, low, high, shown",
    [
        (0.9998, 0.99971, 0.99989, "0.999800 (95 % interval 0.99971 to 0.99989"),
        (53.214, 51.03, 55.44, "53.21 (95 % interval 51.0 to 55.4"),
        (487.31, 476.2, 498.4, "487.3 (95 % interval 476 to 498"),
        (1.0, 1.0, 1.0, "1.0000 (95 % interval 1.000 to 1.000"),
        (0.5, None, None, "0.5000 (10 test examples"),
    ],
)
def test_a_score_is_shown_as_exactly_as_its_interval_is_wide(value, low, high, shown):
    stream = io.StringIO()
    Screen(stream=stream).closing({"score": "s", "value": value, "low": low, "high": high, "split": "test", "n": 10})
    assert f"s {shown}" in stream.getvalue()


def test_control_codes_in_the_data_do_not_reach_the_terminal():
    for stream in (io.StringIO(), Terminal()):
        Screen(stream=stream).opening([("column", "a\x1b[2Jb", "")])
        assert "a?[2Jb" in stream.getvalue() and "\x1b[2J" not in stream.getvalue()


def test_on_a_terminal_the_bar_is_drawn_ten_times_a_second_and_each_epoch_stays(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream, read = Terminal(), []

    class Counting(Screen):
        def _draw(self, progress, now):
            read.append(now)
            super()._draw(progress, now)

    with Counting(stream=stream) as screen:
        _learning(screen, clock)
    assert 28 <= len(read) <= 30 + 3  # 3 s at 10 a second, and the ends of the epochs, which may fall between
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("epoch") and "━" not in line and "─" not in line] == [
        "epoch 1/3  loss 0.0500  valid/accuracy 0.9000  640 examples/s  2 s left",
        "epoch 2/3  loss 0.0250  valid/accuracy 0.9100  640 examples/s  1 s left",
        "epoch 3/3  loss 0.0167  valid/accuracy 0.9200  640 examples/s  took 3 s",
    ]
    assert "epoch 1/3  ━━━━━━━━━━━━━━━━──────────────  loss 0.0909  640/s  2 s left" in [line.strip() for line in lines]
    assert all(len(line) < 80 for line in lines)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_no_color_is_honoured(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    for value, expected in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        stream = Terminal()
        with Screen(stream=stream) as screen:
            screen.opening(ROWS)
            _learning(screen, clock)
        assert bool(coloured.search(stream.getvalue())) == expected


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    _learning(Screen(stream=stream))
    assert "\x1b" not in stream.getvalue() and len(stream.getvalue().splitlines()) == 3


def test_a_stream_that_cannot_write_a_letter_gets_a_question_mark():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Screen(stream=stream).opening([("column", "Größe", "")])
    assert raw.getvalue().startswith(b"column  Gr??e")


def test_the_loss_is_not_read_and_nothing_is_written_between_drawings(clock):
    class Untouchable:
        epoch_end = False
        epochs = epoch = batch = step = examples = 1
        batches = steps = None
        scores = MappingProxyType({})

        @property
        def mean_loss(self):
            raise AssertionError("the loss was read")

    screen = Screen(stream=io.StringIO())
    for _ in range(5):
        clock.now += 1
        screen(Untouchable())
    assert screen.stream.getvalue() == ""


def test_without_a_plan_there_is_no_end_to_tell():
    stream = io.StringIO()
    progress = SimpleNamespace(
        epoch=41, epochs=None, batch=3, batches=None, step=9, steps=None, examples=10, mean_loss=math.nan, scores={},
        seconds=1.0, epoch_end=True,
    )  # fmt: skip
    Screen(stream=stream)(progress)
    assert stream.getvalue() == "epoch 42  loss nan\n"


def test_time_left_follows_a_change_of_speed_and_does_not_jump_at_a_pause():
    pace, now, step = _Pace(0.0, 0, 0), 0.0, 0

    def walk(seconds, rate):
        nonlocal now, step
        for _ in range(round(seconds * 10)):
            now, step = now + 0.1, step + round(rate / 10)
            pace.update(now, step, step)

    walk(100, 100)
    assert pace.per_second() == pytest.approx(100)
    steady = pace.left(20_000)
    now += 2.0  # a pause of 2 s for validation
    pace.update(now, step, step)
    assert steady < pace.left(20_000) < 1.1 * steady
    walk(200, 50)
    assert pace.per_second() == pytest.approx(50, rel=0.15)


def test_rich_is_not_loaded_where_there_is_no_terminal():
    code = """
import io, sys
from lamina.watchers.screen import Screen
screen = Screen(stream=io.StringIO())
screen.opening([("a", "b", "c")])
screen.stopped("enough")
assert "rich" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
