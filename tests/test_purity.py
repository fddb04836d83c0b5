"""Which code does the same arithmetic whenever it is called: verdicts on code as people write it, and what is watched.

Asserts are left as they are written, since some are in the code that is read: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import random
import time
from dataclasses import dataclass
from random import random as draw
from time import time as now
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from lamina import purity

SIZES, TABLE, ALPHA, COUNTER = (3, 4), {"heads": 2}, 0.5, itertools.count()
SEEN: list[int] = []


@dataclass
class Config:
    n_head: int = 2
    width: int = 8
    dropout: float = 0.0

    @property
    def head(self):
        return self.width // self.n_head


@dataclass(frozen=True)
class Frozen:
    n_head: int = 2
    width: int = 8
    dropout: float = 0.0
    head: int = 4


class Output(NamedTuple):
    code: torch.Tensor
    picture: torch.Tensor


class Net(nn.Module):
    """What most of the nets below have; their `forward` is what is read."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.1)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.config, self.n, self.history, self.scale = Config(), 0, [], 2.0
        self.register_buffer("mean", torch.zeros(8))


def scaled(x):
    return x * ALPHA / math.sqrt(x.shape[-1])


def counting(x):
    SEEN.append(1)
    return x


@functools.lru_cache
def mask(n):
    return torch.tril(torch.ones(n, n))


# --- What passes ------------------------------------------------------------------------------------------------------


def tutorial(self, x):
    x = F.relu(self.one(x))
    x = x.view(-1, 8)
    return torch.flatten(self.drop(self.two(x)), 1)


def loop(self, x):
    for layer in self.layers:
        x = layer(x)
    return x


def comprehension(self, x):
    return torch.stack([layer(x) for layer in self.layers], 1).mean(1)


def local_list(self, x):
    found = []
    for layer in self.layers:
        found.append(layer(x))
    return torch.stack(found).sum(0)


def local_dictionary(self, x):
    found = {}
    for number, layer in enumerate(self.layers):
        found[number] = layer(x)
    found["all"] = sum(found.values())
    return found["all"]


def local_place(self, x):
    out = torch.zeros(x.shape[0], 8)
    out[:, 0] = x[:, 1]
    out[:, 2:4] = self.one(x)[:, :2]
    return out


def own_place_by_name(self, x):
    k = 3
    out = torch.zeros_like(x)
    out[k] = x[0]
    return out


def generator_expression(self, x):
    return sum(layer(x) for layer in self.layers)


def configured(self, x):
    B, T, C = x.size()
    assert self.config.width == C, f"{C} columns, not {self.config.width}"
    q = x.view(B, T, self.config.n_head, C // self.config.n_head).transpose(1, 2)
    return q * (1.0 / math.sqrt(self.config.head))


def raises(self, x):
    if x.shape[-1] != 8:
        raise ValueError(f"{tuple(x.shape)} is not (B, 8)")
    return x


def from_the_file(self, x):
    return scaled(x) * mask(8)[0]


def hinted(self, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = self.one(x)
    return y


def on_device(self, x):
    return x + torch.arange(8, device=next(self.parameters()).device)


def named_tuple(self, x):
    code = self.one(x)
    return Output(code=code, picture=self.two(code))


def pair(self, x):
    code = self.one(x)
    return code, self.two(code)


def constants(self, x):
    return x * TABLE["heads"] * SIZES[0]


def conditions(self, x):
    if self.training and self.scale > 1:
        x = x * self.scale
    return x if x.dim() == 2 else x.flatten(1)


def buffer_in_place(self, x):
    self.mean.mul_(0.9).add_(x.mean(0))
    return x - self.mean


def lambda_inside(self, x):
    double = lambda t: t * 2  # noqa: E731
    return double(x)


def context(self, x):
    with torch.no_grad():
        y = x * 2
    return self.one(x) + y


def random_of_torch(self, x):
    return x + torch.rand_like(x)


PASS = [tutorial, loop, comprehension, local_list, local_dictionary, local_place, own_place_by_name, generator_expression,
        configured, raises, from_the_file, hinted, on_device, named_tuple, pair, constants, conditions, buffer_in_place,
        lambda_inside, context, random_of_torch]  # fmt: skip


def of(forward, **attributes):
    """A net with that forward."""
    net = type("Own", (Net,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


@pytest.mark.parametrize("forward", PASS, ids=lambda f: f.__name__)
def test_code_of_tutorials_passes(forward):
    assert purity.reason(of(forward)) == ""


class Deep(Net):
    def forward(self, x):
        return self.one(x)


class Deeper(Deep):
    def forward(self, x):
        return super().forward(x) + self.encode(x)

    def encode(self, x):
        return self.two(x)


class Old(Deep):
    SCALE = 2.0

    def forward(self, x):
        return Deep.forward(self, x) * Old.SCALE + super(Old, self).forward(x)  # noqa: UP008


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.n_head, self.n_embd, self.dropout = config.n_head, config.width, config.dropout
        self.flash = hasattr(F, "scaled_dot_product_attention")

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        drop = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Gpt(nn.Module):
    """After nanoGPT."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(11, config.width),
                "wpe": nn.Embedding(6, config.width),
                "h": nn.ModuleList([Attention(config) for _ in range(2)]),
            }
        )
        self.lm_head = nn.Linear(config.width, 11, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        device = idx.device
        _, t = idx.size()
        assert t <= 6, f"Cannot forward sequence of length {t}, block size is only 6 (heads: {self.config.n_head})"
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(0, t, dtype=torch.long, device=device))
        for block in self.transformer.h:
            x = x + block(x)
        if targets is not None:
            return F.cross_entropy(self.lm_head(x).view(-1, 11), targets.view(-1), ignore_index=-1)
        return self.lm_head(x[:, [-1], :])

    def generate(self, idx):  # never called by forward, so it may do what it likes
        print(idx.tolist())


class Block(nn.Module):
    expansion: int = 1

    def __init__(self, norm=None):
        super().__init__()
        norm = norm or nn.BatchNorm2d
        self.conv, self.bn, self.relu, self.downsample = nn.Conv2d(3, 3, 3), norm(3), nn.ReLU(inplace=True), None
        self.norm = norm

    def forward(self, x):
        identity = x
        out = self.relu(self.bn(self.conv(x)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity.mean()
        return out * self.expansion


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = 4
        self.embed, self.lstm, self.out = nn.Embedding(9, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def init_hidden(self, n):
        return torch.zeros(1, n, self.hidden), torch.zeros(1, n, self.hidden)

    def forward(self, words):
        out, _ = self.lstm(self.embed(words), self.init_hidden(words.shape[0]))
        return F.log_softmax(self.out(out), dim=2)


@pytest.mark.parametrize(
    "net",
    [
        Deeper(), Old(), Gpt(Config()), Gpt(SimpleNamespace(n_head=2, width=8, dropout=0.0)), Block(), Tagger(),
        nn.Transformer(8, 2, 1, 1, 8), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU()),
        parametrizations.weight_norm(nn.Linear(3, 3)), parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.TransformerEncoderLayer(8, 2, 8, activation=scaled),
    ],
    ids=lambda net: type(net).__name__,
)  # fmt: skip
def test_nets_of_tutorials_pass(net):
    assert purity.reason(net, [nn.CrossEntropyLoss()]) == ""


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k
        return x * k

    @staticmethod
    def backward(ctx, g):
        return g * ctx.k, None


def with_function(self, x):
    return Double.apply(x, 2.0)


def test_an_autograd_function_passes_where_it_keeps_what_it_needs_in_its_context_only():
    assert purity.reason(of(with_function)) == ""

    def counts(ctx, g):
        SEEN.append(1)
        return g, None

    name, Double.backward, before = "backward", staticmethod(counts), Double.__dict__["backward"]
    try:
        assert "SEEN" in purity.reason(of(with_function)) or ".append()" in purity.reason(of(with_function))
    finally:
        setattr(Double, name, before)


@pytest.mark.parametrize(
    "function",
    [nn.CrossEntropyLoss(), F.mse_loss, functools.partial(F.cross_entropy, label_smoothing=0.1), scaled, torch.nn.MSELoss(),
     lambda o, t: F.mse_loss(o, t) + 0.1 * o.abs().mean(), torch.no_grad()(scaled), torch.logsumexp, math.sqrt],
)  # fmt: skip
def test_losses_pass(function):
    assert purity.reason(nn.Linear(2, 2), [function]) == ""


# --- What does not ----------------------------------------------------------------------------------------------------


def counter(self, x):
    self.n += 1
    return x * self.n


def counter_in_class(self, x):
    type(self).n += 1
    return x


def keeps(self, x):
    self.history.append(x)
    return x


def keeps_by_another_name(self, x):
    history = self.history
    history.append(1)
    return x


def places(self, x):
    self.table[0] = 1
    return x


def places_by_another_name(self, x):
    table = self.config
    table[0] = x
    return x


def writes_to_its_input(self, x):
    x[0] = 0
    return x


def adds_to_its_input(self, x):
    k = torch.tensor(0)
    x[k] += 1
    return x


def python_random(self, x):
    return x * random.random()


def python_random_by_name(self, x):
    return x * draw()


def clock(self, x):
    return x * time.time()


def clock_by_name(self, x):
    return x * now()


def of_numpy(self, x):
    return x * float(np.random.rand())


def through_numpy(self, x):
    return torch.from_numpy(x.detach().numpy())


def reads(self, x):
    return x * x.sum().item()


def counts_on(self, x):
    return x * next(COUNTER)


def counts_below(self, x):
    return counting(x)


def prints(self, x):
    print(x.shape)
    return x


def opens(self, x):
    return x * len(open("/dev/null").read())


def sets_global(self, x):
    global ALPHA
    ALPHA = 0.5
    return x


def imports(self, x):
    import random

    return x * random.random()


def by_setattr(self, x):
    setattr(self, "n", 2)  # noqa: B010
    return x


def in_comprehension(self, x):
    return sum([layer(x) * draw() for layer in self.layers])


def in_generator(self, x):
    return sum(layer(x) * draw() for layer in self.layers)


def in_lambda(self, x):
    return (lambda t: t * draw())(x)


def of_a_dictionary(self, x):
    self.table.update(a=1)
    return x


FAIL = [counter, counter_in_class, keeps, keeps_by_another_name, places, places_by_another_name, writes_to_its_input,
        adds_to_its_input, python_random, python_random_by_name, clock, clock_by_name, of_numpy, through_numpy, reads,
        counts_on, counts_below, prints, opens, sets_global, imports, by_setattr, in_comprehension, in_generator, in_lambda,
        of_a_dictionary]  # fmt: skip


@pytest.mark.parametrize("forward", FAIL, ids=lambda f: f.__name__)
def test_code_that_may_do_something_else_next_time_does_not_pass(forward):
    assert purity.reason(of(forward, table={})) != ""


def test_words_name_the_function_and_what_it_does():
    assert purity.reason(of(counter)) == "counter sets n"
    assert purity.reason(of(prints)) == "prints uses print()"
    assert purity.reason(of(clock)) == "clock uses time, a module that may do anything"


class Counting(Deep):
    def forward(self, x):
        self.n += 1
        return x


class Below(Counting):
    def forward(self, x):
        return super().forward(x)


class Beside(Counting):
    def forward(self, x):
        return Counting.forward(self, x)


class Makes(Net):
    def forward(self, x):
        return Deep()(x)


class Helper(nn.Module):
    def forward(self, x):
        return x

    def encode(self, x):
        self.n = 1
        return x


class Asking(Net):
    def __init__(self):
        super().__init__()
        self.helper = Helper()

    def forward(self, x):
        return self.helper.encode(x)


class Named(Net):
    def forward(self, x):
        return getattr(self, f"step_{self.n}")(x)

    def step_0(self, x):
        return x * draw()


class Property(Net):
    def forward(self, x):
        return x * self.rate

    @property
    def rate(self):
        return draw()


CALLS = [Below(), Beside(), Makes(), Asking(), Named(), Property(), nn.Sequential(nn.Linear(2, 2), Counting())]


@pytest.mark.parametrize("net", CALLS, ids=lambda net: type(net).__name__)
def test_what_forward_calls_is_read_as_well(net):
    assert purity.reason(net) != ""


def replaced(net):
    net.forward = lambda x: x


def hooked(net):
    net.one.register_forward_hook(lambda *_: None)


def hooked_backward(net):
    net.one.register_full_backward_hook(lambda *_: None)


def hooked_parameter(net):
    net.one.weight.register_hook(lambda g: g)


def hooked_after(net):
    net.one.weight.register_post_accumulate_grad_hook(lambda p: None)


@pytest.mark.parametrize("change", [replaced, hooked, hooked_backward, hooked_parameter, hooked_after],
                         ids=lambda f: f.__name__)  # fmt: skip
def test_a_net_with_hooks_or_another_forward_does_not_pass(change):
    net = of(tutorial)
    assert purity.reason(net) == ""
    change(net)
    assert purity.reason(net) != ""


@pytest.mark.parametrize(
    "value",
    [torch.Generator(), itertools.count(), iter([1]), random.Random(0), np.random.default_rng(0), draw, now, [draw],
     {"a": SimpleNamespace(f=now)}, np.zeros(3), functools.partial(draw), collections.Counter.__iter__({}), [Counting()]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_net_that_keeps_what_may_change_by_itself_does_not_pass(value):
    net = of(tutorial, thing=value)
    assert purity.reason(net) != ""


def test_hooks_of_all_modules_are_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks" in purity.reason(nn.Linear(2, 2))
    finally:
        handle.remove()
    assert purity.reason(nn.Linear(2, 2)) == ""


def test_a_closure_that_counts_does_not_pass():
    calls, n = [], 0

    def appends(o, t):
        calls.append(1)
        return F.mse_loss(o, t)

    def counts(o, t):
        nonlocal n
        n += 1
        return F.mse_loss(o, t) * n

    def seldom(o, t, state=[0]):  # noqa: B006
        state[0] += 1
        return F.mse_loss(o, t)

    for function in (appends, counts, seldom):
        assert purity.reason(nn.Linear(2, 2), [function]) != "", function


# --- What is watched --------------------------------------------------------------------------------------------------


def test_a_change_of_what_was_read_is_seen():
    weight, box = 0.5, [1.0]
    config, table = Config(), {"a": 1}

    def loss(o, t):
        return F.mse_loss(o, t) * weight * ALPHA * box[0] * config.n_head * table["a"]

    reading = purity.Reading(nn.Linear(2, 2), [loss])
    assert reading.reason == ""

    def changed(before):
        return reading.values() != before

    before = reading.values()
    assert not changed(before)
    weight = 0.25
    assert changed(before)
    before = reading.values()
    box[0] = 2.0
    assert changed(before)
    before = reading.values()
    config.n_head = 3
    assert changed(before)
    before = reading.values()
    table["a"] = 2
    assert changed(before)
    before = reading.values()
    globals()["ALPHA"] = 0.75
    assert changed(before)
    globals()["ALPHA"] = 0.5
    assert not changed(before)


class Trainer:
    def __init__(self):
        self.beta = 1.0
        self.net = nn.Linear(2, 2)

    def loss(self, o, t):
        return F.mse_loss(o, t) * self.beta

    def odd(self, o, t):
        self.beta *= 0.5
        return F.mse_loss(o, t)


def test_a_method_is_watched_with_the_object_it_belongs_to():
    trainer = Trainer()
    reading = purity.Reading(nn.Linear(2, 2), [trainer.loss])
    assert reading.reason == "" and trainer.net in reading.modules
    before = reading.values()
    trainer.beta = 0.5
    assert reading.values() != before
    assert purity.reason(nn.Linear(2, 2), [trainer.odd]) == "Trainer.odd sets beta"
