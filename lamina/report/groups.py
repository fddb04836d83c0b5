"""What is in each cluster, for the report.

In: the examples of a run that were held out, and the clusters they fell into. Out: for each cluster how many, the most
typical examples by number and in words, and which columns set it apart. Called by the report's writer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.data import PARTS, Data
from lamina.targets.clusters import Groups

TYPICAL = 8  # examples shown of each cluster
COLUMNS = 6  # of a row in words
APART = 0.5  # standard deviations by which a cluster's mean is off before it is told
TELLING = 3  # columns told, of numbers and of words
NEARLY_ALL, MORE = 0.8, 0.25  # share of a cluster that has a word, and how much more that is than of all, to be told


def describe(loaded: Data, answers: Groups, numbers: np.ndarray) -> list[dict[str, Any]]:
    """An entry a cluster: "name", "learned" and "held_out" (examples), "share" and "confidence" (of the held-out ones),
    "typical" (their row numbers, nearest to the centre first), "examples" (the same in words), "apart" (what sets it
    apart, in words)."""
    assert answers.distance is not None and answers.confidence is not None
    names, columns = _numbers(loaded, numbers)
    found = []
    for k, name in enumerate(loaded.target.labels):
        own = np.flatnonzero(answers.prediction == k + 1)
        near = own[np.argsort(answers.distance[own], kind="stable")][:TYPICAL]
        typical = numbers[near].tolist()
        found.append(
            {
                "name": name,
                "learned": loaded.target.state()["sizes"][k],
                "held_out": len(own),
                "share": len(own) / max(1, len(numbers)),
                "confidence": float(answers.confidence[own].mean()) if len(own) else None,
                "typical": typical,
                "examples": [words for row in typical[:3] if (words := _words(loaded, row))],
                "apart": ", ".join([*_often(loaded, numbers, own), *_apart(names, columns, own)]),
            }
        )
    return found


def _place(loaded: Data, row: int) -> tuple[Any, int]:
    """The part that holds a row of the pooled table, and where in it."""
    for name in PARTS:
        part = getattr(loaded.source, name)
        if part is None:
            continue
        if row < part.count:
            return part, row
        row -= part.count
    raise IndexError(row)


def _words(loaded: Data, row: int) -> str:
    """An example in words: its text, its path, its first columns with their names; "" for pictures and other arrays."""
    part, row = _place(loaded, row)
    first = part.inputs[0][row]
    if part.kind in ("texts", "files"):
        words = str(first)
        return words if len(words) <= 120 else f"{words[:119]}…"
    if part.kind == "table":
        pairs = [(name, column[row]) for name, column in zip(part.names or (), part.inputs, strict=False)]
    elif np.ndim(first) == 1:
        pairs = list(zip(part.names or [f"column {k}" for k in range(len(first))], first, strict=False))
    else:
        return ""
    told = ", ".join(f"{name} {_cell(value)}" for name, value in pairs[:COLUMNS])
    return told + (", …" if len(pairs) > COLUMNS else "")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else "–" if value is None else str(value)


def _numbers(loaded: Data, numbers: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The columns of numbers of some rows: names (F,) and values (n, F); none for pictures and texts."""
    part = loaded.source.train
    if part.kind == "table":
        which = [k for k, column in enumerate(part.inputs) if column.dtype.kind in "fiub"]
        names = [(part.names or [])[k] for k in which]
    elif len(part.inputs) == 1 and np.ndim(part.inputs[0]) == 2:
        which, width = [0], part.inputs[0].shape[1]
        names = list(part.names or [f"column {k}" for k in range(width)])
    else:
        which, names = [], []
    if not which:
        return [], np.zeros((len(numbers), 0))
    parts = [getattr(loaded.source, name) for name in PARTS if getattr(loaded.source, name) is not None]
    tables = [np.concatenate([np.asarray(part.inputs[k]) for part in parts])[numbers] for k in which]
    return names, np.column_stack(tables).astype(np.float64)


def _often(loaded: Data, numbers: np.ndarray, own: np.ndarray) -> list[str]:
    """ "species Gentoo (100 % instead of 36 %)": words of a table that nearly all of a cluster have, and few of the others."""
    part = loaded.source.train
    if part.kind != "table" or not len(own):
        return []
    parts = [getattr(loaded.source, name) for name in PARTS if getattr(loaded.source, name) is not None]
    found = []
    for k, name in enumerate(part.names or ()):
        if part.inputs[k].dtype.kind not in "OU":
            continue
        column = np.concatenate([given.inputs[k] for given in parts])[numbers].astype(str)
        values, counts = np.unique(column[own], return_counts=True)
        value, share = values[counts.argmax()], counts.max() / len(own)
        others = float((column == value).mean())
        if share >= NEARLY_ALL and share - others >= MORE:
            found.append(f"{name} {value} ({100 * share:.0f} % instead of {100 * others:.0f} %)")
    return found[:TELLING]


def _apart(names: list[str], columns: np.ndarray, own: np.ndarray) -> list[str]:
    """ "petal length low (-1.3), …": means of a cluster, in standard deviations from those of all."""
    if not names or not len(own):
        return []
    with np.errstate(invalid="ignore"):
        spread = np.nanstd(columns, 0)
        off = np.nan_to_num(
            (np.nanmean(columns[own], 0) - np.nanmean(columns, 0)) / np.where(spread > 0, spread, np.inf)
        )
    best = [k for k in np.argsort(-np.abs(off), kind="stable")[:TELLING] if abs(off[k]) >= APART]
    return [f"{names[k]} {'high' if off[k] > 0 else 'low'} ({off[k]:+.1f})" for k in best]
