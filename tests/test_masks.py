"""Large masks are Bernoulli draws, independent of each other, and depend on torch's generator alone; small ones are torch's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamina import masks

N = 1 << 20  # places of a mask
PROBABILITIES = [0.5, 0.1, 0.9, 0.3, 1 / 255, 254 / 255, 1 / 3]
LIMIT = 4.5  # standard deviations: of one fair test in 150,000


def drawn(p: float, seed: int = 0, n: int = N) -> Tensor:
    torch.manual_seed(seed)
    return masks.fill(torch.empty(n), p)


def z(ones: Tensor, p: float) -> float:
    """By how many standard deviations the number of ones is off, of independent draws."""
    n = ones.numel()
    return (float(ones.double().sum()) - n * p) / math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_share_of_ones(p: float, seed: int) -> None:
    mask = drawn(p, seed)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(z(mask, p)) < LIMIT
    for k in range(4):  # the four that share one number of the generator
        assert abs(z(mask[k::4], p)) < LIMIT


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_spread_of_the_shares(p: float) -> None:
    """Counts of many stretches scatter as they should: neither more evenly nor less. Chi-square, over the number of counts."""
    for length in (64, 1000):
        mask = drawn(p, 5)[: N // length * length].view(-1, length).double()
        counts = mask.sum(1)
        ratio = float((counts - length * p).square().sum()) / (length * p * (1 - p))
        excess = (1 - 6 * p * (1 - p)) / (length * p * (1 - p))  # of a binomial's kurtosis
        assert abs(ratio - len(counts)) < LIMIT * math.sqrt(len(counts) * (2 + excess))


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9])
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 16, 64, 784, 1024, 4096, 65536])
def test_places_do_not_depend_on_each_other(p: float, lag: int) -> None:
    mask = drawn(p, 1)
    assert abs(correlation(mask[:-lag], mask[lag:], p, p)) < LIMIT


@pytest.mark.parametrize("p, q", [(0.5, 0.5), (0.1, 0.9), (0.3, 0.5)])
def test_masks_do_not_depend_on_each_other(p: float, q: float) -> None:
    """One after the other, and of neighbouring seeds."""
    torch.manual_seed(0)
    several = [masks.fill(torch.empty(N), p if k % 2 else q) for k in range(4)]
    for i in range(4):
        for j in range(i):
            assert abs(correlation(several[i], several[j], p if i % 2 else q, p if j % 2 else q)) < LIMIT
    assert abs(correlation(drawn(p, 0), drawn(q, 1), p, q)) < LIMIT


def correlation(a: Tensor, b: Tensor, p: float, q: float) -> float:
    """In standard deviations of independent draws."""
    total = float(((a.double() - p) * (b.double() - q)).sum())
    return total / math.sqrt(a.numel() * p * (1 - p) * q * (1 - q))


def test_every_pattern_of_eight_places_comes_as_often() -> None:
    codes = (drawn(0.5, 3).view(-1, 8) * 2 ** torch.arange(8)).sum(1).long()
    counts = codes.bincount(minlength=256).double()
    expected = N / 8 / 256
    chi = float((counts - expected).square().sum() / expected)
    assert abs(chi - 255) < LIMIT * math.sqrt(2 * 255)


def test_the_tests_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rounds that mix the bits, neighbours hang together."""
    monkeypatch.setattr(masks, "_ROUNDS", ())
    mask = drawn(0.5, 1)
    assert max(abs(correlation(mask[:-lag], mask[lag:], 0.5, 0.5)) for lag in (4, 8, 16)) > 50


def test_the_numbers_are_those_of_splitmix() -> None:
    """Against the published algorithm, in Python's integers."""
    torch.manual_seed(7)
    mask = masks.fill(torch.empty(masks.LARGE), 0.3)
    torch.manual_seed(7)
    state = int(torch.empty(1, dtype=torch.int64).random_(-(2**63), None))
    wrap = 2**64 - 1
    for number in range(50):
        x = (state + number * 0x9E3779B97F4A7C15) & wrap
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
        x ^= x >> 31
        for place in range(4):
            part = (x >> (16 * place)) & 0xFFFF
            signed = part - 0x10000 if part & 0x8000 else part
            assert mask[4 * number + place] == float(signed < round(0.3 * 65536) - 32768)


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-6, 1e-3, 1 - 1e-3, 1 - 1e-6])
def test_what_is_rare_is_drawn_by_torch(p: float) -> None:
    mask = drawn(p, 2)
    torch.manual_seed(2)
    assert torch.equal(mask, torch.empty(N).bernoulli_(p))
    assert mask.mean() == p if p in (0.0, 1.0) else abs(z(mask, p)) < 5


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("n", [10, masks.LARGE])
def test_what_is_no_probability_is_refused_as_torch_does(p: float, n: int) -> None:
    with pytest.raises(RuntimeError, match="p"):
        masks.fill(torch.empty(n), p)


# --- What a mask depends on -------------------------------------------------------------------------------------------


def test_the_same_state_gives_the_same_mask_and_the_next_another() -> None:
    torch.manual_seed(4)
    first, second = masks.fill(torch.empty(N)), masks.fill(torch.empty(N))
    assert torch.equal(first, drawn(0.5, 4)) and not torch.equal(first, second)
    torch.manual_seed(4)
    masks.fill(torch.empty(N), 0.1)
    assert torch.equal(masks.fill(torch.empty(N)), second)  # the state afterwards is that of any other mask


def test_threads_and_shape_do_not_matter() -> None:
    one = drawn(0.3, 6)
    torch.set_num_threads(2)
    assert torch.equal(drawn(0.3, 6), one)
    torch.manual_seed(6)
    assert torch.equal(masks.fill(torch.ones(1024, 1024), 0.3).view(-1), one)


def test_other_generators_do_not_matter() -> None:
    import random

    import numpy as np

    one = drawn(0.3, 6)
    random.seed(1)
    np.random.seed(1)
    assert torch.equal(drawn(0.3, 6), one)


@pytest.mark.parametrize("n", [0, 1, 7, 1000, masks.LARGE - 1])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_small_masks_are_those_of_torch(n: int, p: float) -> None:
    torch.manual_seed(8)
    own, state = masks.fill(torch.empty(n), p), torch.get_rng_state()
    torch.manual_seed(8)
    assert torch.equal(own, torch.empty(n).bernoulli_(p)) and torch.equal(state, torch.get_rng_state())


def test_a_generator_that_is_given_is_used_as_torch_does() -> None:
    before = torch.get_rng_state()
    own = masks.fill(torch.empty(N), 0.3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(own, torch.empty(N).bernoulli_(0.3, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(before, torch.get_rng_state())


# --- Kinds of masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = masks.fill(torch.empty(N, dtype=dtype), 0.3)
    assert mask.dtype == dtype and torch.equal(mask.float(), drawn(0.3))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_masks_of_integers_are_those_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = masks.fill(torch.empty(N, dtype=dtype), 0.3)
    torch.manual_seed(0)
    assert torch.equal(mask, torch.empty(N, dtype=dtype).bernoulli_(0.3))


def test_channels_last_is_filled_in_the_order_of_memory() -> None:
    torch.manual_seed(0)
    mask = torch.full((8, 16, 64, 128), 7.0).to(memory_format=torch.channels_last)
    assert masks.fill(mask, 0.3) is mask
    assert torch.equal(mask.permute(0, 2, 3, 1).reshape(-1), drawn(0.3))


@pytest.mark.parametrize("name", ["turned", "every second", "part", "later", "permuted"])
def test_masks_in_any_memory(name: str) -> None:
    """Every place of the mask is drawn, and nothing beside it."""
    room = torch.full((2048, 1024), 7.0)
    mask = {
        "turned": room.t(),
        "every second": room[::2],
        "part": room[:, 100:800],
        "later": room[1024:],
        "permuted": room.view(16, 128, 1024).permute(1, 2, 0),
    }[name]
    torch.manual_seed(0)
    assert masks.fill(mask, 0.3) is mask
    assert abs(z(mask, 0.3)) < LIMIT and set(mask.unique().tolist()) == {0.0, 1.0}
    assert int((room == 7).sum()) == room.numel() - mask.numel()


@pytest.mark.parametrize("n", [masks.LARGE + k for k in (0, 1, 2, 3, 5)])
def test_sizes_that_four_does_not_divide(n: int) -> None:
    room = torch.full((n + 8,), 7.0)
    torch.manual_seed(0)
    masks.fill(room[:n], 0.5)
    assert torch.equal(room[:n], drawn(0.5)[:n]) and bool((room[n:] == 7).all())


# --- Fast -------------------------------------------------------------------------------------------------------------


def test_fast_draws_large_masks_only() -> None:
    x = torch.randn(512, 512)
    torch.manual_seed(0)
    with masks.Fast() as fast:
        out = F.dropout(x, 0.3)
    assert fast.seen
    torch.manual_seed(0)
    assert torch.equal(out, x * masks.fill(torch.empty_like(x), 0.7).div_(0.7))
    torch.manual_seed(0)
    assert not torch.equal(out, F.dropout(x, 0.3))


def test_fast_changes_nothing_else() -> None:
    def arithmetic() -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(300, 300, requires_grad=True)
        small = F.dropout(x[:10], 0.3)
        generator = torch.Generator().manual_seed(1)
        own = torch.empty(N).bernoulli_(0.5, generator=generator)
        others = [
            torch.rand(N),
            torch.bernoulli(torch.full((300, 300), 0.2)),
            torch.randperm(100),
            torch.empty(9).normal_(),
        ]
        value = (small.sum() + (x @ x.t()).tanh().sum()) * 2
        whole = torch.empty(300, 300, dtype=torch.int64).bernoulli_(0.4)
        return [small, own, *others, value, whole, *torch.autograd.grad(value, [x]), torch.get_rng_state()]

    with masks.Fast() as fast:
        found = arithmetic()
    assert all(torch.equal(a, b) for a, b in zip(found, arithmetic(), strict=True))
    assert fast.seen  # the large one with a generator of its own, drawn as torch does


def test_fast_says_when_there_was_nothing_large() -> None:
    with masks.Fast() as fast:
        F.dropout(torch.randn(100), 0.5)
    assert not fast.seen
