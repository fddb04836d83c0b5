"""What simple models on numbers have in common: when none can be fitted, how many outputs it has, which rows it learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lamina import keyed, mapped

PIECE = 1 << 16  # numbers worked on together: they stay in the cache of a core


class Rows:
    """Some rows of a column, each taken when it is asked for: who learns from few of them copies few."""

    def __init__(self, column: Any, rows: np.ndarray):
        self._column, self._rows = column, rows
        one = self[:1]
        self.shape, self.dtype, self.size = (len(rows), *one.shape[1:]), one.dtype, len(rows) * one[0].size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: Any) -> np.ndarray:
        """some: a slice, or numbers (n,)."""
        return mapped.seen(self._column, torch.from_numpy(self._rows[some])).numpy()


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why no model of numbers can be fitted, for people; or nothing."""
    if x_train.dtype.kind not in "biuf":
        return f"the inputs are {x_train.dtype}, not numbers"
    if x_train.size == 0 or len(x_test) == 0:
        return "no columns to learn from" if x_train.size == 0 else "no held-out examples"
    if task == "classes" and len(np.unique(y_train)) < 2:
        return "all training examples are of one class"
    return ""


def outputs(task: str, y_train: np.ndarray) -> int:
    """Numbers, tags, or classes, of which two need one output."""
    if task != "classes":
        return int(np.prod(y_train.shape[1:]))
    classes = len(np.unique(y_train))
    return classes if classes > 2 else 1


def drawn(task: str, y_train: np.ndarray, most: int, seed: int) -> np.ndarray:
    """About `most` rows, 1 at least, sorted; no class is left out."""
    order = np.random.default_rng(keyed.number(seed, "baseline")).permutation(len(y_train))
    rows = order[: max(1, most)]
    if task == "classes":
        rows = np.append(rows, order[np.unique(y_train[order], return_index=True)[1]])
    return np.unique(rows)
