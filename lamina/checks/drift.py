"""Held-out examples that are unlike those to learn from.

In: a `Pool` whose held-out examples were given, or drawn by time or by groups. Out: a finding. Of each column (of pictures
and texts, of a few numbers measured on each) the distribution in train is compared with that in test: by the largest
difference of the two distribution functions for numbers (Kolmogorov-Smirnov), by half the sum of the differences of the
shares for words. It is told where it is large and not due to chance: with Bonferroni's correction over all that was compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lamina.checks.columns import codes, ignore
from lamina.checks.copies import codes_of
from lamina.checks.pool import SHOWN, Pool, shortened, some
from lamina.findings import Finding
from lamina.imports import loading
from lamina.splits import PARTS

ROWS = 5000  # looked at on each side
LARGE = 0.1  # difference of the distributions that is told
CHANCE = 0.001  # after the correction
_FEATURES = 200
_AT_ONCE = 256  # pictures measured together


def drift(table: Pool, task: str | None) -> Iterator[Finding]:
    """What of train is otherwise in the held-out part."""
    part = 2 if (table.part == 2).any() else 1
    here, there = (table.some(ROWS, np.flatnonzero(table.part == k)) for k in (0, part))
    if table.drawn or min(len(here), len(there)) < 30:
        return
    compared = []
    for name, values, ordered in _measured(table, here, there):
        before, after = values[: len(here)], values[len(here) :]
        compared.append((*(_numbers if ordered else _words)(before, after), name))
    if task in ("classes", "numbers") and table.truth is not None and table.truth.size == len(table.truth):
        truth = table.truth.reshape(-1)[np.concatenate([here, there])]
        ordered = task == "numbers" and truth.dtype.kind in "fiub"
        values = truth.astype(np.float64) if ordered else codes_of(truth)
        compared.append((*(_numbers if ordered else _words)(values[: len(here)], values[len(here) :]), "the answer"))
    told = sorted(((d, name) for d, p, name in compared if d > LARGE and p < CHANCE / len(compared)), reverse=True)
    if told:
        listed = ", ".join(f"{shortened(name)!r} ({difference:.0%})" for difference, name in told[:5])
        columns = [name for _, name in told if table.kind == "table" and name != "the answer"]
        yield Finding(
            "drift",
            "warning",
            f"The {PARTS[part]} examples are unlike those of train in {len(told)} of {len(compared)} respects, in brackets "
            f"the share that would have to change: {listed}{' and others' if len(told) > 5 else ''}.",
            len(told),
            [name for _, name in told[:SHOWN]],
            "kept",
            "find out why; scores are those of such examples"
            + (f"; what is only a count or a date tells nothing there: {ignore(columns[:1])}" if columns else ""),
        )


def _measured(table: Pool, here: np.ndarray, there: np.ndarray) -> Iterator[tuple[str, np.ndarray, bool]]:
    """(name, values, whether they are numbers) of all rows, one after the other."""
    rows = np.concatenate([here, there])
    if table.kind == "table":
        names = table.examples.names or [str(k) for k in range(len(table.columns))]
        for name, column in zip(names, table.columns, strict=True):
            values = column[rows]
            if column.dtype.kind in "Mm":
                yield name, values.astype(np.int64).astype(np.float64), True
            elif column.dtype.kind in "fiu":
                yield name, np.nan_to_num(values.astype(np.float64), nan=-np.inf), True
            elif len(np.unique(coded := codes(values))) <= len(rows) / 10:
                yield name, coded, False
    elif table.kind == "texts":
        texts = [str(text) for text in table.columns[0][rows]]
        yield "length in letters", np.array([len(text) for text in texts], np.float64), True
        latin = [sum(c.isascii() for c in text[:500]) / max(1, len(text[:500])) for text in texts]
        yield "share of plain letters", np.array(latin), True
    elif table.kind == "pictures" and table.columns:
        pictures = table.columns[0]
        size = max(1, math.prod(pictures.shape[1:]))
        parts = [
            some(pictures, rows[at : at + _AT_ONCE]).reshape(-1, size).astype(np.float32)
            for at in range(0, len(rows), _AT_ONCE)
        ]
        means = np.concatenate([part.mean(1, dtype=np.float64) for part in parts])
        squares = np.concatenate([np.einsum("nf,nf->n", part, part).astype(np.float64) for part in parts]) / size
        yield "brightness", means, True
        yield "contrast", np.sqrt(np.maximum(squares - means**2, 0)), True
    else:
        for number, column in enumerate(table.columns):
            if column.dtype.kind in "fiub" and 0 < column[:1].size <= _FEATURES:
                flat = some(column, rows).reshape(len(rows), -1)
                given = table.examples.names if len(table.columns) == 1 else None
                for k in range(flat.shape[1]):
                    name = given[k] if given and len(given) == flat.shape[1] else f"column {number + k}"
                    yield name, flat[:, k].astype(np.float64), True


def _numbers(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(largest difference of the distribution functions, its p-value by the asymptotic formula)."""
    both = np.sort(np.concatenate([before, after]))
    lower = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (before, after)]
    distance = float(np.abs(lower[0] - lower[1]).max())
    n = len(before) * len(after) / (len(before) + len(after))
    return distance, min(1.0, 2 * float(np.exp(-2 * n * distance**2)))


def _words(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(half the sum of the differences of the shares, the p-value of Pearson's chi-squared test; with Yates' correction where
    there are two words). Not by `scipy.stats`, whose import alone takes longer than all checks of most sets."""
    with loading():
        from scipy.special import chdtrc

    _, both = np.unique(np.concatenate([before, after]), return_inverse=True)
    both = both.reshape(-1)
    counts = np.stack(
        [np.bincount(side, minlength=both.max() + 1) for side in (both[: len(before)], both[len(before) :])]
    )
    distance = float(np.abs(counts[0] / len(before) - counts[1] / len(after)).sum() / 2)
    freedom = counts.shape[1] - 1
    if not freedom:
        return distance, 1.0
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    away = np.abs(counts - expected)
    away = away - np.minimum(0.5, away) if freedom == 1 else away
    return distance, float(chdtrc(freedom, (away**2 / expected).sum()))
