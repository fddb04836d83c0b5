"""Large masks are Bernoulli draws, independent of each other, and depend on torch's generator alone; small ones are torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lamina import masks

N = 1 << 20  # places of a mask
PROBABILITIES = [0.5, 0.75, 0.1, 0.9, 0.3, 1 / 256, 255 / 256, 1 / 255, 254 / 255, 1 / 3]
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
    for k in range(8):  # the eight, or four, that share one number of the generator
        assert abs(z(mask[k::8], p)) < LIMIT
    for part in mask.chunk(4):  # or the 32: eight of each quarter
        assert abs(z(part, p)) < LIMIT


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
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 16, 64, 784, 1024, 4096, 65536, N // 4, N // 2])
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


def test_the_tests_see_what_is_wrong() -> None:
    """Neighbours that share a number hang together."""
    mask = drawn(0.5, 1)[: N // 8].repeat_interleave(8)
    assert max(abs(correlation(mask[:-lag], mask[lag:], 0.5, 0.5)) for lag in (1, 2, 4)) > 50


@pytest.mark.parametrize("p, bits", [(0.125, 8), (3 / 256, 8), (0.3, 16), (0.9, 16)])
def test_a_word_of_the_generator_serves_several_places(p: float, bits: int) -> None:
    """Against the generator's own numbers, taken apart in Python: a place is 1 where its part, as a signed number, is small."""
    torch.manual_seed(7)
    mask = masks.fill(torch.empty(masks.LARGE), p)
    torch.manual_seed(7)
    words = torch.empty(masks.LARGE * bits // 64, dtype=torch.int64).random_(-(2**63), None)
    assert int(words.min()) < -(2**62) and int(words.max()) > 2**62  # all 64 bits are drawn
    for number, word in enumerate(words[:50].tolist()):
        for k in range(64 // bits):
            part = (word >> (bits * k)) & (2**bits - 1)
            signed = part - 2**bits if part >> (bits - 1) else part
            assert mask[64 // bits * number + k] == float(signed < round(p * 2**bits) - 2 ** (bits - 1))


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("n", [masks.LARGE, masks.LARGE + 5])
def test_two_bits_are_enough_for_quarters(p: float, n: int) -> None:
    """Against the generator's own numbers: byte i serves the places i of each quarter of the mask."""
    mask = drawn(p, 7, n)
    torch.manual_seed(7)
    words = torch.empty(-(-n * 2 // 64), dtype=torch.int64).random_(-(2**63), None).tolist()
    quarter = -(-n // 4)
    for place in [*range(50), *range(quarter - 50, quarter + 50), *range(n - 50, n)]:
        k, i = divmod(place, quarter)
        byte = (words[i // 8] >> (8 * (i % 8))) & 255
        assert mask[place] == float((byte >> (2 * k)) & 3 < 4 * p)


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
    masks.fill(torch.empty(N), 0.25)
    assert torch.equal(masks.fill(torch.empty(N)), second)  # the state afterwards is that of another mask of two bits


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


@pytest.mark.parametrize("n", [masks.LARGE + k for k in (0, 1, 2, 3, 5, 7)])
def test_sizes_that_eight_does_not_divide(n: int) -> None:
    room = torch.full((n + 8,), 7.0)
    torch.manual_seed(0)
    masks.fill(room[:n], 0.5)
    assert torch.equal(room[:n], drawn(0.5, n=n)) and bool((room[n:] == 7).all())
