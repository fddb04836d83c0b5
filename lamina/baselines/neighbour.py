"""The class of the nearest training example, by Euclidean distance: what likeness alone gives, without learning.

In: numbers of the training and the held-out examples, and the classes. Out: a table whose largest entry is the nearest
example's class. Called by `baselines`. Work is rows x rows x columns, bounded by thinning the training rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina import keyed
from lamina.targets import base

WORK = 4e9  # multiplications for each second allowed
PIECE = 512  # held-out rows at a time


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    if task != "classes":
        return "it is for classes"
    if not isinstance(x_train, np.ndarray) or x_train.dtype.kind not in "biuf":
        return "the inputs are no table of numbers"
    if x_train.size == 0 or len(x_test) == 0:
        return "no columns to learn from" if x_train.size == 0 else "no held-out examples"
    return ""


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """(probabilities (n, K), rows, what was left out). A probability falls with the distance to a class's nearest."""
    train, test = (np.nan_to_num(x.reshape(len(x), -1).astype(np.float32)) for x in (x_train, x_test))
    rows = np.arange(len(train))
    most = max(len(known), int(seconds * WORK / (len(test) * train.shape[1])))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(keyed.number(seed, "neighbour")).permutation(len(rows))[:most])
    train, numbers = train[rows], base.places(known, y_train[rows])[0]
    order = np.argsort(numbers, kind="stable")
    train, numbers = train[order], numbers[order]
    present, begin = np.unique(numbers, return_index=True)
    squares = (train * train).sum(1)
    table = np.zeros((len(test), len(known)))
    for at in range(0, len(test), PIECE):
        piece = test[at : at + PIECE]
        distances = squares - 2 * piece @ train.T + (piece * piece).sum(1)[:, None]
        nearest = np.sqrt(np.maximum(np.minimum.reduceat(distances, begin, axis=1), 0.0))  # (n, classes present)
        spread = np.maximum(nearest.mean(1, keepdims=True) - nearest.min(1, keepdims=True), 1e-12)
        powers = np.exp(-4 * (nearest - nearest.min(1, keepdims=True)) / spread)
        table[at : at + PIECE, present] = powers / powers.sum(1, keepdims=True)
    note = f"{len(rows):,} of {len(x_train):,} rows" if len(rows) < len(x_train) else ""
    return table, len(rows), note
