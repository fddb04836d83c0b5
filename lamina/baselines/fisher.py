"""Eigenfaces, then linear discriminants: the classical way to tell faces apart.

Belhumeur, Hespanha and Kriegman, "Eigenfaces vs. Fisherfaces" (1997): principal components first, then Fisher's
discriminants, which keep classes together and apart from one another. The spread within the classes is shrunk towards a
multiple of the identity (Ledoit and Wolf, 2004), which the paper's authors did by leaving out components.
In: numbers of the training and the held-out examples, and the classes. Out: their probabilities. Called by `baselines`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina import keyed
from lamina.imports import loading
from lamina.targets import base

CELLS = 2e6  # rows x columns for each second allowed
COMPONENTS = 100  # at most


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    if task != "classes":
        return "it is for classes"
    if not isinstance(x_train, np.ndarray) or x_train.dtype.kind not in "biuf" or not x_train.size or not len(x_test):
        return "the inputs are no table of numbers"
    classes = len(np.unique(y_train))
    if classes < 2 or len(y_train) - classes < 2:
        return f"{len(y_train)} examples of {classes} classes: the spread within a class cannot be seen"
    return ""


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """Fit on as many rows as the limit allows -> (probabilities (n, K), rows, what was left out)."""
    with loading():
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline

    train, test = (np.nan_to_num(x.reshape(len(x), -1).astype(np.float32)) for x in (x_train, x_test))
    generator = np.random.default_rng(keyed.number(seed, "fisher"))
    most = max(2 * len(np.unique(y_train)), int(seconds * CELLS / train.shape[1]))
    rows = np.sort(generator.permutation(len(train))[:most])
    some = y_train[rows]
    components = max(1, min(COMPONENTS, len(rows) - len(np.unique(some)), train.shape[1]))
    model = make_pipeline(PCA(components, random_state=0), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    model.fit(train[rows], some)
    table = np.zeros((len(test), len(known)))
    table[:, base.places(known, model.classes_)[0]] = model.predict_proba(test)
    return table, len(rows), f"{len(rows):,} of {len(train):,} rows" if len(rows) < len(train) else ""
