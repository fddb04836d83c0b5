"""A net compiled by torch is used where it pays and is as exact as the eager step, and is given up with words where not.

The compiler is torch's own, for the CPU; what stands in for a GPU is the graph, which here calls its function.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trial import Net
from torch import nn

from lamina import compiling, engine, lanes, optimizers
from lamina.errors import UsageError

PAYS = compiling.pays
compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles for the CPU with g++, which is missing"
)


# --- Which tensor is less exact ---------------------------------------------------------------------------------------


def gradients(seed=0, sizes=(1, 7, 300, 4000)):
    """A loss and gradients: what is exact, and two that round it independently by 30 % of each norm."""
    draw = torch.Generator().manual_seed(seed)
    exact = [torch.randn(size, generator=draw) * 10.0 ** float(-k) for k, size in enumerate(sizes)]
    exact[0] = torch.tensor([2.0])
    rounded = []
    for _ in range(2):
        noise = [torch.randn(t.shape, generator=draw) for t in exact]
        noise = [n / n.norm() * 0.3 * t.norm() for n, t in zip(noise, exact, strict=True)]
        noise[0] = noise[0] * 1e-3
        rounded.append([t + n for t, n in zip(exact, noise, strict=True)])
    return *rounded, exact


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 30))
def test_what_rounds_as_the_eager_step_does_is_as_exact(seed):
    found, eager, exact = gradients(seed)
    assert compiling.differs(found, eager, exact) is None
    assert compiling.differs(exact, eager, exact) is None  # more exact


FAULTS = {
    "zero": torch.zeros_like,
    "of the other sign": torch.neg,
    "twice as large": lambda t: 2 * t,
    "those of other places": lambda t: t.roll(1),
    "one of them infinite": lambda t: torch.cat([t[:-1], t[:1] / 0]),
    "not a number": lambda t: t * float("nan"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_wrong_gradient_is_told_from_rounding(fault, place):
    for seed in range(10):
        found, eager, exact = gradients(seed)
        found[place] = FAULTS[fault](found[place])
        assert compiling.differs(found, eager, exact) == place


def test_a_wrong_loss_is_told():
    found, eager, exact = gradients()
    found[0] = found[0] * 1.05
    assert compiling.differs(found, eager, exact) == 0


def test_a_gradient_that_is_rounding_alone_may_be_other_rounding():
    found, eager, exact = gradients()
    draw = torch.Generator().manual_seed(3)
    for tensors in (found, eager):
        tensors[2] = 1e-2 * torch.randn(300, generator=draw)
    exact[2] = torch.zeros(300)
    assert compiling.differs(found, eager, exact) is None
    found[2] = found[2] * 10
    assert compiling.differs(found, eager, exact) == 2


def test_compiling_pays_in_long_trainings_alone():
    assert not PAYS(60.0, 200) and PAYS(3600.0, 200)
    assert not PAYS(3600.0, 5000)


# --- In the place of eager steps --------------------------------------------------------------------------------------


class Graph:
    """In the place of a CUDA graph: the function itself, into memory that stays."""

    pace = 1.0  # seconds, of what follows the first of a training
    made: list[Graph] = []  # noqa: RUF012

    def __init__(self, function, into=None, *, warm=False):
        self.function, self.open = function, True
        self.given = []
        if not warm:
            self.given = [(into or {}).get(k, tensor.detach().clone()) for k, tensor in enumerate(function())]
            self.made.append(self)

    def replay(self):
        assert self.open
        for tensor, value in zip(self.given, self.function(), strict=True):
            tensor.detach().copy_(value.detach())

    def seconds(self):
        self.replay()
        return 1.0 if self is self.made[0] else self.pace

    def close(self):
        self.open = False


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(lanes, "_CAPTURED", ("cpu",))
    monkeypatch.setattr(lanes, "_OFTEN", 2)
    monkeypatch.setattr(lanes, "Graph", Graph)
    monkeypatch.setattr(Graph, "made", [])
    monkeypatch.setattr(Graph, "pace", 0.5)
    monkeypatch.setattr(compiling, "pays", lambda seconds, operations: True)


class Tutorial(nn.Sequential):
    """(B, 1, 28, 28) -> (B, 10). Of batches of 64, torch 2.13 compiles it for the CPU so that its convolutions get zeros."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10))  # fmt: skip


def parts(kind=Net, count=7):
    draw = torch.Generator().manual_seed(1)
    size, shape, classes = (64, (1, 28, 28), 10) if kind is Tutorial else (8, (6,), 3)
    return [
        (torch.randn(size, *shape, generator=draw), torch.randint(0, classes, (size,), generator=draw))
        for _ in range(count)
    ]


def learned(compile, *, kind=Net, epochs=3, steps=21, body=None, batches=None, **options):
    """The net's weights afterwards, and the lane."""
    torch.manual_seed(0)
    net = kind()
    torch.manual_seed(1)
    objective = engine.supervised(F.cross_entropy)
    optimizer = optimizers.make("sgd", net.parameters(), 0.05, momentum=0.9)
    lane = lanes.Lane(net, objective, optimizer, compile=compile, steps=steps, **options)
    walk = parts(kind) if batches is None else batches
    for progress in engine.learn(net, walk, optimizer=optimizer, objective=objective, epochs=epochs, lane=lane):
        if body is not None:
            body(progress)
    assert all(graph.open for graph in Graph.made[-1:]) and "forward" not in vars(net)
    return net.state_dict(), lane


def assert_near(some, others):
    for name, value in some.items():
        assert torch.allclose(value.float(), others[name].float(), rtol=1e-4, atol=1e-5), name


@compiler
@pytest.mark.parametrize("compile", ["on", "auto"])
def test_a_compiled_net_learns_as_the_eager_one(compile):
    """With its running means and its masks; and one of its graphs has given its memory back."""
    some, lane = learned(compile)
    others, _ = learned("off")
    assert_near(some, others)
    assert lane.recorded and lane.compiled.startswith("the net was compiled in")
    assert [graph.open for graph in Graph.made] == [False, True]


@compiler
def test_what_is_changed_in_the_loop_is_compiled_anew():
    def change(progress):
        if progress.step == 12:
            progress.net.drop.p = 0.6
            progress.net.two.weight.requires_grad_(False)

    some, lane = learned("on", body=change)
    others, _ = learned("off", body=change)
    assert_near(some, others)
    assert lane.compiled.startswith("the net was compiled")


@compiler
def test_each_shape_is_compiled():
    batches = parts()
    batches[-1] = tuple(part[:5] for part in batches[-1])
    some, _ = learned("on", batches=batches)
    others, _ = learned("off", batches=batches)
    assert_near(some, others)
    assert sum(graph.open for graph in Graph.made) == 2 and len(Graph.made) == 4


def test_every_net_of_one_class_is_compiled(monkeypatch):
    """Torch compiles the same code eight times, and then no more."""
    seen, own = [], torch.compile

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **_: own(function, dynamic=False, backend=backend))
    for width in range(1, 11):
        net = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        x = torch.randn(3, 4)
        wanted = net(x)
        with compiling.Compiled(net).in_place():
            assert torch.equal(net(x), wanted)
    assert len(seen) == 10


@compiler
def test_the_short_batch_that_ends_a_long_epoch_is_captured_and_not_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "pays", lambda seconds, operations: False)
    batches = parts(count=30)
    batches[-1] = tuple(part[:5] for part in batches[-1])
    some, lane = learned("on", batches=batches, steps=90)
    others, _ = learned("off", batches=batches)
    assert_near(some, others)
    assert lane.compiled.startswith("the net was compiled in") and [g.open for g in Graph.made] == [False, True, True]


def test_what_does_not_pay_is_left_as_it_is(monkeypatch):
    asked = []

    def pays(seconds, operations):
        asked.append((seconds, operations))
        return False

    monkeypatch.setattr(compiling, "pays", pays)
    some, lane = learned("auto", steps=21)
    others, _ = learned("off")
    assert_near(some, others)
    ((seconds, operations),) = asked
    assert seconds == 18.0 and operations > 10  # a second each of those that follow the third
    assert not lane.compiled and len(Graph.made) == 1


def test_nothing_is_compiled_where_nobody_knows_how_long_it_takes_or_all_must_be_exact():
    assert not learned("auto", steps=None)[1].compiled
    assert not learned("auto", strict=True)[1].compiled


@compiler
def test_what_is_no_quicker_is_not_kept(monkeypatch):
    monkeypatch.setattr(Graph, "pace", 0.99)
    some, lane = learned("auto")
    others, _ = learned("off")
    assert_near(some, others)
    assert lane.recorded and lane.compiled == "the net is not compiled: it is no quicker: 990 ms a step, 1,000 before"
    assert len(Graph.made) == 3 and Graph.made[-1].open  # captured as before, once more


def wrong(monkeypatch, change):
    """What torch compiles is wrong."""

    class Wrong(compiling.Compiled):
        def __init__(self, net):
            self._net, right = net, net.forward
            self._forward = lambda x: change(net, right, x)

    monkeypatch.setattr(compiling, "Compiled", Wrong)


WRONG = {
    "a gradient": (lambda net, right, x: right(x) + net.two.bias.detach() - net.two.bias,
                   "is less exact when it is compiled, in the gradient of two.bias"),
    "the loss": (lambda net, right, x: 1.2 * right(x), "is less exact when it is compiled, in the loss"),
    "a buffer": (lambda net, right, x: (right(x), net.norm.running_mean.data.mul_(1.5))[0],
                 "is less exact when it is compiled, in a buffer or a generator"),
    "no gradient": (lambda net, right, x: net.two(torch.tanh(net.one(x))), "compiling it fails"),
    "an error": (lambda net, right, x: net.two(x), "compiling it fails (RuntimeError: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_compiled_net_that_is_wrong_is_found_and_left(monkeypatch, fault):
    change, words = WRONG[fault]
    wrong(monkeypatch, change)
    some, lane = learned("auto")
    others, _ = learned("off")
    assert_near(some, others)
    assert lane.recorded and lane.compiled.startswith(f"the net is not compiled: it {words}")
    with pytest.raises(UsageError, match="compile is on, and the compiled net is of no use"):
        learned("on")


def test_a_compiled_net_that_goes_wrong_later_is_found_in_a_later_epoch(monkeypatch):
    calls = []

    def later(net, right, x):
        calls.append(len(x))
        return right(x) * (1.2 if len(calls) > 14 else 1.0)

    monkeypatch.setattr(lanes, "_CHECK", 3)
    wrong(monkeypatch, later)
    _, lane = learned("auto")
    assert lane.recorded and "it is less exact when it is compiled" in lane.compiled and len(calls) < 20


@compiler
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="this fault of torch's is of 2.13")
def test_zero_gradients_of_torchs_own_compiler_are_found():
    some, lane = learned("auto", kind=Tutorial, epochs=1)
    others, _ = learned("off", kind=Tutorial, epochs=1)
    assert lane.compiled.endswith("it is less exact when it is compiled, in the gradient of 0.weight")
    assert_near(some, others)
