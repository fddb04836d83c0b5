"""The different numbers among some are those that numpy finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lamina.distinct import distinct

KINDS = [np.int64, np.int8, np.uint64, np.float32, np.float64]


def columns(kind):
    elements = {"allow_nan": False} if np.dtype(kind).kind == "f" else None
    return arrays.arrays(kind, st.integers(0, 40), elements=elements)


@given(st.sampled_from(KINDS).flatmap(columns))
def test_each_number_once_in_order(values):
    before = values.copy()
    assert np.array_equal(distinct(values), np.unique(values)) and np.array_equal(values, before)
    assert np.array_equal(distinct(np.repeat(values, 3)), np.unique(values))
