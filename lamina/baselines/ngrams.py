"""A logistic or a ridge regression over the words and pairs of words of a text, each weighed by how rare it is (tf-idf).

In: a sparse matrix (n, F) of counts, or of 0 and 1, of the training and the held-out examples, and the answers to learn. Out:
probabilities or numbers. Called by `baselines`. The models are scikit-learn's; the work is bounded by what it consists of
(numbers that are not zero, outputs, rounds), never by the clock.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lamina.baselines import limits
from lamina.imports import loading
from lamina.targets import base

NUMBERS = (
    1e7  # that are not zero, times outputs, for each second allowed; a common core needs half of it for ROUNDS rounds
)
ROUNDS = 50
OUTPUTS_MOST = 200
PENALTY = 0.1  # on the squares of weights over inputs of length 1: sklearn's C is 10


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    if not x_train.nnz:
        return "no words to learn from"
    if task == "classes" and len(np.unique(y_train)) < 2:
        return "all training examples are of one class"
    outputs = _outputs(task, y_train)
    return f"{outputs} {task} are more than {OUTPUTS_MOST}" if outputs > OUTPUTS_MOST else ""


def _outputs(task: str, y_train: np.ndarray) -> int:
    return len(np.unique(y_train)) if task == "classes" else int(np.prod(y_train.shape[1:]))


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """Fit on as many rows as the limit allows -> (probabilities or numbers, rows, what was left out)."""
    with loading():
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import LogisticRegression, Ridge

    n, outputs = x_train.shape[0], _outputs(task, y_train)
    share = seconds * NUMBERS / max(1, x_train.nnz * max(1, outputs - (task == "classes" and outputs == 2)))
    if share < 1:
        rows = limits.drawn(task, y_train, int(n * share), seed)
        x_train, y_train = x_train[rows], y_train[rows]
    used = x_train.shape[0]
    note = f"learned from {used:,} of {n:,} rows" if used < n else ""
    weigh = TfidfTransformer().fit(x_train)
    x_train, x_test = weigh.transform(x_train), weigh.transform(x_test)

    def probabilities(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=1 / PENALTY, max_iter=ROUNDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may not have converged: it is a simple model
            model.fit(x_train, truth)
        return model.classes_, model.predict_proba(x_test)

    if task == "numbers":
        return Ridge(alpha=1.0, solver="sparse_cg").fit(x_train, y_train).predict(x_test), used, note
    if task == "classes":
        labels, found = probabilities(y_train)
        table = np.zeros((x_test.shape[0], len(known)))
        table[:, base.places(known, labels)[0]] = found
        return table, used, note
    table = np.repeat(y_train.mean(0)[None].astype(float), x_test.shape[0], 0)
    for k in np.flatnonzero((y_train.min(0) == 0) & (y_train.max(0) == 1)):
        table[:, k] = probabilities(y_train[:, k])[1][:, 1]
    return table, used, note
