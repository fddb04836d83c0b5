"""A logistic or a ridge regression, fitted by torch, which is loaded already where a net was trained; scikit-learn's take
longer to import than to fit.

In: numbers of the training and the held-out examples, and the answers to learn. Out: probabilities or numbers for the
held-out ones. Called by `baselines`. The work is bounded by what it consists of (rows, columns and classes), never by the
clock, so that the same data give the same baseline on any machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamina import optimizers
from lamina.baselines import limits
from lamina.nets.beside import SIGNAL
from lamina.targets import base

# For each second allowed. A common core needs a fifth of it.
CELLS = 2e6  # rows x columns in memory, float32
WORK = 1e7  # rows x columns x outputs in a round of L-BFGS, when the fewest rounds are made
ROUNDS = (30, 300)  # the fewest and the most; in between, as many as fit
COLUMNS = 1000  # to which a row may be thinned, to have more rows
CLASSES_MOST = 200


def why_not(task: str, x_train: Any, y_train: np.ndarray, x_test: Any) -> str:
    """Why it cannot be fitted, for people; or nothing."""
    outputs = limits.outputs(task, y_train)
    many = task != "numbers" and outputs > CLASSES_MOST
    return limits.why_not(task, x_train, y_train, x_test) or (
        f"{outputs} {task} are more than {CLASSES_MOST}" if many else ""
    )


def fit_predict(
    task: str, x_train: Any, y_train: np.ndarray, x_test: Any, known: np.ndarray, *, seed: int, seconds: float
) -> tuple[np.ndarray, int, str]:
    """Fit on as many rows as the limit allows -> (probabilities or numbers, rows, what was left out)."""
    n, width, outputs = len(x_train), int(np.prod(x_train.shape[1:])), limits.outputs(task, y_train)
    effort = outputs if task != "numbers" else max(1, width // 100)  # the normal equations cost rows x columns squared
    cells = int(seconds * min(CELLS, WORK / effort))
    columns, rows = np.arange(width), np.arange(n)
    if n * width > cells and width > COLUMNS:
        columns = np.linspace(0, width - 1, min(width, max(COLUMNS, cells // n))).astype(int)
    if n * len(columns) > cells:
        rows = limits.drawn(task, y_train, cells // len(columns), seed)
    rounds = int(np.clip(seconds * WORK * ROUNDS[0] / (len(rows) * len(columns) * outputs), *ROUNDS))

    def thinned(table: np.ndarray) -> np.ndarray:
        flat = table.reshape(len(table), -1)
        return flat if len(columns) == width else flat[:, columns]

    inputs, standardise = _standardised(lambda some: thinned(x_train[rows[some]]), len(rows))
    y = y_train[rows]

    # A model of some places of an answer; the others are the same for all.
    places, shared = np.arange(len(known)), np.zeros(len(known))
    if task == "numbers":
        model = _ridge(inputs, torch.from_numpy(y.reshape(len(y), -1)).double())
    elif task == "classes":
        labels, codes = np.unique(y, return_inverse=True)
        places = base.places(known, labels)[0]
        model = _logistic(inputs, torch.from_numpy(codes if len(labels) > 2 else codes[:, None]), rounds)
    else:
        shared = y.mean(0)
        places = np.flatnonzero((y.min(0) == 0) & (y.max(0) == 1))
        model = _logistic(inputs, torch.from_numpy(y[:, places]), rounds)

    def predict(piece: np.ndarray) -> np.ndarray:
        found = model(standardise(piece)).numpy()
        if task == "numbers":
            return found.reshape(len(piece), *y.shape[1:])
        table = np.repeat(shared[None], len(piece), 0)
        table[:, places] = found if found.shape[1] == len(places) else np.hstack([1 - found, found])
        return table

    step = max(1, 4 * limits.PIECE // len(columns))
    pieces = (thinned(x_test[at : at + step]) for at in range(0, len(x_test), step))
    table = np.concatenate([predict(piece) for piece in pieces])
    parts = [f"{len(rows):,} of {n:,} rows"] if len(rows) < n else []
    parts += [f"{len(columns):,} of {width:,} columns"] if len(columns) < width else []
    return table, len(rows), f"learned from {' and '.join(parts)}" if parts else ""


Model = Callable[[Tensor], Tensor]  # standardised rows (n, d) -> probabilities (n, K), or numbers (n, D), float64


def _logistic(inputs: Tensor, truth: Tensor, rounds: int) -> Model:
    """The mean log loss and an L2 penalty of the weights at their least, which is one. truth: (n,) classes or (n, K) tags."""
    n, d = inputs.shape
    alone = truth.ndim == 2  # an output each; else the outputs share a softmax
    width = truth.shape[1] if alone else int(truth.max()) + 1
    weights, bias = (inputs.new_zeros(size, requires_grad=True) for size in ((width, d), (width,)))

    def loss() -> Tensor:
        found = F.linear(inputs, weights, bias)
        if alone:
            total = F.binary_cross_entropy_with_logits(found, truth.float(), reduction="sum")
        else:
            across = found.T.contiguous()[None]  # (1, K, n): a softmax over rows of few numbers takes twice the time
            total = F.cross_entropy(across, truth[None], reduction="sum")
        return (total + 0.5 * d / SIGNAL * weights.square().sum()) / n  # type: ignore[no-any-return]

    optimizers.minimise([weights, bias], loss, rounds, tolerance_grad=1e-4, history_size=10)

    def probabilities(rows: Tensor) -> Tensor:
        found = F.linear(rows, weights.detach(), bias.detach()).double()
        return found.sigmoid() if alone else found.softmax(1)

    return probabilities


def _ridge(inputs: Tensor, truth: Tensor) -> Model:
    """Least squares with an L2 penalty of the weights, in closed form; the inputs are centred. truth: (n, D), float64."""
    (n, d), mean = inputs.shape, truth.mean(0)
    wide = d > n  # then the smaller system is the one over rows
    tall = inputs.T if wide else inputs
    pieces = (piece.double() for piece in tall.split(max(1, int(CELLS) // tall.shape[1])))
    gram = functools.reduce(torch.add, (piece.T @ piece for piece in pieces))
    gram.diagonal().add_(d / SIGNAL)
    aims = truth - mean
    found = torch.cholesky_solve(aims if wide else (inputs.T @ aims.float()).double(), torch.linalg.cholesky(gram))
    weights = (inputs.T @ found.float()).double() if wide else found
    return lambda rows: rows.double() @ weights + mean


def _standardised(table: Callable[[slice], np.ndarray], n: int) -> tuple[Tensor, Callable[[np.ndarray], Tensor]]:
    """(the table (n, d) with mean 0 and spread 1, float32; what does the same to other rows). Missing becomes 0. table: gives
    some of its rows."""
    one = table(slice(1))
    width, floating = one.shape[1], one.dtype.kind == "f"
    exact = np.float64 if one.dtype.itemsize > 4 else np.float32  # seconds since 1970 do not fit float32
    step = max(1, limits.PIECE // width)

    def centred(of: Callable[[slice], np.ndarray], count: int) -> Tensor:
        found = torch.empty(count, width)
        for at in range(0, count, step):
            part = torch.from_numpy(of(slice(at, at + step)).astype(exact)).sub_(mean)
            found[at : at + step] = part.nan_to_num_(0, 0, 0) if floating else part
        return found

    sums, counts = np.zeros(width), np.full(width, n)
    for at in range(0, n, step):
        part = table(slice(at, at + step))
        if floating:
            missing = ~np.isfinite(part)
            part, counts = np.where(missing, 0, part), counts - missing.sum(0)
        sums += part.sum(0, dtype=np.float64)
    mean = torch.from_numpy((sums / np.maximum(counts, 1)).astype(exact))
    inputs = centred(table, n)
    spread = (sum(part.square().sum(0) for part in inputs.split(step)) / len(inputs)).sqrt_()
    spread[spread == 0] = 1
    return inputs.div_(spread), lambda rows: centred(rows.__getitem__, len(rows)).div_(spread)
