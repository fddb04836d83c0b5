"""Columns that give the answer away: one of them, the beginning of one, or a sum of several.

In: a `Pool` with columns (a table, or one array of named or few numbers) and its task. Out: findings. A column tells the
answer if each row's answer follows from the rows that are like it in this column alone, itself left out: those of the same
value, or, of a number that occurs once, those next to it. That is the score of a leave-one-out nearest neighbour, and costs
a sort. At most `ROWS` rows are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lamina.checks.columns import codes, ignore
from lamina.checks.pool import SHOWN, Pool, shortened
from lamina.findings import Finding

ROWS = 4000  # rows looked at
LEAST = 20  # rows below which chance could do it
SURE = 0.98  # of what the most frequent answer (or the mean) leaves unexplained, that a column explains
EXACT = 1e-4  # of the answer's standard deviation, that a sum may leave unexplained
_FEATURES = 200  # of an array; more than that are pixels or readings, each of which says little
_TERMS = 8  # of a sum

# What the beginning or the end of a word may say: "Adelie-17", "A17", "2024_cat".
_PARTS: dict[str, Callable[[str], str]] = {
    "first letters": lambda text: (re.match(r"[^\W\d_]*", text) or [""])[0],
    "first word": lambda text: re.split(r"[\W_]+", text.strip(), maxsplit=1)[0],
    "last word": lambda text: re.split(r"[\W_]+", text.strip())[-1],
    "first letter": lambda text: text[:1],
    "first 2 letters": lambda text: text[:2],
    "first 3 letters": lambda text: text[:3],
}


def giveaways(table: Pool, task: str | None) -> Iterator[Finding]:
    """Columns from which alone the answer follows."""
    found = _columns(table)
    if table.truth is None or found is None or task not in ("classes", "numbers"):
        return
    truth = table.truth.reshape(len(table.truth), -1)
    if truth.shape[1] != 1 or not len(truth) or (task == "numbers" and truth.dtype.kind not in "fiub"):
        return
    rows = table.some(ROWS, np.flatnonzero(table.part >= 0)[:: table.step])
    answers: Any = codes(truth[rows, 0]) if task == "classes" else truth[rows, 0].astype(np.float64)
    if task == "classes":
        answers = np.unique(answers, return_inverse=True)[1].reshape(-1)
    elif not np.isfinite(answers).all():
        return
    tell = _classes_told if task == "classes" else _numbers_told
    told: list[tuple[str, str]] = []
    numbers: list[tuple[str, np.ndarray]] = []
    for name, column in found:
        values = column[rows]
        if (how := _tells(values, answers, tell)) is not None:
            told.append((name, how))
        elif values.dtype.kind in "fiub":
            numbers.append((name, values.astype(np.float64)))
    target = shortened(table.target[0]) if len(table.target) == 1 else "the answer"
    if told:
        listed = ", ".join(f"{shortened(name)!r}{how}" for name, how in told[:5])
        names = [name for name, _ in told]
        yield Finding(
            "gives_away",
            "warning",
            f"{listed} {'tells' if len(told) == 1 else 'tell, each alone,'} {target} without error or nearly so. If it is not "
            "known before the answer is, scores on these data mean nothing.",
            len(told),
            names[:SHOWN],
            "kept: training goes on",
            ignore(names) if table.kind == "table" else "leave it out",
        )
    if task == "numbers" and (terms := _sum(numbers, answers)):
        names = [name for name, _ in terms]
        yield Finding(
            "sum_gives_away",
            "warning",
            f"{target} = {_formula(terms)} in every row that was looked at. If these are not known before the answer is, "
            "scores on these data mean nothing.",
            len(names),
            names[:SHOWN],
            "kept: training goes on",
            ignore(names) if table.kind == "table" else "leave them out",
        )


def _columns(table: Pool) -> list[tuple[str, np.ndarray]] | None:
    """Columns by name; None where there are none to speak of."""
    if table.kind == "table":
        names = table.examples.names or [str(k) for k in range(len(table.columns))]
        return list(zip(names, table.columns, strict=True))
    if table.kind != "arrays" or len(table.columns) != 1 or table.columns[0].ndim != 2:
        return None
    array = table.columns[0]
    if not 0 < array.shape[1] <= _FEATURES or array.dtype.kind not in "fiub":
        return None
    names = table.examples.names or [f"column {k}" for k in range(array.shape[1])]
    return [(name, array[:, k]) for k, name in enumerate(names)] if len(names) == array.shape[1] else None


def _tells(values: np.ndarray, answers: np.ndarray, tell: Callable[..., float]) -> str | None:
    """How a column tells the answer: "" by its values, or by which part of them; None: it does not."""
    if len(values) < LEAST:
        return None
    if values.dtype.kind in "fiubMm":
        if values.dtype.kind in "Mm":
            values = values.astype(np.int64)
        numbers = np.nan_to_num(values.astype(np.float64), nan=np.inf)  # gaps are like each other
        return "" if tell(numbers, answers, ordered=True) >= SURE else None
    if tell(codes(values), answers, ordered=False) >= SURE:
        return ""
    texts = ["" if value is None else str(value) for value in values.tolist()]
    if all(text.isdecimal() and len(text) < 16 for text in texts):
        return "" if tell(np.array(texts, np.float64), answers, ordered=True) >= SURE else None
    for part, cut in _PARTS.items():
        cuts = codes(np.array([cut(text) for text in texts], dtype=object))
        if len(np.unique(cuts)) > 1 and tell(cuts, answers, ordered=False) >= SURE:
            return f" (by its {part})"
    return None


def _classes_told(values: np.ndarray, classes: np.ndarray, *, ordered: bool) -> float:
    """Of the rows that the most frequent class gets wrong, the share that is right by the rows like each one; one error is
    forgiven, that at the border of two classes."""
    n, k = len(classes), int(classes.max()) + 1
    always = int(np.bincount(classes).max())
    if n - always < LEAST // 2:  # too few to tell from chance
        return 0.0
    distinct, group = np.unique(values, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)
    pairs, counts = np.unique(group * k + classes, return_counts=True)  # (value, class) that occur
    of, which = pairs // k, pairs % k
    order = np.lexsort((counts, of))
    last = np.flatnonzero(np.diff(of[order], append=-1))  # of each value the class that is the most frequent
    said = which[order][last][group]
    sizes, most = np.bincount(group)[group], counts[order][last][group]
    before = np.maximum(last - 1, 0)
    second = np.where((last > 0) & (of[order][before] == of[order][last]), counts[order][before], 0)[group]
    right = (said == classes) & (most - 1 > second)  # still the most frequent without the row itself
    if ordered and len(distinct) > 2:
        majority, place = which[order][last], np.arange(len(distinct))
        left, beyond = np.maximum(place - 1, 0), np.minimum(place + 1, len(distinct) - 1)
        with np.errstate(invalid="ignore"):
            nearer_left = distinct - distinct[left] <= distinct[beyond] - distinct
        nearest = np.where((place == len(distinct) - 1) | (nearer_left & (place > 0)), left, beyond)
        right = np.where(sizes > 1, right, majority[nearest][group] == classes)
    wrong = n - int(right.sum())
    return 1.0 - max(0, wrong - 1) / (n - always)


def _numbers_told(values: np.ndarray, numbers: np.ndarray, *, ordered: bool) -> float:
    """R² of the mean of the rows like each one."""
    spread = float(np.var(numbers))
    if spread == 0 or not np.isfinite(spread):
        return 0.0
    numbers = (numbers - numbers.mean()) / np.sqrt(spread)
    distinct, group = np.unique(values, return_inverse=True)
    group = group.reshape(-1)
    sizes, sums = np.bincount(group), np.bincount(group, numbers)
    others = (sums[group] - numbers) / np.maximum(sizes[group] - 1, 1)  # the mean of the same value, itself left out
    alone = sizes[group] == 1
    if not ordered:
        others[alone] = 0.0
    elif len(distinct) > 2:
        means = sums / sizes
        beside = np.empty(len(distinct))
        beside[1:-1] = (means[:-2] + means[2:]) / 2
        beside[0], beside[-1] = means[1], means[-2]
        others[alone] = beside[group][alone]
    else:
        others[alone] = 0.0
    return 1.0 - float(((numbers - others) ** 2).mean())


# --- Sums -------------------------------------------------------------------------------------------------------------


def _sum(numbers: list[tuple[str, np.ndarray]], answers: np.ndarray) -> list[tuple[str, float]]:
    """The fewest columns of which the answer is a sum, with their factors and the constant ("", c); none where it is not.

    Least squares over all of them; then columns go, the least first, as long as the rest explains as much.
    """
    full = [(name, values) for name, values in numbers if np.isfinite(values).all() and values.std() > 0]
    n = len(answers)
    if not full or len(full) > _FEATURES or n < max(LEAST, 3 * len(full)) or answers.std() == 0:
        return []
    scales = np.array([values.std() for _, values in full])
    if not np.isfinite(scales).all():
        return []
    table = np.stack([(values - values.mean()) / scale for (_, values), scale in zip(full, scales, strict=True)], 1)
    wanted = (answers - answers.mean()) / answers.std()

    def fit(which: list[int]) -> tuple[np.ndarray, float]:
        factors = np.linalg.lstsq(table[:, which], wanted, rcond=1e-10)[0]
        return factors, float(np.sqrt(((table[:, which] @ factors - wanted) ** 2).mean()))

    which = list(range(len(full)))
    factors, left = fit(which)
    if left > EXACT:
        return []
    which = [k for k, factor in zip(which, factors, strict=True) if abs(factor) > EXACT] or which
    while len(which) > 1:
        factors, left = fit(which)
        least = int(np.abs(factors).argmin())
        fewer = which[:least] + which[least + 1 :]
        if fit(fewer)[1] > EXACT:
            break
        which = fewer
    factors, left = fit(which)
    if left > EXACT or not 1 < len(which) <= _TERMS:  # one alone was told already
        return []
    real = factors * answers.std() / scales[which]
    constant = answers.mean() - sum(f * full[k][1].mean() for f, k in zip(real, which, strict=True))
    terms = [(full[k][0], float(f)) for f, k in zip(real, which, strict=True)]
    return [*terms, ("", float(constant))] if abs(constant) > EXACT * answers.std() else terms


def _formula(terms: list[tuple[str, float]]) -> str:
    """ "casual + registered", "2 a - 0.5 b + 3"."""
    words = ""
    for name, factor in terms:
        size = abs(factor)
        amount = f"{size:.4g}" if not name or abs(size - 1) > 1e-3 else ""
        words += f"{' - ' if factor < 0 else ' + '}{' '.join(filter(None, (amount, shortened(name, 30))))}"
    return words[3:] if words.startswith(" + ") else "-" + words[3:]
