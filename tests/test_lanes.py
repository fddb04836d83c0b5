"""Recorded steps have the bits of the loop by hand, whatever the net, and whatever is done to it between two steps."""

from __future__ import annotations

import copy
import itertools
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import lamina
from lamina import engine, lanes, masks, optimizers, penalties, tape
from lamina.batches.batch import Batch
from lamina.errors import Diverged, UsageError

torch.manual_seed(0)
X, Y = torch.randn(56, 6), torch.randint(0, 3, (56,))
PARTS = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 56, 8)]  # seven of 8
RAGGED = [*PARTS[:-1], (X[48:51], Y[48:51])]  # the last of 3
NEW_SHAPES = [(X[: k + 2], Y[: k + 2]) for k in range(20)]
EPOCHS = 3


class Net(nn.Module):
    """What the nets below are made of."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.drop, self.two = (
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        )
        self.n, self.kept = 0, []
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        return self.two(self.drop(torch.relu(self.norm(self.one(x)))))


def made(kind=Net, change=None, seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    net = kind()
    if change is not None:
        change(net)
    net.train()
    return net


def fused(parameters):
    return optimizers.make("adam", parameters, 1e-2)


def plain(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


class Apart(torch.optim.RAdam):
    """An optimiser of the user's own, which is not laid flat."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1e-2)


def sgd(parameters):
    return optimizers.make("sgd", parameters, 0.05, momentum=0.9, weight_decay=1e-2)


def generators():
    state = np.random.get_state()
    return torch.get_rng_state(), random.getstate(), (state[1].tolist(), state[2])


def seeded(seed=0):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def by_hand(net, parts, loss, optimizer, *, body=None, clip=None, penalty=None, epochs=EPOCHS):
    """The loop of every tutorial; the losses of its steps."""
    seeded()
    losses, step = [], 0
    for _ in range(epochs):
        for part in parts:
            *inputs, y = part if len(part) > 1 else (*part, None)
            optimizer.zero_grad()
            value = loss(net(*inputs), y) if y is not None else loss(net, inputs[0])
            if penalty is not None:
                value = value + penalty(net)
            value.backward()
            if clip is not None:
                clip(net)
            optimizer.step()
            losses.append(value.item())
            if body is not None:
                body(step, net, optimizer)
            step += 1
    return losses


def learned(net, parts, loss, optimizer, *, body=None, compile="auto", epochs=EPOCHS, **options):
    """The same through the lane; the losses of its steps, and the lane."""
    seeded()
    objective = options.pop("objective", None) or engine.supervised(loss)
    lane = lanes.Lane(net, objective, optimizer, compile=compile, penalty=options.get("penalty"),
                      autocast=options.pop("autocast", None), strict=options.get("strict", False))  # fmt: skip
    losses = []
    for progress in lamina.learn(
        net, parts, optimizer=optimizer, objective=objective, epochs=epochs, lane=lane, **options
    ):
        losses.append(progress.loss)
        if body is not None:
            body(progress.step - 1, net, optimizer)
    return losses, lane


def assert_equal(a, b, where=""):
    """Dictionaries, lists, tensors and numbers, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_equal(a[name], b[name], f"{where} {name}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where} {number}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


def assert_own_memory(net, optimizer):
    """Every parameter, gradient and state has memory of its own."""
    tensors = [*net.parameters()] + [p.grad for p in net.parameters() if p.grad is not None]
    tensors += [
        t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.dim()
    ]
    storages = [t.untyped_storage()._cdata for t in tensors]
    assert len(set(storages)) == len(storages)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)


def compare(kind=Net, parts=PARTS, loss=F.cross_entropy, optimizer=fused, *, change=None, body=None, compile="auto",
            held=None, clip=None, penalty=None, shares=False, **options):  # fmt: skip
    """Train by hand and by lane from the same start, compare everything, and give the lane.

    held(net): what the optimiser is given, where that is not the net's parameters.
    """
    results = []
    for way in ("hand", "lane"):
        net = made(kind, change)
        parameters = held(net) if held is not None else net.parameters()
        chosen = optimizer(parameters)
        lane = None
        if way == "hand":
            losses = by_hand(net, parts, loss, chosen, body=body, clip=clip, penalty=penalty)
        else:
            losses, lane = learned(net, parts, loss, chosen, body=body, compile=compile, penalty=penalty, **options)
        results.append((losses, net, chosen, generators(), lane))
    (losses, net, chosen, drawn, _), (others, other, theirs, drawn_too, lane) = results
    assert_equal(losses, others, "loss")
    assert_equal(net.state_dict(), other.state_dict())
    assert_equal(chosen.state_dict(), theirs.state_dict(), "optimiser")
    assert_equal(
        [p.grad is None for p in net.parameters()], [p.grad is None for p in other.parameters()], "no gradient"
    )
    assert_equal([p.grad for p in net.parameters() if p.grad is not None],
                 [p.grad for p in other.parameters() if p.grad is not None], "gradients")  # fmt: skip
    assert_equal(drawn, drawn_too, "generators")
    if not shares:
        assert_own_memory(other, theirs)
    return lane


# --- Nets -------------------------------------------------------------------------------------------------------------


def counter(self, x):
    self.n += 1
    return Net.forward(self, x) * (1 + self.n / 10)


def python_random(self, x):
    return Net.forward(self, x) * random.random()


def numpy_random(self, x):
    return Net.forward(self, x) * float(np.random.rand())


def torch_random(self, x):
    return Net.forward(self, x + torch.rand_like(x))


def branch(self, x):
    return Net.forward(self, x) if x.sum() > 0 else self.two(self.one(x))


def early_exit(self, x):
    h = self.one(x)
    return self.two(h) if h.abs().mean().item() > 0.6 else self.two(torch.relu(h))


def by_shape(self, x):
    for _ in range(x.shape[0] % 3 + 1):
        x = torch.tanh(x)
    return self.two(self.one(x))


def appends(self, x):
    self.kept.append(float(x.detach().mean()))
    return self.two(self.one(x)) * len(self.kept)


def buffer(self, x):
    h = self.one(x)
    with torch.no_grad():
        self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return self.two(h - self.mean)


def new_buffer(self, x):
    h = self.one(x)
    self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
    return self.two(h - self.mean)


def plain_tensor(self, x):
    self.plain.mul_(0.9).add_(1)
    return self.two(self.one(x)) * self.plain


def unused(self, x):
    return self.two(self.one(x))


def sometimes(self, x):
    h = self.one(x)
    return self.two(self.norm(h)) if float(x[0, 0]) > 0 else self.two(h)


def sometimes_by_shape(self, x):
    h = self.one(x)
    return self.two(self.norm(h)) if x.shape[0] == 8 else self.two(h)


def detached(self, x):
    return self.two(torch.relu(self.one(x).detach()))


def in_place(self, x):
    return self.two(F.relu_(self.one(x)))


def writes_its_input(self, x):
    x.mul_(0.99)
    return self.two(self.one(x))


def cuts_its_input(self, x):
    x.clamp_(max=5.0)  # where nothing is larger, nothing is written
    return self.two(self.one(x))


def own_generator(self, x):
    return self.two(self.one(x)) * torch.rand((), generator=self.generator)


def prints(self, x):
    print(end="")
    return self.two(self.one(x))


def numpy_inside(self, x):
    h = self.one(x)
    return self.two(h * torch.from_numpy(np.sign(h.detach().numpy())))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2 + ctx.saved_tensors[0] * 0.01


def own_function(self, x):
    return self.two(Double.apply(self.one(x)))


def checkpointed(self, x):
    return self.two(self.drop(torch.utils.checkpoint.checkpoint(self.one, x, use_reentrant=False)))


def adds_parts(net):
    net.plain = torch.ones(())


def adds_a_generator(net):
    adds_parts(net)
    net.generator = torch.Generator().manual_seed(3)


def held_by(forward):
    return adds_a_generator if forward is own_generator else adds_parts


RECORDED = [None, torch_random, by_shape, buffer, plain_tensor, unused, detached, in_place, own_function]
EAGER = [counter, python_random, numpy_random, branch, early_exit, appends, new_buffer, sometimes, writes_its_input,
         cuts_its_input, own_generator, prints, numpy_inside]  # fmt: skip


def kind_of(forward):
    return Net if forward is None else type("Own", (Net,), {"forward": forward})


@pytest.mark.parametrize("optimizer", [fused, sgd], ids=["adam", "sgd"])
@pytest.mark.parametrize("forward", RECORDED, ids=lambda f: getattr(f, "__name__", "plain"))
def test_a_net_that_can_be_recorded_has_the_bits_of_the_loop_by_hand(forward, optimizer):
    lane = compare(kind_of(forward), change=adds_parts, optimizer=optimizer)
    assert lane.recorded, lane.words


@pytest.mark.parametrize("forward", EAGER, ids=lambda f: f.__name__)
def test_a_net_that_cannot_be_recorded_has_them_too_and_words_say_why(forward):
    parts = [(x.clone(), y) for x, y in PARTS]

    class Parts(list):
        def __iter__(self):
            return iter([(x.clone(), y) for x, y in parts])

    lane = compare(kind_of(forward), Parts(parts), change=held_by(forward))
    assert not lane.recorded and lane.words


@pytest.mark.parametrize("forward", [*RECORDED, *EAGER, checkpointed], ids=lambda f: getattr(f, "__name__", "plain"))
def test_without_recording_all_nets_have_the_bits_of_the_loop_by_hand(forward):
    class Parts(list):
        def __iter__(self):
            return iter([(x.clone(), y) for x, y in PARTS])

    lane = compare(kind_of(forward), Parts(PARTS), change=held_by(forward), compile="off")
    assert not lane.recorded and lane.words == "compile is off"


@pytest.mark.parametrize("forward", EAGER, ids=lambda f: f.__name__)
def test_compile_on_says_what_stands_against_it(forward):
    net = made(kind_of(forward), held_by(forward))
    with pytest.raises(UsageError, match="cannot be recorded: "):
        learned(net, [(x.clone(), y) for x, y in PARTS], F.cross_entropy, fused(net.parameters()), compile="on")
    assert_own_memory(net, fused(net.parameters()))


def test_compile_on_is_silent_where_a_step_can_be_recorded():
    assert compare(compile="on").recorded


def test_recomputed_activations_have_the_bits_of_the_loop_by_hand():
    compare(kind_of(checkpointed))


def tied(net):
    net.two = nn.Linear(6, 6, bias=False)
    net.two.weight = nn.Parameter(torch.randn(6, 6))
    net.one = nn.Linear(6, 6)
    net.one.weight = net.two.weight


def frozen(net):
    net.one.requires_grad_(False)


def spectral(net):
    parametrizations.spectral_norm(net.one)
    parametrizations.weight_norm(net.two)


def double(net):
    net.double()


def convolution(net):
    net.one = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.MaxPool1d(2), nn.Flatten(),
                            nn.Linear(12, 16))  # fmt: skip


def lstm(net):
    net.one = nn.Sequential(nn.Unflatten(1, (3, 2)), nn.LSTM(2, 16, batch_first=True), Last())


class Last(nn.Module):
    def forward(self, output):
        return output[0][:, -1]


def bfloat(net):
    net.two.to(torch.float64)
    net.drop = ToDouble()


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


@pytest.mark.parametrize(
    ("change", "forward"),
    [(tied, unused), (frozen, None), (spectral, None), (convolution, None), (lstm, None), (bfloat, None)],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_shared_frozen_and_mixed_parameters(change, forward):
    lane = compare(kind_of(forward), change=change)
    assert lane.recorded, lane.words


def test_a_net_of_doubles():
    assert compare(change=double, parts=[(x.double(), y) for x, y in PARTS]).recorded


def test_parameters_that_share_memory_are_not_laid_flat():
    def change(net):
        net.one, net.two = nn.Linear(6, 6), nn.Linear(6, 6)
        net.two.weight.data = net.one.weight.data

    lane = compare(kind_of(unused), change=change, shares=True)
    assert lane.recorded


def test_parameters_that_get_no_gradient_have_none_afterwards_and_are_not_decayed():
    lane = compare(kind_of(unused), optimizer=lambda p: optimizers.make("adamw", p, 1e-2, weight_decay=0.5))
    assert lane.recorded


def test_parameters_of_which_some_are_used_now_and_then_grow_old_at_their_own_speed():
    lane = compare(kind_of(sometimes))
    assert not lane.recorded
    compare(kind_of(sometimes_by_shape), RAGGED * 2)
    compare(kind_of(sometimes_by_shape), RAGGED * 2, compile="off")


def halve(parameter):
    parameter.grad.mul_(0.5)


# --- Hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hook",
    [
        lambda net: net.one.register_forward_hook(lambda m, i, o: o * 0.5),
        lambda net: net.one.register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
        lambda net: net.one.register_full_backward_hook(
            lambda m, i, o: tuple(g * 2 if g is not None else g for g in i)
        ),
        lambda net: net.two.weight.register_hook(lambda g: g * 0.5),
        lambda net: net.two.weight.register_post_accumulate_grad_hook(halve),
        lambda net: setattr(net, "forward", lambda x: net.two(net.one(x))),
    ],
    ids=["forward", "pre", "backward", "tensor", "accumulated", "replaced"],
)
@pytest.mark.parametrize("when", ["before", "between"])
def test_hooks_and_replaced_forwards_are_heard(hook, when):
    def body(step, net, optimizer):
        if step == 9:
            hook(net)

    lane = compare(change=hook) if when == "before" else compare(body=body)
    assert not lane.recorded and lane.words


# --- What the body of the loop does -----------------------------------------------------------------------------------


def at(k, act):
    def body(step, net, optimizer):
        if step == k:
            act(net, optimizer)

    return body


def new_layer(net, optimizer):
    torch.manual_seed(5)
    net.two = nn.Linear(16, 3)
    optimizer.add_param_group({"params": list(net.two.parameters())})


def load(net, optimizer):
    net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items() if value.is_floating_point()},
                        strict=False)  # fmt: skip


def other_memory(net, optimizer):
    net.one.weight.data = net.one.weight.data * 0.5


def load_optimizer(net, optimizer):
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] *= 0.1
    for own in state["state"].values():
        for name, value in own.items():
            own[name] = value.clone() if name == "step" else value * 0.5
    optimizer.load_state_dict(state)


def rate(net, optimizer):
    optimizer.param_groups[0]["lr"] *= 0.1


def evaluate(net, optimizer):
    net.eval()
    with torch.no_grad():
        net(X)
    net.train()


def zero(net, optimizer):
    optimizer.zero_grad()


def new_buffer_put(net, optimizer):
    net.norm.running_mean = torch.ones(16)


def buffer_data(net, optimizer):
    net.norm.running_mean.data = torch.ones(16)


BODIES = {
    "unfreeze": lambda net, o: net.one.requires_grad_(True),
    "freeze": lambda net, o: net.two.requires_grad_(False),
    "rate of dropout": lambda net, o: setattr(net.drop, "p", 0.6),
    "frozen batch norm": lambda net, o: net.norm.eval(),
    "new layer": new_layer,
    "weights loaded": load,
    "weights put": other_memory,
    "optimiser loaded": load_optimizer,
    "rate": rate,
    "evaluation": evaluate,
    "gradients forgotten": zero,
    "gradients zeroed": lambda net, o: o.zero_grad(set_to_none=False),
    "weights changed": lambda net, o: net.one.weight.detach().mul_(0.5),
    "buffer put": new_buffer_put,
    "memory of a buffer put": buffer_data,
    "net to double and back": lambda net, o: net.double().float(),
    "state forgotten": lambda net, o: o.state.clear(),
    "decay": lambda net, o: o.param_groups[0].update(weight_decay=0.1),
}


@pytest.mark.parametrize("compile", ["auto", "off", "on"])
@pytest.mark.parametrize("name", BODIES)
def test_what_is_done_between_two_steps_is_done_in_the_lane_as_well(name, compile):
    change = frozen if name == "unfreeze" else None
    for k in (0, 9):
        lane = compare(change=change, body=at(k, BODIES[name]), compile=compile)
        assert lane.recorded or compile == "off", lane.words


def learned_untouched(kind, change=None, body=None, **options):
    """The bits of the loop by hand, through a loop that says at which step its body changed nothing; how often the lane
    looked round."""
    nets = [made(kind, change), made(kind, change)]
    first, other = (fused(net.parameters()) for net in nets)
    losses = by_hand(
        nets[0], copy.deepcopy(PARTS), F.cross_entropy, first, body=at(20, body) if body else None, epochs=4
    )
    seeded()
    others = []
    with pytest.MonkeyPatch.context() as patch:
        look, seen = lanes.Lane._look_round, []
        patch.setattr(lanes.Lane, "_look_round", lambda lane: (seen.append(1), look(lane))[1])
        for progress in lamina.learn(nets[1], copy.deepcopy(PARTS), F.cross_entropy, other, epochs=4, **options):
            others.append(progress.loss)
            progress.untouched = True
            if body and progress.step == 21:
                body(nets[1], other)
                progress.untouched = False
    assert_equal(losses, others)
    assert_equal(nets[0].state_dict(), nets[1].state_dict())
    assert len(others) == 28
    return len(seen)


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("name", BODIES)
def test_a_caller_who_says_when_nobody_touched_the_net_spares_steps_the_look_round(name, compile):
    change = frozen if name == "unfreeze" else None
    assert learned_untouched(Net, change, BODIES[name], compile=compile) == 2  # before the first, and after the 21st


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("forward", [*RECORDED, *EAGER], ids=lambda f: getattr(f, "__name__", "plain"))
def test_a_net_whose_own_code_may_change_it_is_looked_at_all_the_same(forward, compile):
    looks = learned_untouched(kind_of(forward), held_by(forward), compile=compile)
    assert looks == (1 if forward in (*RECORDED, branch, sometimes, writes_its_input, cuts_its_input) else 28)


@pytest.mark.parametrize("name", ["weights put", "memory of a buffer put", "unfreeze", "optimiser loaded", "new layer"])
def test_the_same_with_an_optimiser_that_is_not_laid_flat(name):
    change = frozen if name == "unfreeze" else None
    lane = compare(change=change, body=at(9, BODIES[name]), optimizer=Apart)
    assert lane.recorded, lane.words


def test_a_net_that_is_changed_at_every_step_is_made_eagerly_in_the_end():
    def body(step, net, optimizer):
        net.drop.p = 0.9 / (step + 2)

    lane = compare(body=body)
    assert not lane.recorded and "changed again and again" in lane.words


def test_what_a_loss_reads_may_change_between_two_steps():
    weight = [1.0]
    box = {"scale": 1.0}

    def loss(output, truth):
        return F.cross_entropy(output, truth) * weight[0] * box["scale"]

    def body(step, net, optimizer):
        weight[0] = 1.0 if step > 12 else 1.0 + step // 4
        box["scale"] = 0.5 if step == 8 else 1.0

    weight[0] = 1.0
    lane = compare(loss=loss, body=body)
    assert lane.recorded, lane.words


def test_a_variable_of_the_loop_that_the_loss_reads_may_change():
    results = []
    for way in ("hand", "lane"):
        net, beta = made(), 1.0
        optimizer = fused(net.parameters())

        def loss(output, truth):
            return F.cross_entropy(output, truth) * beta  # noqa: B023

        for step in range(20):
            x, y = PARTS[step % 7]
            if way == "hand":
                optimizer.zero_grad()
                loss(net(x), y).backward()
                optimizer.step()
            beta = 1.0 if step < 10 else 0.25
        if way == "lane":
            net, beta = made(), 1.0
            optimizer = fused(net.parameters())
            for progress in lamina.learn(net, PARTS, loss, optimizer, steps=20):
                beta = 1.0 if progress.step <= 10 else 0.25
        results.append(net)
    assert_equal(results[0].state_dict(), results[1].state_dict())


def test_eval_in_the_body_is_undone():
    def body(step, net, optimizer):
        if step == 9:
            net.eval()

    net = made()
    by_hand(net, PARTS, F.cross_entropy, fused(net.parameters()))
    other = made()
    _, lane = learned(other, PARTS, F.cross_entropy, fused(other.parameters()), body=body)
    assert_equal(net.state_dict(), other.state_dict())
    assert lane.recorded


# --- Batches ----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(6, 6, 3)

    def forward(self, a, b):
        return self.layer(a, b)


def test_a_short_last_batch_is_made_eagerly_or_recorded():
    lane = compare(parts=RAGGED)
    assert lane.recorded
    compare(parts=RAGGED, compile="off")


@pytest.mark.parametrize(("steps", "shapes"), [(21, {8}), (10_000, {3, 8}), (None, {3, 8})])
def test_a_further_shape_is_recorded_where_so_many_are_to_come_that_it_pays(steps, shapes):
    net = made()
    optimizer, objective = fused(net.parameters()), engine.supervised(F.cross_entropy)
    lane = lanes.Lane(net, objective, optimizer, steps=steps)
    for _ in lamina.learn(net, RAGGED, optimizer=optimizer, objective=objective, epochs=3, lane=lane):
        found = {recording.batch.count for recording in lane._recordings.values()}
    assert found == shapes


def drops(net):
    net.norm = nn.Identity()


def drops_and_norms(net):
    pass


def neither(net):
    drops(net)
    net.drop = nn.Identity()
    del net.mean  # a buffer


@pytest.mark.parametrize(("change", "kept"), [(neither, 2), (drops, 14), (drops_and_norms, 14)])
def test_what_changes_nothing_but_weights_is_made_without_keeping_generators(change, kept, monkeypatch):
    """14 steps; two are eager before the recording is believed."""
    calls, keep = [], engine._Before.keep
    monkeypatch.setattr(engine._Before, "keep", lambda self: calls.append(1) or keep(self))
    net = made(change=change)
    _, lane = learned(net, PARTS, F.cross_entropy, fused(net.parameters()), epochs=2)
    assert lane.recorded and len(calls) in (kept, kept + 1)


def test_what_is_made_again_after_a_step_that_kept_nothing_leaves_the_generators_alone():
    drawn = []
    bad = [*PARTS, (torch.full((8, 6), float("nan")), PARTS[0][1])]

    def body(step, net, optimizer):
        torch.rand(3)
        drawn.append(torch.get_rng_state())

    net = made(change=neither)
    with pytest.raises(Diverged, match="was not applied"):
        learned(net, bad, F.cross_entropy, fused(net.parameters()), body=body, epochs=1)
    assert len(drawn) == 7 and torch.equal(torch.get_rng_state(), drawn[-1])


def test_two_inputs():
    assert compare(Two, [(x, x.flip(1), y) for x, y in PARTS]).recorded


def test_no_answer_and_an_objective_of_ones_own():
    def reconstruction(net, x):
        return F.mse_loss(net(x)[:, :3], x[:, :3])

    def objective(net, batch):
        return reconstruction(net, batch.inputs[0]), batch.count

    assert compare(parts=[(x,) for x, _ in PARTS], loss=reconstruction, objective=objective).recorded


@pytest.mark.parametrize("name", ["indices", "key", "epoch", "seed"])
def test_an_objective_that_reads_what_differs_from_batch_to_batch_is_not_recorded(name):
    def objective(net, batch):
        return F.cross_entropy(net(batch.inputs[0]), batch.truth) * (
            1 + 0 * len(str(getattr(batch, name)))
        ), batch.count

    lane = compare(objective=objective)
    assert not lane.recorded and lane.words == f"depends on the batch's {name}"


def test_a_class_that_is_ignored():
    parts = [(x, torch.where(torch.arange(8) == k, -100, y)) for k, (x, y) in enumerate(PARTS)]
    assert compare(parts=parts).recorded


# --- Losses, penalties, optimisers ------------------------------------------------------------------------------------


def test_a_loss_that_keeps_a_list_is_called_at_every_step():
    seen = []

    def loss(output, truth):
        value = F.cross_entropy(output, truth)
        seen.append(value.item())
        return value

    lane = compare(loss=loss)
    assert not lane.recorded and len(seen) == 2 * EPOCHS * len(PARTS)


class Learned(nn.Module):
    """A loss with a parameter and a buffer that it writes to."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, truth):
        self.seen.add_(1)
        return F.cross_entropy(output, truth) * torch.exp(-self.scale) + self.scale + self.seen * 1e-3


@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("optimizer", [fused, plain, Apart], ids=["fused", "plain", "one by one"])
def test_a_loss_with_parameters_and_buffers_learns(optimizer, compile):
    found = []
    for way in ("hand", "lane"):
        net, loss = made(), Learned()
        chosen = optimizer([*net.parameters(), *loss.parameters()])
        if way == "hand":
            by_hand(net, PARTS, loss, chosen)
        else:
            learned(net, PARTS, loss, chosen, compile=compile)
        found.append((net.state_dict(), loss.state_dict(), chosen.state_dict()))
    assert_equal(found[0], found[1])
    assert float(found[0][1]["scale"]) != 1


class Own(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["n"] = state.get("n", 0) + 1
                    p.add_(p.grad, alpha=-group["lr"] / state["n"] ** 0.5)


OPTIMISERS = {
    "own": Own,
    "adam, not fused": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, fused=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "maximize": lambda p: torch.optim.SGD(p, lr=1e-3, maximize=True, fused=True),
    "groups": lambda p: optimizers.make(
        "adamw", [{"params": (own := list(p))[:2], "lr": 1e-3}, {"params": own[2:], "weight_decay": 0.0}], 1e-2
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(name):
    assert compare(optimizer=OPTIMISERS[name]).recorded
    compare(optimizer=OPTIMISERS[name], compile="off")


def test_muon_with_adamw():
    lane = compare(held=lambda net: net, optimizer=lambda net: optimizers.make("muon", net, 1e-2))
    assert lane.recorded


@pytest.mark.parametrize("penalty", [penalties.l1(1e-2), penalties.l2(1e-2)], ids=["l1", "l2"])
def test_penalties(penalty):
    assert compare(penalty=penalty).recorded
    compare(penalty=penalty, compile="off")


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("optimizer", [fused, plain, Apart], ids=["fused", "plain", "one by one"])
def test_clipping_has_the_bits_of_the_loop_by_hand_where_strict(optimizer, compile):
    def value(net):
        nn.utils.clip_grad_value_(net.parameters(), 0.01)

    def norm(net):
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)

    body = at(9, zero)
    compare(clip=value, clip_value=0.01, optimizer=optimizer, compile=compile, body=body)
    compare(clip=norm, clip_norm=0.05, strict=True, optimizer=optimizer, compile=compile, body=body)


def test_clipping_to_a_norm_is_the_same_but_for_rounding_where_not_strict():
    net, other = made(), made()
    by_hand(net, PARTS[:3], F.cross_entropy, fused(net.parameters()),
            clip=lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.05), epochs=1)  # fmt: skip
    learned(other, PARTS[:3], F.cross_entropy, fused(other.parameters()), clip_norm=0.05, epochs=1)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-2, atol=1e-4)


def test_bf16_has_the_bits_of_the_loop_by_hand():
    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    net, other = made(), made()
    optimizer, theirs = fused(net.parameters()), fused(other.parameters())
    seeded()
    for _ in range(EPOCHS):
        for x, y in PARTS:
            optimizer.zero_grad()
            with autocast():
                value = F.cross_entropy(net(x), y)
            value.backward()
            optimizer.step()
    _, lane = learned(other, PARTS, F.cross_entropy, theirs, autocast=autocast(), precision="bf16")
    assert lane.recorded, lane.words
    assert_equal(net.state_dict(), other.state_dict())


def test_a_loss_that_is_scaled_is_not_recorded():
    net = made()
    optimizer, objective = fused(net.parameters()), engine.supervised(F.cross_entropy)
    lane = lanes.Lane(net, objective, optimizer, scaled=True)
    assert not lane.recorded and lane.words == "its loss is scaled for fp16"
    with pytest.raises(UsageError, match="scaled"):
        lanes.Lane(net, objective, optimizer, scaled=True, compile="on")


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_gradients_of_several_batches_are_those_of_the_loop_by_hand(compile):
    net, other = made(kind_of(unused)), made(kind_of(unused))
    optimizer = sgd(net.parameters())
    for _ in range(EPOCHS):
        for k in range(0, 6, 2):
            optimizer.zero_grad()
            for x, y in PARTS[k : k + 2]:
                (F.cross_entropy(net(x), y) / 2).backward()
            optimizer.step()
    learned(other, PARTS[:6], F.cross_entropy, sgd(other.parameters()), accumulate=2, compile=compile)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_average_and_schedule_have_the_bits_of_the_loop_by_hand():
    averages = []
    for way in ("hand", "lane"):
        net = made()
        optimizer = fused(net.parameters())
        average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
        if way == "hand":
            seeded()
            for step in range(EPOCHS * len(PARTS)):
                x, y = PARTS[step % len(PARTS)]
                optimizer.param_groups[0]["lr"] = 1e-2 * 0.9**step
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
                average.update_parameters(net)
        else:
            learned(net, PARTS, F.cross_entropy, optimizer, ema=average, schedule=lambda step: 0.9**step)
        averages.append(average.state_dict())
    assert_equal(averages[0], averages[1])


# --- Ends, and what is shown ------------------------------------------------------------------------------------------


class Fails(Net):
    def forward(self, x):
        if x.shape[0] == 3:
            raise ZeroDivisionError("as planted")
        return super().forward(x)


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_an_error_in_forward_leaves_a_net_with_memory_of_its_own(compile):
    net = made(Fails)
    optimizer = fused(net.parameters())
    with pytest.raises(ZeroDivisionError, match="as planted"):
        learned(net, RAGGED, F.cross_entropy, optimizer, compile=compile)
    assert_own_memory(net, optimizer)
    plain = made()
    by_hand(plain, PARTS[:6], F.cross_entropy, theirs := fused(plain.parameters()), epochs=1)
    assert_equal(plain.state_dict(), net.state_dict())
    assert_equal(theirs.state_dict(), optimizer.state_dict())


def test_learning_that_is_left_early_leaves_a_net_with_memory_of_its_own():
    net, plain = made(), made()
    optimizer, theirs = fused(net.parameters()), fused(plain.parameters())
    seeded()
    learning = lamina.learn(net, PARTS, F.cross_entropy, optimizer, epochs=9)
    for progress in learning:
        if progress.step == 14:
            break
    learning.close()
    assert_own_memory(net, optimizer)
    by_hand(plain, PARTS, F.cross_entropy, theirs, epochs=2)
    assert_equal(plain.state_dict(), net.state_dict())
    by_hand(plain, PARTS, F.cross_entropy, theirs, epochs=1)  # and both go on by hand
    by_hand(net, PARTS, F.cross_entropy, optimizer, epochs=1)
    assert_equal(plain.state_dict(), net.state_dict())


def test_a_step_that_is_not_finite_is_not_applied():
    parts = [*PARTS[:5], (torch.full((8, 6), float("nan")), Y[:8]), *PARTS[:1]]
    nets = []
    for compile in ("auto", "off"):
        net = made(kind_of(unused))
        with pytest.raises(Diverged, match="step 6"):
            learned(net, parts, F.cross_entropy, fused(net.parameters()), compile=compile)
        nets.append(net)
    assert_equal(nets[0].state_dict(), nets[1].state_dict())


def test_what_progress_shows_is_that_of_the_plain_path_and_stays_when_it_is_kept():
    shown = []
    for compile in ("on", "off"):
        net = made()
        rows = []
        batches = lamina.Batches((X,), Y, batch_size=8)
        for progress in lamina.learn(net, batches, F.cross_entropy, fused(net.parameters()), epochs=2, compile=compile):
            rows.append((progress.loss, progress.mean_loss, progress.batch_data, progress.step, progress.epoch_end))
        shown.append([(a, b, list(c), c.indices, d, e) for a, b, c, d, e in rows])
    assert_equal(shown[0], shown[1])
    assert not torch.equal(shown[0][0][2][0], shown[0][1][2][0])


# --- A check that compares --------------------------------------------------------------------------------------------


def planted(monkeypatch, after, harm):
    """From the replay of that number on, a replay does harm."""
    plain, count = tape.Tape.replay, itertools.count()

    def replay(self):
        plain(self)
        if next(count) >= after:
            harm(self)

    monkeypatch.setattr(tape.Tape, "replay", replay)


HARMS = {
    "a gradient": lambda tape: tape.given[-1].mul_(1.0001),
    "the loss": lambda tape: tape.given[0].add_(1e-4),
    "a generator": lambda tape: torch.rand(1),
    "an error": lambda tape: 1 / 0,
}


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("optimizer", [fused, plain, Apart], ids=["fused", "plain", "one by one"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_replay_that_is_wrong_is_found_and_the_training_ends_in_the_right_bits(monkeypatch, harm, optimizer, after):
    planted(monkeypatch, after, HARMS[harm])
    lane = compare(optimizer=optimizer)
    assert not lane.recorded
    assert ("other bits" in lane.words) or ("ZeroDivisionError" in lane.words)


def test_a_replay_that_forgets_a_buffer_is_found(monkeypatch):
    planted(monkeypatch, 0, lambda tape: RIGHT[0].norm.running_mean.add_(1e-3))

    class Seen(Net):
        def __init__(self):
            super().__init__()
            RIGHT[:] = [self]

    lane = compare(Seen)
    assert not lane.recorded and "other bits" in lane.words


RIGHT: list[nn.Module] = []


@pytest.mark.parametrize("harm, words", [
    (lambda tape: tape.given[-1].mul_(1.0001), "the gradient of two.bias"),
    (lambda tape: tape.given[-4].mul_(1.0001), "the gradient of one.weight"),
    (HARMS["the loss"], "the loss"),
    (HARMS["a generator"], "a buffer or a generator"),
])  # fmt: skip
def test_words_name_what_differs(monkeypatch, harm, words):
    planted(monkeypatch, 1, harm)
    net = nn.Sequential(OrderedDict(one=nn.Linear(6, 5), act=nn.ReLU(), two=nn.Linear(5, 3)))
    _, lane = learned(net, PARTS, F.cross_entropy, fused(net.parameters()))
    assert lane.words.endswith(f"other bits when it is replayed, in {words}")


class Captured:
    """In the place of a CUDA graph: the function itself, into memory that stays."""

    off = 0.0

    def __init__(self, function, into=None, *, warm=False):
        self.function = function
        self.given = []
        if not warm:  # while it is captured nothing is computed, so a function that must not run twice does not
            function()
            self.given = [(into or {}).get(k, tensor.detach().clone()) for k, tensor in enumerate(function())]

    def replay(self):
        for tensor, value in zip(self.given, self.function(), strict=True):
            tensor.detach().copy_(value.detach() * (1 + self.off))

    def seconds(self):
        self.replay()
        return 1e-4


@pytest.fixture
def captured(monkeypatch):
    """Steps as on a GPU; what of them was captured: True where it follows the gradients."""
    made = []

    class Seen(Captured):
        def __init__(self, function, into=None, *, warm=False):
            super().__init__(function, into, warm=warm)
            made.append(warm)

    monkeypatch.setattr(lanes, "_CAPTURED", ("cpu",))
    monkeypatch.setattr(lanes, "_OFTEN", 2)
    monkeypatch.setattr(lanes, "Graph", Seen)
    return made


@pytest.mark.parametrize("forward", [torch_random, buffer, unused, python_random], ids=lambda f: f.__name__)
def test_a_captured_step_ends_where_the_eager_one_does(captured, forward):
    lane = compare(kind_of(forward), change=adds_parts)
    assert lane.recorded == (forward is not python_random)


def test_a_captured_step_may_differ_by_rounding_and_no_more(captured, monkeypatch):
    for off, recorded in ((1e-5, True), (1e-2, False)):
        monkeypatch.setattr(Captured, "off", off)
        net = made()
        _, lane = learned(net, PARTS, F.cross_entropy, fused(net.parameters()))
        assert lane.recorded is recorded and (recorded or "in the loss" in lane.words)


def test_a_step_is_captured_when_its_shape_has_come_often(captured, monkeypatch):
    monkeypatch.setattr(lanes, "_OFTEN", 5)
    net = made()
    learned(net, PARTS[:4], F.cross_entropy, fused(net.parameters()), epochs=1)
    assert not captured
    learned(net, PARTS[:5], F.cross_entropy, fused(net.parameters()), epochs=1)
    assert captured


NOT_A_NUMBER = (torch.full((8, 6), float("nan")), Y[:8])
CHANGES = {
    "nothing": lambda step, net, optimizer: None,
    "the rate": lambda step, net, optimizer: optimizer.param_groups[0].update(lr=1e-2 / (1 + step)),
    "the decay": lambda step, net, optimizer: optimizer.param_groups[0].update(weight_decay=0.1 * (step > 9)),
}


@pytest.mark.parametrize("optimizer", [fused, sgd])
@pytest.mark.parametrize("parts", [PARTS, [*PARTS[:4], NOT_A_NUMBER, *PARTS[4:]]], ids=["finite", "not a number"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_the_gradients_is_captured_too(captured, monkeypatch, optimizer, parts, change):
    monkeypatch.setattr("lamina.engine._is_near", lambda tensor: False)
    ends = []
    for compile in ("off", "auto"):
        net = made()
        _, lane = learned(net, parts, F.cross_entropy, optimizer(net.parameters()), compile=compile,
                          body=CHANGES[change], clip_norm=0.5, skips=1)  # fmt: skip
        ends.append(net.state_dict())
        assert lane.recorded == (compile == "auto"), lane.words
    assert_equal(*ends)
    assert captured.count(True) == (2 if change == "the decay" else 1)


def test_a_step_whose_end_cannot_be_captured_goes_on_eagerly(captured, monkeypatch):
    class Fails(Captured):
        def __init__(self, function, into=None, *, warm=False):
            if warm:
                raise RuntimeError("no room")
            super().__init__(function, into, warm=warm)

    monkeypatch.setattr("lamina.engine._is_near", lambda tensor: False)
    monkeypatch.setattr(lanes, "Graph", Fails)
    net, other = made(), made()
    _, lane = learned(net, PARTS, F.cross_entropy, fused(net.parameters()))
    learned(other, PARTS, F.cross_entropy, fused(other.parameters()), compile="off")
    assert_equal(net.state_dict(), other.state_dict())
    assert not lane.recorded and "no room" in lane.words


def test_a_replay_that_goes_wrong_later_is_found_in_a_later_epoch(monkeypatch):
    monkeypatch.setattr(lanes, "_CHECK", 3)
    planted(monkeypatch, 8, HARMS["a gradient"])
    net = made()
    _, lane = learned(net, PARTS, F.cross_entropy, fused(net.parameters()))
    assert not lane.recorded and "other bits" in lane.words


def test_compile_on_says_that_a_replay_is_wrong(monkeypatch):
    planted(monkeypatch, 0, HARMS["a gradient"])
    net = made()
    with pytest.raises(UsageError, match="other bits"):
        learned(net, PARTS, F.cross_entropy, fused(net.parameters()), compile="on")


def test_large_masks_are_the_same_recorded_and_eager():
    class Wide(Net):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(6, 9000), nn.Identity(), nn.Linear(9000, 3)

    assert masks.LARGE < 8 * 9000
    recorded, eager = made(Wide), made(Wide)
    _, lane = learned(recorded, PARTS, F.cross_entropy, sgd(recorded.parameters()), compile="on", epochs=1)
    objective = engine.supervised(F.cross_entropy)
    other = lanes.Lane(eager, objective, sgd(eager.parameters()))
    other.recorded = False
    seeded()
    for _ in lamina.learn(eager, PARTS, objective=objective, optimizer=other.optimizer, lane=other):
        pass
    assert_equal(recorded.state_dict(), eager.state_dict())
    assert lane.recorded


def test_batches_that_are_cut_into_the_same_memory():
    memory = (torch.empty(8, 6), torch.empty(8, dtype=torch.long))

    class Lasting:
        exact = True

        def __len__(self):
            return len(PARTS)

        def epoch(self, epoch, start=0):
            for k, (x, y) in enumerate(PARTS[start:], start):
                memory[0].copy_(x)
                memory[1].copy_(y)
                yield Batch((memory[0],), memory[1], torch.arange(8 * k, 8 * k + 8), 8, epoch, lasting=True)

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    net, other = made(), made()
    by_hand(net, PARTS, F.cross_entropy, fused(net.parameters()))
    _, lane = learned(other, Lasting(), F.cross_entropy, fused(other.parameters()), compile="on")
    assert lane.recorded
    assert_equal(net.state_dict(), other.state_dict())


def test_gradients_of_several_batches_are_not_recorded_and_compile_on_says_so():
    net = made()
    with pytest.raises(UsageError, match="several batches are added up eagerly"):
        next(lamina.learn(net, PARTS, F.cross_entropy, fused(net.parameters()), accumulate=2, compile="on"))
    for compile in ("auto", "off"):
        next(lamina.learn(net, PARTS, F.cross_entropy, fused(net.parameters()), accumulate=2, compile=compile))


def test_a_loss_that_learns_gets_the_gradients_of_the_big_batch_from_small_ones():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, y):
            return F.cross_entropy(output * self.scale, y)

    ends = []
    for parts, accumulate in (([(X[:8], Y[:8])], 1), ([(X[:4], Y[:4]), (X[4:8], Y[4:8])], 2)):
        torch.manual_seed(0)
        net, loss = nn.Linear(6, 3), Scaled()
        optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.5)
        for _ in lamina.learn(net, parts, loss, optimizer, accumulate=accumulate):
            pass
        ends.append(loss.scale.item())
    assert ends[0] == pytest.approx(ends[1], rel=1e-5) and ends[0] != 1.0
