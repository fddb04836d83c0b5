"""What no net at all would score: the numbers beside the headline.

In: the training and held-out arrays of a run, and its target's measures. Out: entries as `evaluate.scores` makes them,
with a "name": "majority" or "mean", which never looks at the input, and "linear", a logistic or a ridge regression, both
fitted by torch, which is loaded already where a net was trained; scikit-learn's take longer to import than to fit.
Called by train before it learns. A net that does not beat these is not worth its weight.

The work is bounded by what it consists of (rows, columns and classes), never by the clock, so that the same data give
the same baseline on any machine. Not covered: inputs that are no arrays of numbers (words, files) and more than 200
classes; they get the majority only, and a note.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamina import errors, evaluate, keyed, optimizers

if TYPE_CHECKING:
    from lamina.targets.base import Answers, Measure

# For each second allowed. A common core needs a fifth of it.
CELLS = 2e6  # rows x columns in memory, float32
WORK = 1e7  # rows x columns x outputs in a round of L-BFGS, when the fewest rounds are made
ROUNDS = (30, 300)  # the fewest and the most; in between, as many as fit
COLUMNS = 1000  # to which a row may be thinned, to have more rows
CLASSES_MOST = 200
SIGNAL = 10.0  # prior variance of a linear model's output over that of its noise: a fair penalty at any width


def baselines(
    task: Literal["classes", "numbers", "tags"],
    x_train: np.ndarray | None,
    y_train: np.ndarray,
    x_test: np.ndarray | None,
    y_test: np.ndarray,
    measures: Sequence[Measure],
    *,
    seed: int,
    seconds: float = 10.0,
    labels: Sequence | None = None,
    groups: np.ndarray | None = None,
    split: str = "test",
    net: Answers | None = None,
) -> list[dict]:
    """Score the majority (or the mean) and a linear model on the held-out examples.

    x (n, ...) numbers of any type, or None; y (n,) classes, (n,) or (n, D) numbers, (n, K) tags of 0 and 1. `labels`
    orders the columns of the probabilities that the measures see (default: the classes of y_train, sorted). Each entry
    is one of `evaluate.scores` with "name", "trained_on" (rows), "seconds" and, where something was left out, "note".
    `net`: a net's answers to the same examples; the first measure's entries then have "paired", the comparison of the
    net (A) with the baseline (B), example by example.
    """
    if task not in ("classes", "numbers", "tags"):
        raise errors.UsageError(f"There is no baseline for {task!r}.", expected="classes, numbers or tags")
    y_train, y_test = np.asarray(y_train), np.asarray(y_test)
    if not len(y_train):
        raise errors.DataError("There are no training examples.", expected="one at least")
    known = np.zeros(0)
    if task == "classes":
        known = np.unique(y_train) if labels is None else np.asarray(labels)
        strange = np.setdiff1d(y_train, known).tolist()
        if strange:
            expected = f"one of {', '.join(map(repr, known[:10].tolist()))}"
            raise errors.DataError(f"The training label {strange[0]!r} is not among the classes.", expected=expected)
    found: list[dict] = []

    def add(name: str, answers: Answers, rows: int, note: str, start: float) -> None:
        extra = {"name": name, "trained_on": rows, "seconds": round(time.perf_counter() - start, 3)}
        for entry in evaluate.scores(measures, y_test, answers, split=split, seed=seed, groups=groups, labels=labels):
            notes = "; ".join(filter(None, (note, entry.get("note"))))
            found.append(entry | extra | ({"note": notes} if notes else {}))
            if net is not None and entry["score"] == measures[0].name:
                found[-1]["paired"] = evaluate.compare(
                    y_test, net, answers, measures[0], seed, groups=groups, labels=labels
                )

    start = time.perf_counter()
    constant = _answers(task, _constant(task, y_train, len(y_test), known), known)
    why_not = _why_not_linear(task, x_train, y_train, x_test)
    note = f"no linear baseline: {why_not}" if why_not else ""
    add("mean" if task == "numbers" else "majority", constant, len(y_train), note, start)
    if x_train is not None and x_test is not None and not why_not:
        start = time.perf_counter()
        table, rows, note = _linear(task, x_train, y_train, x_test, known, seed, seconds)
        add("linear", _answers(task, table, known), rows, note, start)
    return found


def _answers(task: str, table: np.ndarray, known: np.ndarray) -> Answers:
    """Probabilities (n, K), or numbers, as a target would say them."""
    from lamina.targets.base import Answers

    if task == "numbers":
        return Answers(table, None, None)
    if task == "tags":
        chosen = (table >= 0.5).astype(np.int64)
        return Answers(chosen, np.where(chosen == 1, table, 1 - table).min(1), table)
    return Answers(known[table.argmax(1)], table.max(1), table)


def _constant(task: str, y_train: np.ndarray, n: int, known: np.ndarray) -> np.ndarray:
    """The same for all n: how often each class or tag occurs, or the mean."""
    if task == "classes":
        seen, counts = np.unique(y_train, return_counts=True)
        one = np.zeros(len(known))
        one[_places(seen, known)] = counts / len(y_train)
    else:
        one = y_train.mean(0)
    return np.repeat(one[None], n, 0)


def _places(labels: np.ndarray, known: np.ndarray) -> list[int]:
    order = known.tolist()
    return [order.index(label) for label in labels.tolist()]


def _why_not_linear(task: str, x_train: np.ndarray | None, y_train: np.ndarray, x_test: np.ndarray | None) -> str:
    """The reason, for people, or nothing."""
    if x_train is None or x_test is None:
        return "the inputs are not arrays"
    x_train = np.asarray(x_train)
    if x_train.dtype.kind not in "biuf":
        return f"the inputs are {x_train.dtype}, not numbers"
    if x_train.size == 0 or len(x_test) == 0:
        return "no columns to learn from" if x_train.size == 0 else "no held-out examples"
    if task == "classes" and len(np.unique(y_train)) < 2:
        return "all training examples are of one class"
    outputs = _outputs(task, y_train)
    many = task != "numbers" and outputs > CLASSES_MOST
    return f"{outputs} {task} are more than {CLASSES_MOST}" if many else ""


def _outputs(task: str, y_train: np.ndarray) -> int:
    if task != "classes":
        return int(np.prod(y_train.shape[1:]))
    classes = len(np.unique(y_train))
    return classes if classes > 2 else 1


def _linear(
    task: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    known: np.ndarray,
    seed: int,
    seconds: float,
) -> tuple[np.ndarray, int, str]:
    """Fit on as many rows as the limit allows -> (probabilities or numbers, rows, what was left out)."""
    x_train, x_test = np.asarray(x_train).reshape(len(x_train), -1), np.asarray(x_test).reshape(len(x_test), -1)
    (n, width), outputs = x_train.shape, _outputs(task, y_train)
    effort = outputs if task != "numbers" else max(1, width // 100)  # the normal equations cost rows x columns squared
    cells = int(seconds * min(CELLS, WORK / effort))
    columns, rows = np.arange(width), np.arange(n)
    if n * width > cells and width > COLUMNS:
        columns = np.linspace(0, width - 1, min(width, max(COLUMNS, cells // n))).astype(int)
    if n * len(columns) > cells:
        order = np.random.default_rng(keyed.number(seed, "baseline")).permutation(n)
        rows = order[: max(1, cells // len(columns))]
        if task == "classes":  # no class is left out
            rows = np.append(rows, order[np.unique(y_train[order], return_index=True)[1]])
        rows = np.unique(rows)
    rounds = int(np.clip(seconds * WORK * ROUNDS[0] / (len(rows) * len(columns) * outputs), *ROUNDS))

    inputs, standardise = _standardised(x_train[rows] if len(columns) == width else x_train[np.ix_(rows, columns)])
    y = y_train[rows]

    # A model of some places of an answer; the others are the same for all.
    places, shared = np.arange(len(known)), np.zeros(len(known))
    if task == "numbers":
        model = _ridge(inputs, torch.from_numpy(y.reshape(len(y), -1)).double())
    elif task == "classes":
        labels, codes = np.unique(y, return_inverse=True)
        places = np.array(_places(labels, known))
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

    step = max(1, int(CELLS) // len(columns))
    pieces = (x_test[at : at + step][:, columns] for at in range(0, len(x_test), step))
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
        weights.grad = bias.grad = None
        found = F.linear(inputs, weights, bias)
        if alone:
            total = F.binary_cross_entropy_with_logits(found, truth.float(), reduction="sum")
        else:
            across = found.T.contiguous()[None]  # (1, K, n): a softmax over rows of few numbers takes twice the time
            total = F.cross_entropy(across, truth[None], reduction="sum")
        mean = (total + 0.5 * d / SIGNAL * weights.square().sum()) / n
        mean.backward()
        return mean

    solver = optimizers.without_compiler(torch.optim.LBFGS)(
        [weights, bias], max_iter=rounds, tolerance_grad=1e-4, history_size=10, line_search_fn="strong_wolfe"
    )
    solver.step(loss)

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


def _standardised(table: np.ndarray) -> tuple[Tensor, Callable[[np.ndarray], Tensor]]:
    """(the table (n, d) with mean 0 and spread 1, float32; what does the same to other rows). Missing becomes 0."""
    floating = table.dtype.kind == "f"
    exact = np.float64 if table.dtype.itemsize > 4 else np.float32  # seconds since 1970 do not fit float32

    def centred(rows: np.ndarray) -> Tensor:
        found = torch.from_numpy(rows.astype(exact)).sub_(mean)
        return (found.nan_to_num_(0, 0, 0) if floating else found).float()

    if floating:
        finite = np.isfinite(table)
        sums, counts = np.where(finite, table, 0).sum(0, dtype=np.float64), finite.sum(0)
    else:
        sums, counts = table.sum(0, dtype=np.float64), len(table)
    mean = torch.from_numpy((sums / np.maximum(counts, 1)).astype(exact))
    inputs = centred(table)
    spread = inputs.square().mean(0).sqrt_()
    spread[spread == 0] = 1
    return inputs.div_(spread), lambda rows: centred(rows).div_(spread)
