"""Keyed random numbers: the right numbers, evenly spread, and the same in any company."""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lamina.keyed import _GAMMA, Key, _mix, number, permutation

N = 40_000
WORD = 1 << 64
CHANCE = 1e-5  # what a p-value must exceed: the numbers are fixed, and there are some dozens of such tests


def key(n: int = N, seed: int = 3, epoch: int = 5) -> Key:
    return Key(seed, epoch, torch.arange(n))


def splitmix(state: int) -> int:
    """The finaliser of SplitMix64 in Python's own integers."""
    z = state % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


# --- the right numbers ------------------------------------------------------------------------------------------------

# The first outputs for the seed 1234567, as published at Rosetta Code from the generator's reference implementation.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mix_gives_the_published_outputs_of_splitmix64():
    states = 1234567 + torch.arange(1, 6) * _GAMMA
    assert [x % WORD for x in _mix(states).tolist()] == PUBLISHED


def test_bits_are_those_of_unbounded_integers():
    indices = [0, 1, 2, 59_999, 2**40 + 7, 2**62]
    base = int.from_bytes(hashlib.sha256(b"7\0flip\x002").digest()[:8], "little") >> 1
    golden = 0x9E3779B97F4A7C15
    expected = [[splitmix(splitmix(i * golden + base) + j * golden) for j in (1, 2, 3)] for i in indices]
    bits = Key(7, 2, torch.tensor(indices)).bits("flip", 3)
    assert [[x % WORD for x in row] for row in bits.tolist()] == expected


def test_numbers_are_pinned():
    """These may never change: a checkpoint of an older version would be resumed with other pictures."""
    assert number(0, "order", 0) == int.from_bytes(hashlib.sha256(b"0\0order\x000").digest()[:8], "little") >> 1
    assert Key(0, 0, torch.tensor([0, 1])).bits("shift", 2).tolist() == [
        [-638656740799718112, -7017279879736594082],
        [-2425582560225109515, 5229919379272812320],
    ]
    assert permutation(0, 0, 8).tolist() == [7, 4, 3, 0, 6, 2, 5, 1]


def test_uniform_is_the_upper_24_bits():
    bits = key(100).bits("x", 3)
    expected = (np.array(bits.tolist(), dtype=object) % WORD >> 40).astype(float) / 2**24
    assert np.array_equal(key(100).uniform("x", 3).double().numpy(), expected)


def test_number_is_63_bits_and_minds_where_words_end():
    numbers = {number(1, "ab", "c"), number(1, "a", "bc"), number(1, "abc"), number(11, "abc"), number(1, "abc", 0)}
    assert len(numbers) == 5
    assert all(0 <= n < 1 << 63 for n in numbers)


# --- the order --------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), n=st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_the_order_is_a_permutation_and_a_function(seed, epoch, n):
    order = permutation(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(seed, epoch, n))


def test_the_order_depends_on_seed_and_epoch():
    orders = {tuple(permutation(seed, epoch, 20).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_all_orders_are_equally_likely():
    index = {order: k for k, order in enumerate(permutations(range(4)))}
    counts = np.bincount([index[tuple(permutation(0, epoch, 4).tolist())] for epoch in range(4800)], minlength=24)
    assert stats.chisquare(counts).pvalue > CHANCE


# --- evenly spread ----------------------------------------------------------------------------------------------------


def test_uniform_is_uniform():
    u = key().uniform("shift", 2)
    assert u.dtype == torch.float32 and u.shape == (N, 2)
    assert u.min() >= 0 and u.max() < 1
    for draw in u.T.numpy():
        assert stats.kstest(draw, "uniform").pvalue > CHANCE


def test_uniform_of_one_example_over_epochs_is_uniform():
    u = [Key(0, epoch, torch.tensor([17])).uniform("flip").item() for epoch in range(3000)]
    assert stats.kstest(u, "uniform").pvalue > CHANCE


def test_uniform_is_as_uniform_as_chance_has_it():
    """Pairs of draws in 5 by 5 cells, for 20 seeds in 20 epochs: the p-values are themselves uniform."""
    p_values = []
    for seed in range(20):
        for epoch in range(20):
            cell = (key(2000, seed, epoch).uniform("crop", 2) * 5).long()
            counts = torch.bincount(cell[:, 0] * 5 + cell[:, 1], minlength=25)
            p_values.append(stats.chisquare(counts.numpy()).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > CHANCE


def test_every_bit_is_set_half_the_time():
    bits = key().bits("x", 2).numpy()
    for j in range(64):
        assert abs(((bits >> j) & 1).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(bits.size)


COMPANIONS = {
    "the next example": lambda: (key(N + 1).uniform("shift")[:-1], key(N + 1).uniform("shift")[1:]),
    "the 64th next example": lambda: (key(N + 64).uniform("shift")[:-64], key(N + 64).uniform("shift")[64:]),
    "the next draw": lambda: key().uniform("shift", 2).split(1, 1),
    "another purpose": lambda: (key().uniform("shift"), key().uniform("flip")),
    "the next epoch": lambda: (key(epoch=0).uniform("shift"), key(epoch=1).uniform("shift")),
    "the next seed": lambda: (key(seed=0).uniform("shift"), key(seed=1).uniform("shift")),
    "seed and epoch changed about": lambda: (key(seed=1, epoch=2).uniform("a"), key(seed=2, epoch=1).uniform("a")),
    "the next example's next draw": lambda: (key(N + 1).uniform("a", 2)[:-1, 1], key(N + 1).uniform("a", 2)[1:, 0]),
}


def dependence(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """The correlation in standard errors, and the p-value of independence in a table of 16 by 16."""
    x, y = a.double().flatten().numpy(), b.double().flatten().numpy()
    table = np.histogram2d(x, y, bins=16, range=[[0, 1], [0, 1]])[0]
    return abs(np.corrcoef(x, y)[0, 1]) * np.sqrt(len(x)), stats.chisquare(table.ravel()).pvalue


@pytest.mark.parametrize("companion", COMPANIONS)
def test_numbers_are_independent_of(companion):
    errors, p = dependence(*COMPANIONS[companion]())
    assert errors < 4.5 and p > CHANCE


def test_the_measure_of_independence_finds_a_planted_dependence():
    u, v = key().uniform("shift", 2).split(1, 1)
    errors, p = dependence(u, (0.95 * v + 0.05 * u) % 1)
    assert errors > 4.5 and p < CHANCE


def test_normal_is_normal():
    z = key().normal("noise", 2)
    assert torch.isfinite(z).all()
    for draw in z.T.numpy():
        assert stats.kstest(draw, "norm").pvalue > CHANCE
    assert abs(np.corrcoef(z.T.numpy())[0, 1]) < 4.5 / np.sqrt(N)


def test_integers_include_both_ends_and_are_uniform():
    k = key().integers("shift", -3, 3, 2)
    assert k.dtype == torch.int64 and k.shape == (N, 2)
    assert stats.chisquare(np.bincount(k.flatten().numpy() + 3, minlength=7)).pvalue > CHANCE
    assert set(k.flatten().tolist()) == set(range(-3, 4))
    assert key().integers("one", 4, 4).unique().tolist() == [4]


def test_uniform_lies_between_low_and_high():
    u = key().uniform("scale", 1, 0.9, 1.1)
    assert stats.kstest(u[:, 0].double().numpy(), "uniform", (0.9, 0.2)).pvalue > CHANCE
    assert u.min() >= np.float32(0.9) and u.max() <= np.float32(1.1)


# --- the same in any company ------------------------------------------------------------------------------------------

DRAWS = {
    "bits": lambda k: k.bits("x", 3),
    "uniform": lambda k: k.uniform("x", 3),
    "normal": lambda k: k.normal("x", 3),
    "integers": lambda k: k.integers("x", 0, 9, 3),
}
WHOLE = {name: draw(key(300)) for name, draw in DRAWS.items()}


@given(indices=st.lists(st.integers(0, 299), min_size=1, max_size=70), name=st.sampled_from(sorted(DRAWS)))
@settings(max_examples=200, deadline=None)
def test_an_example_has_its_numbers_in_any_batch(indices, name):
    assert torch.equal(DRAWS[name](Key(3, 5, torch.tensor(indices))), WHOLE[name][indices])


@pytest.mark.parametrize("name", ["bits", "uniform", "integers"])
def test_fewer_draws_are_the_first_of_more(name):
    more = DRAWS[name](key(50))
    fewer = {
        "bits": lambda k: k.bits("x"),
        "uniform": lambda k: k.uniform("x"),
        "integers": lambda k: k.integers("x", 0, 9),
    }[name](key(50))
    assert torch.equal(fewer, more[:, :1])


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    permutation(0, 0, 100)
    for draw in DRAWS.values():
        draw(key(10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["bits", "uniform", "integers"])
def test_a_gpu_gives_the_same_numbers(name):
    assert torch.equal(DRAWS[name](Key(3, 5, torch.arange(300, device="cuda"))).cpu(), WHOLE[name])
