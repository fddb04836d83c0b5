"""Boosted trees: what is hard to beat on tables (scikit-learn's histogram gradient boosting).

In: numbers of the training and the held-out examples, NaN for a gap, and the answers to learn. Out: probabilities or numbers
for the held-out ones. Called by `baselines`. Scikit-learn's defaults, which stop by themselves on a tenth of the rows where
there are more than 10,000; rows, and trees of many classes, are bounded by their number, never by the clock, so that the same
data give the same baseline on any machine. Friedman, "Greedy function approximation: a gradient boosting machine", 2001.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina import keyed
from lamina.baselines import limits
from lamina.imports import loading
from lamina.targets import base

# For each second allowed. A core of the usual kind needs about that long.
CELLS = 1e6  # rows x columns in memory
WORK = 4e7  # rows x columns x trees
TREES = 100  # of each output
CLASSES_MOST = 100


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why they cannot be fitted, for people; or nothing."""
    outputs = limits.outputs(task, y_train)
    return limits.why_not(task, x_train, y_train, x_test) or (
        f"{outputs} {task} are more than {CLASSES_MOST}" if outputs > CLASSES_MOST else ""
    )


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """Fit on as many rows as the limit allows -> (probabilities or numbers, rows, what was left out)."""
    with loading():
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    x_train, x_test = (np.asarray(x).reshape(len(x), -1) for x in (x_train, x_test))
    (n, width), outputs = x_train.shape, limits.outputs(task, y_train)
    most = int(seconds * min(CELLS, WORK / (TREES * outputs)) / width)
    rows = limits.drawn(task, y_train, most, seed) if n > most else np.arange(n)
    x, y, number = x_train[rows], y_train[rows], keyed.number(seed, "trees") % 2**32

    if task == "numbers":
        columns = [
            HistGradientBoostingRegressor(random_state=number).fit(x, column).predict(x_test)
            for column in y.reshape(len(y), -1).T
        ]
        table = np.stack(columns, 1).reshape(len(x_test), *y.shape[1:])
    elif task == "classes":
        model = HistGradientBoostingClassifier(random_state=number, early_stopping=_stops(y)).fit(x, y)
        table = np.zeros((len(x_test), len(known)))
        table[:, base.places(known, model.classes_)[0]] = model.predict_proba(x_test)
    else:
        table = np.repeat(y.mean(0)[None], len(x_test), 0)
        for k in np.flatnonzero((y.min(0) == 0) & (y.max(0) == 1)):
            model = HistGradientBoostingClassifier(random_state=number, early_stopping=_stops(y[:, k])).fit(x, y[:, k])
            table[:, k] = model.predict_proba(x_test)[:, 1]
    return table, len(rows), f"learned from {len(rows):,} of {n:,} rows" if len(rows) < n else ""


def _stops(y: np.ndarray) -> bool:
    """Whether scikit-learn may hold out a tenth of the rows to stop by: as it does itself, but not where a class has a
    single row, which it cannot split."""
    return len(y) > 10_000 and int(np.unique(y, return_counts=True)[1].min()) > 1
