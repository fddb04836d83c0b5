"""Products of bytes with numbers: as exact as the numbers, for every byte and every weight."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lamina import products
from lamina.products import OfBytes

pytestmark = pytest.mark.skipif(not products.fast(), reason="this processor has no units for integers of 8 bits")


def exact(x, weight, bias=None):
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


def half_a_unit(weight, width):
    """What float32 weights and three float32 sums may be wrong by, of bytes that are all 255."""
    return (255 * width * weight.abs().amax(1).double() * 2.0**-22).clamp(min=1e-30)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 300),
    outputs=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    power=st.integers(-12, 12),
    bias=st.booleans(),
)
def test_the_products_are_those_of_exact_arithmetic(rows, width, outputs, seed, power, bias):
    draw = np.random.default_rng(seed)
    weight = torch.from_numpy((draw.standard_t(2, (outputs, width)) * 10.0**power).astype(np.float32))
    weight[draw.integers(outputs)] = 0
    x = torch.from_numpy(draw.integers(0, 256, (rows, width), dtype=np.uint8))
    shift = torch.from_numpy(draw.normal(size=outputs).astype(np.float32)) * weight.abs().amax() if bias else None
    layer = OfBytes(weight, shift)
    wrong = (layer(x).double() - exact(x, weight, shift)).abs()
    allowed = half_a_unit(weight, width) + (0 if shift is None else shift.abs().double() * 2.0**-22)
    assert (wrong <= allowed).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sum_does_not_run_over(sign):
    weight = torch.full((3, products.WIDEST), float(sign))
    x = torch.full((2, products.WIDEST), 255, dtype=torch.uint8)
    assert torch.allclose(OfBytes(weight)(x), torch.tensor(255.0 * sign * products.WIDEST), rtol=2.0**-22)


def test_more_bytes_than_fit_are_refused():
    with pytest.raises(ValueError, match="may run over"):
        OfBytes(torch.ones(1, products.WIDEST + 1))


def test_three_digits_are_closer_than_the_product_of_floats():
    torch.manual_seed(0)
    weight, x = torch.randn(128, 784), torch.randint(0, 256, (500, 784), dtype=torch.uint8)
    truth = exact(x, weight)
    ours, floats = OfBytes(weight)(x), x.float() @ weight.T
    assert (ours - truth).abs().max() < 0.5 * (floats - truth).abs().max()
    assert (OfBytes(weight, digits=1)(x) - truth).abs().max() > 100 * (floats - truth).abs().max()


def test_of_ones_and_zeros_one_digit_is_enough():
    picks = torch.eye(64).repeat(1, 5)
    x = torch.randint(0, 256, (70, 320), dtype=torch.uint8)
    assert torch.allclose(OfBytes(picks, digits=1)(x), x.view(70, 5, 64).sum(1).float(), rtol=1e-6)


def test_a_relu_may_follow_and_rows_may_lie_anywhere():
    torch.manual_seed(0)
    layer, x = OfBytes(torch.randn(9, 20), torch.randn(9)), torch.randint(0, 256, (12, 20), dtype=torch.uint8)
    plain = layer(x)
    assert torch.equal(layer(x.view(3, 4, 20)), plain.view(3, 4, 9))
    assert torch.equal(layer(x[::2]), plain[::2]) and torch.equal(layer(x.T.contiguous().T), plain)
    layer.after = "relu"
    assert torch.equal(layer(x), plain.relu()) and plain.min() < 0


def test_what_is_no_bytes_is_refused():
    layer = OfBytes(torch.randn(3, 4))
    for x in (torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int8)):
        with pytest.raises(TypeError, match="expected bytes"):
            layer(x)
