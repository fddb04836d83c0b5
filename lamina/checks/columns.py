"""The columns of a table: empty, constant, full of gaps, naming the row, of too many values, far from the rest.

In: a `Pool` of the kind "table": columns (N,), float64 with NaN for a gap, bool, datetime64, or objects (texts, None for a
gap). Out: findings, each about all columns with the same fault.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamina.checks.arrays import FAR, stands_out
from lamina.checks.pool import SHOWN, Pool, listing, shortened
from lamina.findings import Finding
from lamina.sources.arrays import gaps

GAPS = 0.5  # share of rows without a value, from which on it is a warning
MANY = 0.5  # different values a row, above which a column of words hardly repeats itself
_LEAST = 20  # rows from which on values that are all different say something
_LEAST_MARKS = 3  # rows
_WORD = re.compile(r"\s")
_NINES = re.compile("-?9{1,6}|-1")


def codes(column: np.ndarray) -> np.ndarray:
    """(N,) values of any kind -> int64 (N,), equal where the values are; all gaps are one value."""
    if column.dtype.kind == "O":
        known: dict[object, int] = {}
        return np.array([known.setdefault(value, len(known)) for value in column.tolist()], np.int64)
    if column.dtype.kind in "Mm":
        return column.astype(np.int64)
    if column.dtype.kind == "f":
        return np.where(np.isnan(column), np.nan, column + 0.0).astype(np.float64).view(np.int64)
    return np.unique(column, return_inverse=True)[1].reshape(-1).astype(np.int64)


def is_identifier(column: np.ndarray) -> bool:
    """Whether a column only names its rows: a word without spaces that never occurs twice, or numbers that count on."""
    if len(column) < _LEAST or column.dtype.kind not in "OiuUf":
        return False
    if column.dtype.kind in "OU":
        values = [value for value in column.tolist() if value is not None]
        if len(values) < len(column) or len(set(values)) < len(values):
            return False
        return sum(bool(_WORD.search(str(value))) for value in values[:1000]) < 0.1 * min(1000, len(values))
    if not np.isfinite(column).all() or (column != np.floor(column)).any():
        return False
    ordered = np.sort(column)
    steps = np.diff(ordered)
    return bool((steps > 0).all() and (steps == 1).mean() > 0.9)


def columns(table: Pool) -> Iterator[Finding]:
    """What is wrong with columns, each kind of fault once."""
    names = table.examples.names or [str(k) for k in range(len(table.columns))]
    n = len(table.part)
    if n < 2:
        return
    empty, constant, holes, ids, various, far, marks = [], [], [], [], [], [], []
    for name, column in zip(names, table.columns, strict=True):
        missing = gaps(column)
        count = int(missing.sum())
        if count == n:
            empty.append(name)
            continue
        present = column[~missing] if count else column
        if _one_value(present) and (not count or len(present) > 1):
            constant.append(name)
            continue
        if count:
            holes.append((count, name))
        if is_identifier(column):
            ids.append(name)
        elif column.dtype.kind == "O":
            values = len(set(present.tolist()))
            if values > max(_LEAST, MANY * len(present)) and not _are_texts(present):
                various.append((values, name))
        elif column.dtype.kind == "f":
            mark = _mark(present)
            if mark is not None:
                marks.append((*mark, name))
                present = present[present != mark[0]]
            odd = _far(present)
            if odd is not None:
                far.append((odd, name))
    if empty:
        yield _about("empty_columns", "note", f"{_count(empty)} no value at all: {listing(empty)}.", empty)
    if constant:
        words = f"{_count(constant)} the same value in every row: {listing(constant)}."
        yield _about("constant_columns", "note", words, constant)
    if ids:
        words = (
            f"{_count(ids)} another value in every row, so as to name it: {listing(ids)}. What is learned from a name "
        )
        yield _about("identifier_columns", "warning", words + "says nothing about new rows.", ids)
    if various:
        various.sort(reverse=True)
        listed = ", ".join(f"{shortened(name)!r} ({values:,})" for values, name in various[:5])
        words = f"{_count(various)} a value of its own for most rows: {listed} of {n:,}."
        yield _about("high_cardinality", "warning", words, [name for _, name in various])
    if holes:
        holes.sort(reverse=True)
        listed = ", ".join(f"{shortened(name)!r} {count / n:.1%}" for count, name in holes[:5])
        more = f" and {len(holes) - 5} more" if len(holes) > 5 else ""
        yield Finding(
            "missing_values",
            "warning" if holes[0][0] > GAPS * n else "note",
            f"{_count(holes)} gaps: {listed}{more}.",
            len(holes),
            [name for _, name in holes[:SHOWN]],
            "kept: that a value is missing is learned from too",
            f"fill them if you know the values{_ignoring([name for count, name in holes if count > GAPS * n])}",
        )
    if marks:
        shown = "; ".join(f"{value:g} in {shortened(name)!r} ({count:,} rows, the others are from {low:g} to {high:g})"
                          for value, count, low, high, name in marks[:3])  # fmt: skip
        yield Finding(
            "missing_marks",
            "warning",
            f"{_count(marks)} a number that may stand for a missing value: {shown}.",
            len(marks),
            [name for *_, name in marks[:SHOWN]],
            "kept as a number",
            f"if it is a gap: --source-arg missing={marks[0][0]:g}",
        )
    if far:
        (value, middle, place), name = far[0]
        yield Finding(
            "outliers",
            "note",
            f"{_count(far)} values far from all others, such as {value:g} in {shortened(name)!r} "
            f"({table.name(place) if place >= 0 else 'one row'}; half of the values are below {middle:g}).",
            len(far),
            [name for _, name in far[:SHOWN]],
            "kept",
            "check these values",
        )


def _one_value(present: np.ndarray) -> bool:
    first = present[0]
    return bool((present == first).all())


def _are_texts(values: np.ndarray) -> bool:
    """Whether the values are sentences, which are all different by nature."""
    some = values[:: max(1, len(values) // 500)]
    return float(np.mean([len(str(value).split()) for value in some])) >= 4


def _mark(values: np.ndarray) -> tuple[float, int, float, float] | None:
    """(value, rows, least and greatest of the others) where the least or the greatest number is all nines or -1, comes
    again and again, and lies further from the others than they lie apart."""
    for value in (values.min(), values.max()):
        if not np.isfinite(value) or value != np.rint(value) or not _NINES.fullmatch(f"{value:.0f}"):
            continue
        others = values[values != value]
        count = len(values) - len(others)
        if count < max(_LEAST_MARKS, 0.002 * len(values)) or len(others) < _LEAST or not np.isfinite(others).all():
            continue
        low, high = float(others.min()), float(others.max())
        if min(abs(value - low), abs(value - high)) > high - low and len(np.unique(others)) > 2:
            return float(value), count, low, high
    return None


def _far(values: np.ndarray) -> tuple[float, float, int] | None:
    """(value, middle, row) of the farthest value (n,), where it is far even beside the others that are off the middle."""
    finite = np.isfinite(values)
    column = values[finite]
    if len(column) < _LEAST:
        return None
    place = int(np.abs(column - np.median(column)).argmax())
    rest = np.delete(column, place)  # of few values one alone makes the deviation large
    unit = float(np.abs(rest).max()) or 1.0  # no square is beyond the range
    spread = unit * float((rest / unit).std())
    if spread == 0 or abs(column[place] - rest.mean()) <= FAR * spread or not stands_out(column):
        return None
    return float(column[place]), float(np.median(column)), place if finite.all() else -1


def _count(names: list[Any]) -> str:
    return "1 column has" if len(names) == 1 else f"{len(names):,} columns have"


def _ignoring(names: list[str]) -> str:
    return f"; or {ignore(names)}" if names else ""


def ignore(names: list[str]) -> str:
    """What is typed to leave columns out: "--ignore id --ignore 'row number'"."""
    shown = " ".join(f"--ignore {shlex.quote(name)}" for name in names[:3])
    return shown + (" ..." if len(names) > 3 else "")


def _about(kind: str, severity: str, words: str, names: list[str]) -> Finding:
    return Finding(kind, severity, words, len(names), names[:SHOWN], "kept", ignore(names))
