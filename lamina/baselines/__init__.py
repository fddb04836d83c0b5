"""What no net at all would score: the numbers beside the headline.

In: the training and held-out examples of a run as numbers, and its target's measures. Out: entries as `evaluate.scores`
makes them, with a "name": "majority" or "mean", which never looks at the input, and the models that a domain names
(`Domain.simple`), one a file here. Fitted by train while the net learns, where a core is free, or after it; scored after it.
A net that does not beat these is not worth its weight.

A model is a module with `why_not(task, x_train, y_train, x_test)`, the reason why it cannot be fitted or "", and
`fit_predict(task, x_train, y_train, x_test, known, seed=, seconds=)` -> (probabilities (n, K) in the order of `known`, or
numbers (n,) or (n, D); the rows it learned from; what was left out). It takes a few seconds of one core at most, and its
work is bounded by what it consists of, never by the clock.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamina import errors, evaluate
from lamina.targets import base
from lamina.targets.base import Answers, Measure

Inputs = Callable[
    [], "tuple[Any, Any] | None"
]  # numbers to learn from and to be asked about, made when they are wanted


@dataclass(frozen=True)
class Fitted:
    """What a simple model says about held-out examples; or, in `note`, why there is none."""

    name: str
    answers: Answers | None
    rows: int = 0  # learned from
    note: str = ""
    seconds: float = 0.0


def fitted(
    task: str, inputs: Mapping[str, Inputs], y_train: np.ndarray, count: int, *, seed: int, seconds: float = 10.0,
    labels: Sequence | None = None,
) -> list[Fitted]:  # fmt: skip
    """The majority (or the mean) and simple models, and what they say about `count` held-out examples.

    task: "classes", "numbers" or "tags". inputs: for each model by name what gives its (x_train, x_test), or None where
    there are none for it; y (n,) classes, (n,) or (n, D) numbers, (n, K) tags of 0 and 1. `labels`
    orders the columns of the probabilities (default: the classes of y_train, sorted).
    """
    if task not in ("classes", "numbers", "tags"):
        raise errors.UsageError(f"There is no baseline for {task!r}.", expected="classes, numbers or tags")
    y_train = np.asarray(y_train)
    if not len(y_train):
        raise errors.DataError("There are no training examples.", expected="one at least")
    known = np.zeros(0)
    if task == "classes":
        known = np.unique(y_train) if labels is None else np.asarray(labels)
        strange = np.setdiff1d(y_train, known).tolist()
        if strange:
            expected = f"one of {', '.join(map(repr, known[:10].tolist()))}"
            raise errors.DataError(f"The training label {strange[0]!r} is not among the classes.", expected=expected)
    start = time.perf_counter()
    constant = _answers(task, _constant(task, y_train, count, known), known)
    found = [
        Fitted("mean" if task == "numbers" else "majority", constant, len(y_train), "", time.perf_counter() - start)
    ]
    for name, made in inputs.items():
        start = time.perf_counter()
        model, pair = importlib.import_module(f"lamina.baselines.{name}"), made()
        why_not = "the inputs are not arrays" if pair is None else model.why_not(task, pair[0], y_train, pair[1])
        if pair is None or why_not:
            found.append(Fitted(name, None, note=f"no {name} baseline: {why_not}"))
            continue
        table, rows, note = model.fit_predict(task, pair[0], y_train, pair[1], known, seed=seed, seconds=seconds)
        found.append(Fitted(name, _answers(task, table, known), rows, note, time.perf_counter() - start))
    return found


def scored(
    fits: Sequence[Fitted], y_test: np.ndarray, measures: Sequence[Measure], *, seed: int, labels: Sequence | None = None,
    groups: np.ndarray | None = None, split: str = "test", net: Answers | None = None,
) -> list[dict]:  # fmt: skip
    """Scores of simple models: each entry is one of `evaluate.scores` with "name", "trained_on" (rows), "seconds" and, where
    something was left out, "note". `net`: a net's answers to the same examples; the first measure's entries then have
    "paired", the comparison of the net (A) with the baseline (B), example by example."""
    found: list[dict] = []
    measures = [measure for measure in measures if not measure.intervals]
    for fit in fits:
        if fit.answers is None:
            for entry in found:  # beside those that there are so far
                entry["note"] = "; ".join(filter(None, (entry.get("note"), fit.note)))
            continue
        extra = {"name": fit.name, "trained_on": fit.rows, "seconds": round(fit.seconds, 3)}
        for entry in evaluate.scores(
            measures, y_test, fit.answers, split=split, seed=seed, groups=groups, labels=labels
        ):
            notes = "; ".join(filter(None, (fit.note, entry.get("note"))))
            found.append(entry | extra | ({"note": notes} if notes else {}))
            if net is not None and entry["score"] == measures[0].name:
                found[-1]["paired"] = evaluate.compare(
                    y_test, net, fit.answers, measures[0], seed, groups=groups, labels=labels
                )
    return found


def baselines(
    task: str, inputs: Mapping[str, Inputs], y_train: np.ndarray, y_test: np.ndarray, measures: Sequence[Measure], *,
    seed: int, seconds: float = 10.0, labels: Sequence | None = None, groups: np.ndarray | None = None,
    split: str = "test", net: Answers | None = None,
) -> list[dict]:  # fmt: skip
    """`fitted` and `scored` at once."""
    y_test = np.asarray(y_test)
    fits = fitted(task, inputs, y_train, len(y_test), seed=seed, seconds=seconds, labels=labels)
    return scored(fits, y_test, measures, seed=seed, labels=labels, groups=groups, split=split, net=net)


def _answers(task: str, table: np.ndarray, known: np.ndarray) -> Answers:
    """Probabilities (n, K), or numbers, as a target would say them."""
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
        one[base.places(known, seen)[0]] = counts / len(y_train)
    else:
        one = y_train.mean(0)
    return np.repeat(one[None], n, 0)
