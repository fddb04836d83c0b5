"""What no net at all would score: the numbers beside the headline.

In: the training and held-out arrays of a run, and its target's measures. Out: entries as `evaluate.scores` makes them,
with a "name": "majority" or "mean", which never looks at the input, and "linear", a logistic or a ridge regression.
Called by train before it learns. A net that does not beat these is not worth its weight.

The work is bounded by what it consists of (rows, columns and classes), never by the clock, so that the same data give
the same baseline on any machine. Not covered: inputs that are no arrays of numbers (words, files) and more than 200
classes; they get the majority only, and a note.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamina import errors, evaluate, keyed
from lamina.imports import loading

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
        with loading():
            import sklearn.linear_model  # noqa: F401  (takes a second, once, which is not the model's)
            from threadpoolctl import threadpool_limits

        start = time.perf_counter()
        with threadpool_limits(1):  # more gain little, and cost much where cores are shared
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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

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

    def logistic(y: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are bounded on purpose
            return LogisticRegression(C=SIGNAL / len(columns), max_iter=rounds).fit(inputs, y)

    # `predict` takes standardised rows to a table of probabilities, or to numbers.
    predict: Callable[[np.ndarray], np.ndarray]
    if task == "numbers":
        predict = Ridge(alpha=len(columns) / SIGNAL).fit(inputs, y).predict
    elif task == "classes":
        model = logistic(y)
        places = _places(model.classes_, known)

        def predict(piece: np.ndarray) -> np.ndarray:
            table = np.zeros((len(piece), len(known)))
            table[:, places] = model.predict_proba(piece)
            return table
    else:
        varied = np.flatnonzero((y.min(0) == 0) & (y.max(0) == 1))  # the others need no model
        models = [logistic(y[:, tag]) for tag in varied]

        def predict(piece: np.ndarray) -> np.ndarray:
            table = np.repeat(y.mean(0)[None], len(piece), 0)
            for tag, model in zip(varied, models, strict=True):
                table[:, tag] = model.predict_proba(piece)[:, 1]
            return table

    step = max(1, int(CELLS) // len(columns))
    pieces = (x_test[at : at + step][:, columns] for at in range(0, len(x_test), step))
    table = np.concatenate([predict(standardise(piece)) for piece in pieces])
    parts = [f"{len(rows):,} of {n:,} rows"] if len(rows) < n else []
    parts += [f"{len(columns):,} of {width:,} columns"] if len(columns) < width else []
    return table, len(rows), f"learned from {' and '.join(parts)}" if parts else ""


def _standardised(table: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """(the table (n, d) with mean 0 and spread 1, float32; what does the same to other rows). Missing becomes 0."""
    exact = np.float64 if table.dtype.itemsize > 4 else np.float32  # seconds since 1970 do not fit float32

    def filled(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(exact)
        return np.where(np.isfinite(rows), rows, mean) if table.dtype.kind == "f" else rows

    finite = np.isfinite(table)
    mean = np.where(finite, table, 0).sum(0, dtype=np.float64) / np.maximum(finite.sum(0), 1)
    mean = mean.astype(exact)
    centred = (filled(table) - mean).astype(np.float32)
    spread = np.sqrt(np.square(centred).mean(0, dtype=np.float64)).astype(np.float32)
    spread[spread == 0] = 1
    centred /= spread
    return centred, lambda rows: (filled(rows) - mean).astype(np.float32) / spread
