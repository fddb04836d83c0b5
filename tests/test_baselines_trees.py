"""Boosted trees beside the net: scikit-learn's own, on as many rows as the limit allows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from lamina import keyed
from lamina.baselines import trees

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
X[::7, 1] = np.nan
SIGN = (np.nan_to_num(X[:, 1]) * X[:, 0] > 0).astype(int)


def fit_predict(task, y, known=(), seconds=10.0, x=X):
    return trees.fit_predict(task, x[:200], y[:200], x[200:], np.asarray(known), seed=3, seconds=seconds)


def number():
    return keyed.number(3, "trees") % 2**32


def test_numbers_are_those_of_scikit_learn_gaps_included():
    y = np.c_[X[:, 0] ** 2, X[:, 2]]
    expected = [
        HistGradientBoostingRegressor(random_state=number()).fit(X[:200], y[:200, k]).predict(X[200:]) for k in (0, 1)
    ]
    found, rows, note = fit_predict("numbers", y)
    assert np.array_equal(found, np.stack(expected, 1)) and (rows, note) == (200, "")
    assert np.array_equal(fit_predict("numbers", y[:, 0])[0], expected[0])


def test_probabilities_of_classes_are_scikit_learns_in_the_order_of_the_known():
    y = np.array(["no", "yes"])[SIGN]
    model = HistGradientBoostingClassifier(random_state=number(), early_stopping=False).fit(X[:200], y[:200])
    found = fit_predict("classes", y, known=["yes", "maybe", "no"])[0]
    assert np.array_equal(found[:, [2, 0]], model.predict_proba(X[200:])) and not found[:, 1].any()


def test_each_tag_has_trees_of_its_own_and_one_that_never_changes_its_share():
    y = np.c_[SIGN, np.ones(300, int), np.zeros(300, int)]
    model = HistGradientBoostingClassifier(random_state=number(), early_stopping=False).fit(X[:200], SIGN[:200])
    found = fit_predict("tags", y)[0]
    assert np.array_equal(found[:, 0], model.predict_proba(X[200:])[:, 1])
    assert (found[:, 1] == 1).all() and (found[:, 2] == 0).all()


def test_the_work_is_bounded_by_rows_and_said_and_no_class_is_left_out():
    y = np.zeros(300, int)
    y[:100:20], y[150] = 1, 2
    found, rows, note = fit_predict("classes", y, known=[0, 1, 2], seconds=0.001)
    assert rows < 200 and note == f"learned from {rows:,} of 200 rows"
    assert found.shape == (100, 3) and (found > 0).all()
    again = fit_predict("classes", y, known=[0, 1, 2], seconds=0.001)
    assert np.array_equal(found, again[0])


@pytest.mark.parametrize(
    ("task", "x", "y", "test", "words"),
    [
        ("classes", X, np.zeros(300), X, "of one class"),
        ("classes", X, np.arange(300), X, "300 classes are more than 100"),
        ("tags", X, np.zeros((300, 101)), X, "101 tags"),
        ("numbers", X[:, :0], np.zeros(300), X[:, :0], "no columns"),
        ("numbers", X, np.zeros(300), X[:0], "no held-out"),
        ("numbers", X.astype(str), np.zeros(300), X, "not numbers"),
        ("classes", X, SIGN, X, ""),
        ("numbers", X, X[:, 0], X, ""),
    ],
)
def test_what_cannot_be_fitted_is_said(task, x, y, test, words):
    found = trees.why_not(task, x, y, test)
    assert (words in found) if words else (found == "")
