"""What no net at all would score: the numbers beside the headline.

In: the training and held-out examples of a run as numbers, and its target's measures. Out: entries as `evaluate.scores`
makes them, with a "name": "majority" or "mean", which never looks at the input, and the models that a domain names
(`Domain.simple`), one a file here. Called by train after it has learned. A net that does not beat these is not worth its
weight.

A model is a module with `why_not(task, x_train, y_train, x_test)`, the reason why it cannot be fitted or "", and
`fit_predict(task, x_train, y_train, x_test, known, seed=, seconds=)` -> (probabilities (n, K) in the order of `known`, or
numbers (n,) or (n, D); the rows it learned from; what was left out). It takes a few seconds of one core at most, and its
work is bounded by what it consists of, never by the clock.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lamina import errors, evaluate
from lamina.targets import base
from lamina.targets.base import Answers, Measure

Inputs = Callable[
    [], "tuple[Any, Any] | None"
]  # numbers to learn from and to be asked about, made when they are wanted


def baselines(
    task: str,
    inputs: Mapping[str, Inputs],
    y_train: np.ndarray,
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
    """Score the majority (or the mean) and simple models on the held-out examples.

    task: "classes", "numbers" or "tags". inputs: for each model by name what gives its (x_train, x_test), or None where
    there are none for it; y (n,) classes, (n,) or (n, D) numbers, (n, K) tags of 0 and 1. `labels`
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
    measures = [measure for measure in measures if not measure.intervals]

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
    add("mean" if task == "numbers" else "majority",
        _answers(task, _constant(task, y_train, len(y_test), known), known), len(y_train), "", start)  # fmt: skip
    for name, made in inputs.items():
        start = time.perf_counter()
        model, pair = importlib.import_module(f"lamina.baselines.{name}"), made()
        why_not = "the inputs are not arrays" if pair is None else model.why_not(task, pair[0], y_train, pair[1])
        if pair is None or why_not:
            for entry in found:  # beside those of the majority
                entry["note"] = "; ".join(filter(None, (entry.get("note"), f"no {name} baseline: {why_not}")))
            continue
        table, rows, note = model.fit_predict(task, pair[0], y_train, pair[1], known, seed=seed, seconds=seconds)
        add(name, _answers(task, table, known), rows, note, start)
    return found


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
