"""The simple models of texts: compared with scikit-learn's, and with what they must say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import MultinomialNB

from lamina.baselines import bayes, ngrams

CLASSES = np.array(["a", "b", "c"])


def counts(n=150, words=40, seed=0):
    """(sparse counts (n, words), classes (n,)): five words are likelier in each class."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 3, n)
    rates = np.full((3, words), 0.3)
    for k in range(3):
        rates[k, 5 * k : 5 * k + 5] = 0.9
    return sparse.csr_matrix(random.poisson(rates[classes]).astype(np.float32)), CLASSES[classes]


def fit(model, task, x, y, x_test, known=CLASSES, seconds=10.0):
    assert model.why_not(task, x, y, x_test) == ""
    return model.fit_predict(task, x, y, x_test, known, seed=0, seconds=seconds)


def test_naive_bayes_is_that_of_scikit_learn():
    (x, y), (other, _) = counts(), counts(seed=1)
    table, rows, note = fit(bayes, "classes", x, y, other)
    assert table == pytest.approx(MultinomialNB().fit(x, y).predict_proba(other), abs=1e-6)
    assert rows == 150 and note == ""


def test_naive_bayes_of_tags_asks_each_by_itself():
    (x, y), (other, _) = counts(), counts(seed=1)
    tags = np.stack([y == "a", np.zeros(150), y != "b"], 1).astype(np.int64)
    table, _, _ = fit(bayes, "tags", x, tags, other)
    assert (table[:, 1] == 0).all()
    for k in (0, 2):
        assert table[:, k] == pytest.approx(MultinomialNB().fit(x, tags[:, k]).predict_proba(other)[:, 1], abs=1e-6)


def test_a_class_that_nobody_has_is_never_likely():
    x, y = counts()
    known = np.array(["a", "b", "c", "d"])
    for model in (bayes, ngrams):
        table, _, _ = fit(model, "classes", x, y, x, known)
        assert (table[:, 3] == 0).all() and table.sum(1) == pytest.approx(np.ones(150))


def test_a_text_without_words_is_told_how_often_each_class_comes():
    x, y = counts()
    nothing = sparse.csr_matrix((2, 40), dtype=np.float32)
    table, _, _ = fit(bayes, "classes", x, y, nothing)
    assert table[0] == pytest.approx([(y == label).mean() for label in CLASSES])
    assert np.isfinite(fit(ngrams, "classes", x, y, nothing)[0]).all()


def test_the_logistic_regression_is_that_of_scikit_learn_on_tf_idf():
    (x, y), (other, _) = counts(), counts(seed=1)
    weigh = TfidfTransformer().fit(x)
    model = LogisticRegression(C=1 / ngrams.PENALTY, max_iter=1000).fit(weigh.transform(x), y)
    table, rows, note = fit(ngrams, "classes", x, y, other)
    assert table == pytest.approx(model.predict_proba(weigh.transform(other)), abs=0.02)
    assert rows == 150 and note == ""


def test_numbers_and_tags_are_learned_from_words():
    (x, y), (other, said) = counts(400), counts(seed=1)
    numbers, _, _ = fit(ngrams, "numbers", x, (y == "a") * 2.0 + 5, other)
    weigh = TfidfTransformer().fit(x)
    ridge = Ridge(alpha=1.0, solver="lsqr", tol=1e-8).fit(weigh.transform(x), (y == "a") * 2.0 + 5)
    assert numbers == pytest.approx(ridge.predict(weigh.transform(other)), abs=1e-3)
    several, _, _ = fit(ngrams, "numbers", x, np.stack([y == "a", y == "b"], 1).astype(float), other)
    assert several.shape == (150, 2)
    tags, _, _ = fit(ngrams, "tags", x, np.stack([y == "a", np.ones(400)], 1).astype(int), other)
    assert ((tags[:, 0] > 0.5) == (said == "a")).mean() > 0.8 and (tags[:, 1] == 1).all()


def test_work_is_bounded_by_rows_and_no_class_is_left_out():
    x, y = counts(300)
    y[:] = np.where(np.arange(300) == 7, "c", np.where(y == "c", "a", y))
    table, rows, note = fit(ngrams, "classes", x, y, x, seconds=x.nnz * 3 / ngrams.NUMBERS / 6)
    assert 45 < rows < 60 and f"{rows} of 300 rows" in note and (table[:, 2] > 0).all()


@pytest.mark.parametrize(
    ("model", "task", "y", "words"),
    [
        (bayes, "numbers", np.arange(4.0), "not numbers"),
        (bayes, "classes", np.array(["a"] * 4), "one class"),
        (ngrams, "classes", np.array(["a"] * 4), "one class"),
        (ngrams, "tags", np.ones((4, 300), int), "300 tags"),
    ],
)
def test_what_cannot_be_fitted_says_why(model, task, y, words):
    x = sparse.csr_matrix(np.eye(4, dtype=np.float32))
    assert words in model.why_not(task, x, y, x)
    nothing = sparse.csr_matrix((4, 4), dtype=np.float32)
    assert "no words" in model.why_not("classes", nothing, np.array(["a", "b", "a", "b"]), x)
    negative = sparse.csr_matrix(-np.eye(4, dtype=np.float32))
    assert "no counts" in bayes.why_not("classes", negative, np.array(["a", "b", "a", "b"]), x)
