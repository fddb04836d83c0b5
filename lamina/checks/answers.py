"""The answers: missing, of one class, too few of a class, unequal, or no numbers.

In: a `Pool` and the task. Out: findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lamina.checks.pool import SHOWN, Pool, error, listing
from lamina.errors import rows
from lamina.findings import Finding
from lamina.sources.arrays import distinct, gaps
from lamina.splits import FEW, PARTS

IMBALANCE = 20  # largest class / smallest class
SKEW = 3


def answers(table: Pool, task: str | None) -> Iterator[Finding]:
    truth = table.truth
    if truth is None:
        if task not in (None, "clusters") and table.columns:  # clusters are sought where there are none
            yield error("no_answers", "There are no answers to learn from.", len(table.part), [], "give them: (x, y)")
        return
    gone = gaps(truth).reshape(len(truth), -1).any(1)
    missing, present = np.flatnonzero(gone), np.flatnonzero(~gone)
    if len(missing):
        yield error(
            "missing_answers",
            f"{len(missing):,} of {len(truth):,} answers are missing: {rows(missing)}.",
            len(missing),
            missing[:SHOWN].tolist(),
            "leave these examples out, or find their answers",
        )
    if not len(present):
        return
    if task == "classes" and truth.size == len(truth):
        yield from _classes(table, truth.reshape(len(truth)), present)
    elif task == "numbers":
        yield from _numbers(truth, present)
    elif task == "tags":
        yield from _tags(truth, present)


def are_signs(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether whole numbers that occur so often are -1 and 1, and perhaps 0: names of classes like others, unless -1 is so
    rare that it says that there is no label."""
    return values.tolist() in ([-1, 1], [-1, 0, 1]) and bool(5 * counts[0] >= counts[1:].min())


def _classes(table: Pool, truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    if truth.dtype.kind in "fiu":
        numbers = truth[present]
        signs = are_signs(*np.unique(numbers, return_counts=True))
        for kind, bad, fix in (
            ("fractional", present[numbers != np.floor(numbers)], "task='numbers' if these are measurements"),
            (
                "negative",
                present[(numbers < 0) & (not signs)],
                "number the classes from 0, or leave these examples out",
            ),
        ):
            if len(bad):
                yield error(
                    f"{kind}_labels",
                    f"{len(bad):,} labels are {kind}, such as {truth[bad[0]]:g}: {rows(bad)}.",
                    len(bad),
                    bad[:SHOWN].tolist(),
                    fix,
                )
                return
    column = truth[present].astype(str) if truth.dtype.kind == "O" else truth[present]
    values, codes = distinct(column)
    names = [_label(value, table.examples.labels) for value in values]
    part = table.part[present]
    learned = np.bincount(codes[part == 0], minlength=len(values))
    if (learned > 0).sum() == 1:
        only = names[int(learned.argmax())]
        yield error(
            "one_class",
            f"All {learned.sum():,} training examples are of one class, {only!r}: there is nothing to tell apart.",
            int(learned.sum()),
            [only],
            "give examples of another class",
        )
    for k in (1, 2):
        unseen = np.flatnonzero((np.bincount(codes[part == k], minlength=len(values)) > 0) & (learned == 0))
        if len(unseen) and learned.any():
            count = int(np.isin(codes[part == k], unseen).sum())
            listed = [names[code] for code in unseen]
            yield error(
                "unseen_class",
                f"{count:,} {PARTS[k]} examples are of classes that never occur in train: {listing(listed)}.",
                count,
                listed[:SHOWN],
                "split stratified, give training examples of them, or leave them out",
            )
    counts = np.bincount(codes)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        listed = [names[code] for code in few]
        yield Finding(
            "rare_classes",
            "warning",
            f"{'1 class has' if len(few) == 1 else f'{len(few):,} classes have'} fewer than {FEW} examples and cannot be in "
            f"every part: {listing(listed)}.",
            len(few),
            listed[:SHOWN],
            "kept",
            "give more examples of them, or merge them into others",
        )
    if len(counts) > 1 and counts.max() > IMBALANCE * counts.min():
        large, small = names[int(counts.argmax())], names[int(counts.argmin())]
        yield Finding(
            "imbalance",
            "warning",
            f"The largest class, {large!r}, has {counts.max():,} examples, the smallest, {small!r}, has "
            f"{counts.min():,}: always answering {large!r} is right in {counts.max() / counts.sum():.1%}.",
            len(counts),
            [large, small],
            "kept",
            "judge by balanced accuracy or F1, and weigh the classes",
        )


def _numbers(truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    if truth.dtype.kind not in "fiub":
        first = truth.reshape(len(truth), -1)[present[0], 0]
        yield error("not_numbers", f"The answers are no numbers: {str(first)!r}.", len(truth), [], "task='classes'")
        return
    table = truth[present].reshape(len(present), -1).astype(np.float64)
    infinite = present[np.isinf(table).any(1)]
    if len(infinite):
        yield error(
            "infinite_answers",
            f"{len(infinite):,} answers are infinite: {rows(infinite)}.",
            len(infinite),
            infinite[:SHOWN].tolist(),
            "leave these examples out",
        )
        return
    if len(table) > 1 and (table == table[0]).all():
        yield error(
            "one_number",
            f"All {len(table):,} answers are the same, {', '.join(f'{number:g}' for number in table[0, :3])}.",
            len(table),
            table[0, :SHOWN].tolist(),
            "check how the answers were read",
        )
        return
    centred = table - table.mean(0)
    skew = (centred**3).mean(0) / np.maximum((centred**2).mean(0), np.finfo(float).tiny) ** 1.5
    worst = int(np.abs(skew).argmax())
    if abs(skew[worst]) > SKEW:
        low, middle, high = np.quantile(table[:, worst], [0, 0.5, 1])
        yield Finding(
            "skew",
            "note",
            f"The answers are skewed ({skew[worst]:+.1f}): from {low:g} to {high:g}, half of them below {middle:g}.",
            len(table),
            [],
            "kept",
            "learn their logarithm, numpy.log1p(y)" if low >= 0 and skew[worst] > 0 else "look at the far values",
        )


def _tags(truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    if truth.dtype.kind not in "fiub":  # their names
        return
    bad = present[~np.isin(truth[present], (0, 1)).reshape(len(present), -1).all(1)]
    if len(bad):
        yield error(
            "bad_tags",
            f"{len(bad):,} rows of tags hold other values than 0 and 1: {rows(bad)}.",
            len(bad),
            bad[:SHOWN].tolist(),
            "give a 0/1 matrix (N, K)",
        )


def _label(value: Any, labels: list[str] | None) -> str:
    if labels and isinstance(value, np.integer) and 0 <= value < len(labels):
        return labels[int(value)]
    return str(value)
