"""The nearest centroid, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from lamina.baselines import centroid, limits

RNG = np.random.default_rng(0)


def blobs(n, dtype=np.float32):
    y = np.array(["cat", "dog", "owl"])[RNG.integers(0, 3, n)]
    means = {"cat": 100, "dog": 110, "owl": 90}
    x = np.array([means[label] for label in y])[:, None] + RNG.normal(0, 20, (n, 12))
    return x.clip(0, 255).astype(dtype), y


def fitted(x, y, x_test, known):
    return centroid.fit_predict("classes", x, y, x_test, known, seed=0, seconds=1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("piece", [limits.PIECE, 50])
def test_it_decides_as_scikit_learn_does(dtype, piece, monkeypatch):
    from sklearn.neighbors import NearestCentroid

    monkeypatch.setattr(limits, "PIECE", piece)
    (x, y), (x2, _) = blobs(300, dtype), blobs(100, dtype)
    known = np.array(["owl", "ant", "cat", "dog"])  # one of which nobody has seen any
    table, rows, note = fitted(x, y, x2, known)
    expected = NearestCentroid().fit(x.astype(np.float64), y).predict(x2.astype(np.float64))
    assert (known[table.argmax(1)] == expected).all() and (rows, note) == (300, "")
    assert table.sum(1) == pytest.approx(np.ones(100)) and (table[:, 1] == 0).all()


def test_its_probabilities_are_the_formula():
    (x, y), (x2, _) = blobs(60), blobs(5)
    known = np.unique(y)
    means = np.stack([x[y == label].mean(0) for label in known])
    own = means[np.searchsorted(known, y)]
    spread = np.square(x - own).sum(1).mean()
    nearness = np.exp(-np.square(x2[:, None] - means).sum(2) / spread)
    assert fitted(x, y, x2, known)[0] == pytest.approx(nearness / nearness.sum(1, keepdims=True), rel=1e-4)


def test_examples_that_are_all_alike_and_missing_numbers_do_no_harm():
    x, y = np.ones((6, 3), np.float32), np.array([0, 1] * 3)
    assert np.isfinite(fitted(x, y, x, np.arange(2))[0]).all()
    x[0, 0] = np.nan
    assert np.isfinite(fitted(x, y, x, np.arange(2))[0]).all()


@pytest.mark.parametrize(
    ("task", "x", "y", "says"),
    [
        ("numbers", np.ones((4, 2)), np.arange(4.0), "no centroids"),
        ("classes", np.array([["a"]] * 4), np.array([0, 1, 0, 1]), "not numbers"),
        ("classes", np.ones((4, 2)), np.zeros(4), "one class"),
        ("classes", np.ones((4, 0)), np.array([0, 1, 0, 1]), "no columns"),
        ("classes", np.ones((4, 2)), np.array([0, 1, 0, 1]), ""),
    ],
)
def test_what_it_cannot_learn_from_it_says(task, x, y, says):
    found = centroid.why_not(task, x, y, x)
    assert says in found and bool(found) == bool(says)
