"""Multinomial naive Bayes over the words and pairs of words of a text.

In: a sparse matrix (n, F) of counts, or of 0 and 1, of the training and the held-out examples, and the answers to learn. Out:
probabilities. Called by `baselines`. The formula is that of Manning, Raghavan and Schütze (2008), "Introduction to
Information Retrieval", 13.2, with one added to each count; of tags, each is a question of yes or no.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.targets import base

ADDED = 1.0  # to every count (Laplace)


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    if task == "numbers":
        return "naive Bayes tells classes and tags, not numbers"
    if task == "classes" and len(np.unique(y_train)) < 2:
        return "all training examples are of one class"
    if x_train.data.size and x_train.data.min() < 0:
        return "the inputs are no counts"
    return "" if x_train.nnz else "no words to learn from"


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """Fit on all rows -> (probabilities (n, K), rows, what was left out)."""
    n = x_train.shape[0]
    if task == "tags":
        asked = [_two(x_train, y_train[:, k], x_test) for k in range(y_train.shape[1])]
        return np.stack(asked, 1), n, ""
    labels, codes = np.unique(y_train, return_inverse=True)
    table = np.zeros((x_test.shape[0], len(known)))
    table[:, base.places(known, labels)[0]] = _probabilities(x_train, codes, len(labels), x_test)
    return table, n, ""


def _two(x_train: Any, yes: np.ndarray, x_test: Any) -> np.ndarray:
    """The probability of yes (n,)."""
    if yes.min() == yes.max():
        return np.full(x_test.shape[0], float(yes[0]))
    return _probabilities(x_train, yes.astype(int), 2, x_test)[:, 1]


def _probabilities(x_train: Any, codes: np.ndarray, classes: int, x_test: Any) -> np.ndarray:
    """(n, K): log P(k) + sum of log P(word | k) over the words, made to sum to one."""
    one = np.eye(classes)[codes]  # (n, K)
    counts = x_train.T @ one + ADDED  # (F, K)
    scores = x_test @ np.log(counts / counts.sum(0)) + np.log(one.mean(0))
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)  # type: ignore[no-any-return]
