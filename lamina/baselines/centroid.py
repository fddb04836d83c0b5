"""The nearest centroid: an example is of the class whose mean it is nearest to.

In: numbers of the training and the held-out examples, and their classes. Out: probabilities for the held-out ones. Called by
`baselines`. Two passes over the numbers, whatever they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.baselines import limits
from lamina.targets import base


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    if task != "classes":
        return f"{task} have no centroids"
    if np.asarray(x_train).dtype.kind not in "biuf":
        return f"the inputs are {np.asarray(x_train).dtype}, not numbers"
    if len(np.unique(y_train)) < 2:
        return "all training examples are of one class"
    return "" if np.asarray(x_train).size and len(x_test) else "no columns to learn from, or no held-out examples"


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """(probabilities (n, K), rows learned from, what was left out).

    A class's probability falls with the squared distance d to its mean m, p ~ exp(-d / s), where s is the mean squared
    distance of the training examples to the mean of their own class. What is missing counts as 0.
    """
    x_train, x_test = (np.asarray(table).reshape(len(table), -1) for table in (x_train, x_test))
    labels, codes = np.unique(y_train, return_inverse=True)
    counts = np.bincount(codes)
    step = max(1, limits.PIECE // x_train.shape[1])
    means = np.zeros((len(labels), x_train.shape[1]))
    squares = 0.0
    for at in range(0, len(x_train), step):
        part = _numbers(x_train[at : at + step])
        own = np.eye(len(labels), dtype=np.float32)[codes[at : at + step]]  # (n, K)
        means += own.T @ part
        squares += float(np.einsum("nf,nf->n", part, part).sum(dtype=np.float64))
    means /= counts[:, None]
    spread = max((squares - float((counts[:, None] * np.square(means)).sum())) / len(x_train), np.finfo(float).tiny)
    table = np.zeros((len(x_test), len(known)))
    places = base.places(known, labels)[0]
    for at in range(0, len(x_test), step):
        part = _numbers(x_test[at : at + step]).astype(np.float64)
        nearness = (2 * part @ means.T - np.square(means).sum(1)) / spread  # -d / s, but for what all classes share
        nearness = np.exp(nearness - nearness.max(1, keepdims=True))
        table[at : at + step, places] = nearness / nearness.sum(1, keepdims=True)
    return table, len(x_train), ""


def _numbers(rows: np.ndarray) -> np.ndarray:
    found = rows.astype(np.float32)
    return np.nan_to_num(found, copy=False, nan=0, posinf=0, neginf=0) if rows.dtype.kind == "f" else found
